"""What sites say of ballots that members lodged with them (`commons.lodging`), recorded so that everybody sees how many."""

from __future__ import annotations

from commons.charter import Charter
from commons.errors import Code, Refusal
from commons.lodging import Lodged
from commons.names import Digest, ProposalId
from commons.notes import Note, NoteError
from commons.records import Kind, Record
from commons.signed import open_signed, text_digest
from governance.courses import Courses
from governance.members import Members


def decide_lodged(
    courses: Courses, members: Members, note: Note, charter: Charter, now_ms: int
) -> list[Record] | Refusal:
    """The LODGED record of a site's word; [] for a repeat.

    Refuses: note_malformed, not_authorised (no enrolled site of the charter), signature_invalid, proposal_unknown,
    proposal_closed (its ballot did not come, or came too late: then there is nothing to record beside the vote).
    """
    try:
        said = Lodged.from_note(note)
    except NoteError as error:
        return Refusal(Code.NOTE_MALFORMED, f"the note cannot be read: {error}")
    key = members.site_key(said.site)
    if said.consortium != charter.consortium.name or charter.site(said.site) is None or key is None:
        return Refusal(Code.NOT_AUTHORISED, f"{said.site!r} of {said.consortium!r} is no enrolled site here")
    if wrong := open_signed(note, key, said.site):
        return wrong
    if courses.known(text_digest(note)):
        return []
    if ProposalId(said.proposal) not in courses.items:
        return Refusal(Code.PROPOSAL_UNKNOWN, f"there is no proposal {said.proposal} in this journal")
    if not courses.known(Digest(said.ballot)):
        message = (
            f"the ballot {said.ballot} that {said.site} keeps is not in this journal: it hands that in first"
        )
        return Refusal(Code.PROPOSAL_CLOSED, message)
    return [Record(Kind.LODGED, now_ms, note.data)]
