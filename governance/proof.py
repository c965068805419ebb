"""The records and proofs that lead from the founding charter to the one in force, for `commons.chain`.

Selects, never judges: a site checks everything itself.
"""

from __future__ import annotations

from commons.errors import Code, Refusal
from governance.consortium import Consortium

Entry = tuple[int, bytes, list[bytes]]
"""(journal index, leaf, inclusion path)."""


def chain_bundle(consortium: Consortium, have_size: int) -> tuple[bytes, list[Entry], list[bytes]] | Refusal:
    """(checkpoint, entries in order, consistency path from `have_size`), all of one moment.

    Refused when the caller has seen more records than there are: then this journal is an older copy.
    """
    with consortium.lock:
        journal = consortium.journal
        size = journal.size
        if have_size > size:
            return Refusal(
                Code.LOG_FORKED,
                f"the caller verified {have_size} records, this journal has {size}: it is an older copy; the "
                "operator restores the newest one",
            )
        indexes = sorted({*consortium.members.evidence, *consortium.proposals.evidence})
        entries = [(i, journal.record(i).leaf, journal.inclusion(i, size)) for i in indexes]
        return journal.checkpoint(), entries, journal.consistency(have_size, size)
