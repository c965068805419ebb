"""Members' notes about money on their way into the journal: who may say it, and what follows."""

from __future__ import annotations

from commons.charter import Charter
from commons.claims import ConvertNote, DisputeNote, RulingNote
from commons.errors import Code, Refusal
from commons.notes import Note, NoteError, Verifier
from commons.records import Kind, Record
from commons.signed import open_signed, text_digest
from governance.ledger.books import Ledger
from governance.ledger.correcting import decide_dispute, decide_ruling
from governance.ledger.granting import decide_convert

CLAIMS: dict[str, tuple[Kind, type[DisputeNote | RulingNote | ConvertNote]]] = {
    DisputeNote.KIND: (Kind.DISPUTE, DisputeNote),
    RulingNote.KIND: (Kind.RULING, RulingNote),
    ConvertNote.KIND: (Kind.CONVERT, ConvertNote),
}
"""Kind of note -> how the journal records it, and its fields."""


def decide_claim(ledger: Ledger, note: Note, charter: Charter, now_ms: int) -> list[Record] | Refusal:
    """The note's record and the transfers that follow from it. Handed in twice: nothing.

    Refuses: note_malformed, request_invalid (another consortium's), not_authorised, signature_invalid, and what the
    decision about it refuses.
    """
    spoken = note.text.partition("\n")[0]
    if spoken not in CLAIMS:
        known = ", ".join(CLAIMS)
        return Refusal(Code.NOTE_MALFORMED, f"the note is a {spoken[:60]!r}, the ledger takes {known}")
    kind, words = CLAIMS[spoken]
    try:
        claim = words.from_note(note)
    except NoteError as error:
        return Refusal(Code.NOTE_MALFORMED, f"the note cannot be read: {error}")
    if claim.consortium != charter.consortium.name:
        message = f"the note is for consortium {claim.consortium!r}, this is {charter.consortium.name!r}"
        return Refusal(Code.REQUEST_INVALID, message)
    member = charter.member(claim.partner)
    if member is None:
        return Refusal(Code.NOT_AUTHORISED, f"{claim.partner!r} is no member of the consortium")
    if wrong := open_signed(note, Verifier.from_vkey(member.key), member.name):
        return wrong
    digest = text_digest(note)
    match claim:
        case DisputeNote():
            follows = decide_dispute(ledger, claim, digest, now_ms)
        case RulingNote():
            follows = decide_ruling(ledger, claim, now_ms)
        case ConvertNote():
            follows = decide_convert(ledger, claim, digest, charter, now_ms)
    if isinstance(follows, Refusal) or not follows:
        return follows
    return [Record(kind, now_ms, note.data), *follows]
