"""The records and proofs that lead from the founding charter to the one in force, for `commons.chain`.

Selects, never judges: a site checks everything itself.
"""

from __future__ import annotations

from typing import Protocol

from commons.anchors import suffices
from commons.chain import Wanted
from commons.errors import Code, Refusal
from commons.log import Checkpoint
from commons.notes import parse
from governance.consortium import Consortium

Entry = tuple[int, bytes, list[bytes]]
"""(journal index, leaf, inclusion path)."""


class Witnessed(Protocol):
    """The journal's checkpoints as its witnesses have cosigned them, notes all."""

    def published(self, at_least: int) -> bytes | None:
        """The newest that enough witnesses cosigned, if it covers `at_least` records."""

    def newest(self, at_least: int) -> bytes | None:
        """The one that is being cosigned, if it covers `at_least` records, with the cosignatures it has."""

    def wait_published(self, at_least: int, timeout_s: float) -> None:
        """Wait until `published(at_least)` is one, at most `timeout_s`."""

    def unwitnessed_since_ms(self) -> int | None:
        """When the oldest record was made that waits for witnesses; None when none does."""


def chain_bundle(
    consortium: Consortium, wanted: Wanted, witnessed: Witnessed | None = None
) -> tuple[bytes, list[Entry], list[bytes]] | Refusal:
    """(checkpoint, entries in order, consistency path from `have_size`), all of one moment.

    When the charter asks for witnesses, the checkpoint is the published one, if that covers all entries; else the one
    that is being cosigned. Refused when the caller has seen more records than there are: then this journal is an
    older copy.
    """
    with consortium.lock:
        journal = consortium.journal
        if wanted.have_size > journal.size:
            return Refusal(
                Code.LOG_FORKED,
                f"the caller verified {wanted.have_size} records, this journal has {journal.size}: it is an older copy; the "
                "operator restores the newest one",
            )
        least = covering(consortium, wanted)
        note = journal.checkpoint()
        if witnessed is not None and consortium.charter.witnesses.quorum:
            note = witnessed.published(least) or witnessed.newest(least) or note
        size = Checkpoint.read(parse(note)).size
        shown = _evidence(consortium, wanted)
        entries = [
            (i, leaf, journal.inclusion(i, size))
            for i, leaf in zip(shown, journal.leaves(shown), strict=True)
        ]
        return note, entries, journal.consistency(wanted.have_size, size)


def covering(consortium: Consortium, wanted: Wanted) -> int:
    """How many records a checkpoint must cover to show all evidence there is, and not to go back behind `have_size`."""
    with consortium.lock:
        return max(wanted.have_size, 1 + max(_evidence(consortium, wanted), default=-1))


def _evidence(consortium: Consortium, wanted: Wanted) -> list[int]:
    members, proposals = consortium.members, consortium.proposals
    shown = {*members.basis, *proposals.basis}
    path = [1] if wanted.whole else _path(consortium, wanted.known_version)
    for version in path:
        shown.add(members.charter_at[version])
        if version != wanted.known_version:
            shown.update(members.anchors.get(version, {}).values())
    for item in proposals.executed:
        if item.charter_version is not None and item.charter_version > path[-1]:
            shown.update(item.evidence)
            shown.add(members.charter_at[item.charter_version])
    return sorted(shown)


def _path(consortium: Consortium, known_version: int) -> list[int]:
    """Charter versions to go by, from the founding to where recounting begins: each is known to the caller or anchored by
    members of one before it. No vote that is recounted may have been opened before the last of them."""
    members, proposals = consortium.members, consortium.proposals
    before: dict[int, int | None] = {1: None}
    if known_version in members.charter_at:
        before.setdefault(known_version, 1)
    for version in sorted(members.anchors):
        signers = members.anchors[version]
        via = next(
            (v for v in sorted(before) if v < version and suffices(members.charters[v], signers)), None
        )
        if version not in before and via is not None:
            before[version] = via
    straddled = [
        (item.index, item.charter_version) for item in proposals.executed if item.charter_version is not None
    ]
    ends = (
        version
        for version in sorted(before, reverse=True)
        if all(made <= version or at > members.charter_at[version] for at, made in straddled)
    )
    found, version = [], next(ends, 1)
    step: int | None = version
    while step is not None:
        found.append(step)
        step = before[step]
    return found[::-1]
