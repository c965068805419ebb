"""The whole journal read and hashed again: what `verify` finds, and what its reader should do about it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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


def broken(location: str, index: int, what: str) -> str:
    """One sentence: which record, what happened to it, and what to do."""
    return (
        f"record {index} of the journal {location} {what}: stop the coordinator, keep this copy as evidence and "
        f"restore a backup with more than {index} records; the partners' checkpoints show which copy is right"
    )


def audit(connection: Connection, location: str) -> list[str]:
    """Every problem in a sentence, at most `PROBLEMS_MAX`; empty when all is well."""
    found: list[str] = []
    frontier = merkle.Frontier()
    last_ms = 0
    tree_is_sound = True
    for page in _pages(connection):
        first = frontier.size
        grown: list[merkle.Node] = []
        for idx, leaf, leaf_hash in page:
            if idx != frontier.size:
                return [*found, broken(location, frontier.size, "is missing")]
            at_ms, problem = _judge(leaf, leaf_hash, last_ms)
            if problem:
                found.append(broken(location, idx, problem))
            last_ms = max(last_ms, at_ms)
            grown += frontier.append(leaf_hash)[1:]
        if tree_is_sound and (low := _first_wrong_node(connection, first, frontier.size, grown)) is not None:
            tree_is_sound = False
            found.append(
                broken(location, low[0], f"(or one up to {low[1]}) no longer gives the hash above it")
            )
        if len(found) >= PROBLEMS_MAX:
            return found[:PROBLEMS_MAX]
    return found + _against_signature(connection, location, frontier)


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


def _against_signature(connection: Connection, location: str, frontier: merkle.Frontier) -> list[str]:
    found = {name: value for name, value in connection.execute(select(meta))}
    note = found.get("checkpoint", "")
    if not note:
        return [] if frontier.size == 0 else [f"the journal {location} has records but no signed checkpoint"]
    try:
        signed = Checkpoint.open(note.encode(), Verifier.from_vkey(found["log_key"]))
    except (NoteError, KeyError) as wrong:
        return [f"the signed checkpoint of the journal {location} cannot be trusted: {wrong}"]
    if signed.size > frontier.size:
        return [broken(location, frontier.size, f"is missing, {signed.size} records were signed for")]
    if (signed.size, signed.root) != (frontier.size, frontier.root()):
        what = f"the {frontier.size} records of the journal {location} do not give the root signed for {signed.size}"
        return [f"{what}: keep this copy as evidence and restore a backup that does"]
    return []
