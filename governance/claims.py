"""Where members' notes about money stand in the journal, and what disputes say in their members' words.

A view of the journal. Knows nothing of amounts that move: that is the ledger's.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice

from commons import notes
from commons.claims import DisputeNote
from commons.names import Digest
from commons.notes import NoteError
from commons.records import Kind, Record
from commons.signed import text_digest
from commons.views import DisputesView, DisputeView
from governance.ledger import Ledger

DISPUTES_SHOWN = 1_000
_REVERSAL = b'"type":"reversal"'
"""Stands in the canonical JSON of every reversal; spares reading the other transfers."""


@dataclass(frozen=True)
class Raised:
    """A dispute as it came."""

    index: int
    at_ms: int
    note: DisputeNote


class Claims:
    """Changes only by `apply`."""

    def __init__(self) -> None:
        self.disputes: dict[Digest, Raised] = {}
        """By the digest of its text, in the order they came."""
        self._notes: dict[Digest, int] = {}
        self._reversals: dict[str, int] = {}

    def apply(self, index: int, record: Record) -> None:
        match record.kind:
            case Kind.DISPUTE:
                note = notes.parse(record.body)
                digest = text_digest(note)
                self.disputes[digest] = Raised(index, record.at_ms, DisputeNote.from_note(note))
                self._notes[digest] = index
            case Kind.RULING | Kind.CONVERT | Kind.COUNTERSIGN:
                self._notes[text_digest(notes.parse(record.body))] = index
            case Kind.TRANSFER if _REVERSAL in record.body:
                self._reversals[record.facts["id"]] = index
            case _:
                pass

    def find(self, note: bytes) -> int | None:
        """Journal index of a claim with the very same text, if it was recorded before."""
        try:
            return self._notes.get(text_digest(notes.parse(note)))
        except NoteError:
            return None

    def reversal(self, name: str) -> int | None:
        """Journal index of the reversal with this id."""
        return self._reversals.get(name)


def disputes_view(claims: Claims, ledger: Ledger, currency: str, which: str = "") -> DisputesView:
    """The latest disputes in the order they were raised; of those only whose digest begins with `which`."""
    wanted = which if which.startswith("sha256:") else f"sha256:{which}"
    newest = (item for item in reversed(claims.disputes.items()) if item[0].startswith(wanted))
    shown = [_dispute(ledger, *item) for item in islice(newest, DISPUTES_SHOWN)]
    return DisputesView(
        currency=currency, disputes=tuple(reversed(shown)), disputes_total=len(claims.disputes)
    )


def _dispute(ledger: Ledger, digest: Digest, raised: Raised) -> DisputeView:
    dispute, note = ledger.disputes[digest], raised.note
    hold = ledger.settled(note.transfer)
    assert hold is not None, "a dispute is about a charge"
    return DisputeView(
        id=digest,
        transfer=note.transfer,
        partner=note.partner,
        owner=hold.partner,
        amount_micro=note.amount_micro,
        reason=note.reason,
        why=note.why,
        raised_ms=raised.at_ms,
        index=raised.index,
        open=dispute.open,
        upheld_micro=None if dispute.open else int(dispute.outcome.removeprefix("upheld ")),
        ended_by="" if dispute.open else dispute.ruling or "voted",
    )
