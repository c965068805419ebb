"""The whole journal read and hashed again: what `verify` finds, and what its reader should do about it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, select

from commons import merkle
from commons.log import Checkpoint
from commons.notes import NoteError, Verifier
from commons.records import Record
from governance.journal.schema import meta, nodes, records

PROBLEMS_MAX = 20
"""A broken disk breaks many records; the first ones say enough."""
_PAGE = 4096


Progress = Callable[[int], None]
"""Told how many records have been read so far."""


@dataclass(frozen=True)
class Broken:
    """What is wrong, from which record on, and what its reader should do."""

    index: int
    what: str
    act: str

    def __str__(self) -> str:
        return f"{self.what}: {self.act}"


def broken(location: str, index: int, what: str) -> str:
    """One sentence: which record, what happened to it, and what to do."""
    return str(_broken(location, index, what))


def audit(connection: Connection, location: str, progress: Progress | None = None) -> list[Broken]:
    """Every problem, at most `PROBLEMS_MAX`; empty when all is well."""
    found: list[Broken] = []
    frontier = merkle.Frontier()
    last_ms = 0
    tree_is_sound = True
    for page in _pages(connection):
        first = frontier.size
        grown: list[merkle.Node] = []
        for idx, leaf, leaf_hash in page:
            if idx != frontier.size:
                return [*found, _broken(location, frontier.size, "is missing")]
            at_ms, problem = _judge(leaf, leaf_hash, last_ms)
            if problem:
                found.append(_broken(location, idx, problem))
            last_ms = max(last_ms, at_ms)
            grown += frontier.append(leaf_hash)[1:]
        if tree_is_sound and (low := _first_wrong_node(connection, first, frontier.size, grown)) is not None:
            tree_is_sound = False
            what = f"(or one up to {low[1]}) no longer gives the hash above it"
            found.append(_broken(location, low[0], what))
        if len(found) >= PROBLEMS_MAX:
            return found[:PROBLEMS_MAX]
        if progress is not None:
            progress(frontier.size)
    return found + _against_signature(connection, location, frontier)


def _broken(location: str, index: int, what: str) -> Broken:
    return Broken(
        index,
        f"record {index} of the journal {location} {what}",
        f"stop the coordinator, keep this copy as evidence and restore a backup with more than {index} records; "
        "the partners' checkpoints show which copy is right",
    )


def _pages(connection: Connection) -> Iterator[Sequence[Any]]:
    last = -1
    while True:
        query = select(records).where(records.c.idx > last).order_by(records.c.idx).limit(_PAGE)
        page = connection.execute(query).all()
        if not page:
            return
        yield page
        last = page[-1][0]


def _judge(leaf: bytes, leaf_hash: bytes, last_ms: int) -> tuple[int, str]:
    """(at_ms, what is wrong with this record or nothing)"""
    if merkle.leaf_hash(leaf) != leaf_hash:
        return last_ms, "was changed on disk"
    try:
        at_ms = Record.parse(leaf).at_ms
    except ValueError as wrong:
        return last_ms, f"cannot be read ({wrong})"
    return at_ms, "is dated before the one that precedes it" if at_ms < last_ms else ""


def _first_wrong_node(
    connection: Connection, first: int, size: int, grown: Sequence[merkle.Node]
) -> tuple[int, int] | None:
    """The first and last record under the lowest stored node that differs from the one computed."""
    stored: dict[tuple[int, int], bytes] = {}
    level = 1
    while size >> level:
        in_range = nodes.c.idx.between(first >> level, (size >> level) - 1)
        for idx, value in connection.execute(
            select(nodes.c.idx, nodes.c.hash).where(nodes.c.level == level, in_range)
        ):
            stored[level, idx] = value
        level += 1
    for level, index, value in grown:
        if stored.get((level, index)) != value:
            return index << level, ((index + 1) << level) - 1
    return None


def _against_signature(connection: Connection, location: str, frontier: merkle.Frontier) -> list[Broken]:
    found = {name: value for name, value in connection.execute(select(meta))}
    note, size = found.get("checkpoint", ""), frontier.size
    keep = "keep this copy as evidence and restore a backup"
    if not note:
        what = f"the journal {location} has records but no signed checkpoint"
        return [] if size == 0 else [Broken(0, what, f"{keep} that has one")]
    try:
        signed = Checkpoint.open(note.encode(), Verifier.from_vkey(found["log_key"]))
    except (NoteError, KeyError) as wrong:
        what = f"the signed checkpoint of the journal {location} cannot be trusted: {wrong}"
        return [Broken(0, what, f"{keep} whose checkpoint can be")]
    if signed.size > size:
        return [_broken(location, size, f"is missing, {signed.size} records were signed for")]
    if (signed.size, signed.root) != (size, frontier.root()):
        what = f"the {size} records of the journal {location} do not give the root signed for {signed.size}"
        return [Broken(0, what, f"{keep} that does")]
    return []
