"""The records and proofs that lead from the founding charter to the one in force, for `commons.chain`.

Selects, never judges: a site checks everything itself.
"""

from __future__ import annotations

from typing import Protocol

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
    consortium: Consortium, have_size: int, witnessed: Witnessed | None = None
) -> tuple[bytes, list[Entry], list[bytes]] | Refusal:
    """(checkpoint, entries in order, consistency path from `have_size`), all of one moment.

    When the charter asks for witnesses, the checkpoint is the published one, if that covers all entries; else the one
    that is being cosigned. Refused when the caller has seen more records than there are: then this journal is an
    older copy.
    """
    with consortium.lock:
        journal = consortium.journal
        if have_size > journal.size:
            return Refusal(
                Code.LOG_FORKED,
                f"the caller verified {have_size} records, this journal has {journal.size}: it is an older copy; the "
                "operator restores the newest one",
            )
        least = covering(consortium, have_size)
        note = journal.checkpoint()
        if witnessed is not None and consortium.charter.witnesses.quorum:
            note = witnessed.published(least) or witnessed.newest(least) or note
        size = Checkpoint.read(parse(note)).size
        shown = _evidence(consortium)
        entries = [
            (i, leaf, journal.inclusion(i, size))
            for i, leaf in zip(shown, journal.leaves(shown), strict=True)
        ]
        return note, entries, journal.consistency(have_size, size)


def covering(consortium: Consortium, have_size: int) -> int:
    """How many records a checkpoint must cover to show all evidence there is, and not to go back behind `have_size`."""
    with consortium.lock:
        return max(have_size, 1 + max(_evidence(consortium), default=-1))


def _evidence(consortium: Consortium) -> list[int]:
    return sorted({*consortium.members.evidence, *consortium.proposals.evidence})
