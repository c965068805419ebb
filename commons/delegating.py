"""Whose key signs what: a member's own, for ballots the one key it delegated them to, for a pause an officer's."""

from __future__ import annotations

from commons.charter import Charter, Member
from commons.errors import Code, Refusal
from commons.motions import BallotKey, Pause
from commons.notes import Note, NoteError, Verifier
from commons.signed import open_signed


def ballot_key_name(member: str) -> str:
    return f"{member}/ballot"


def check_ballot_key(note: Note, charter: Charter) -> BallotKey | Refusal:
    """The delegation, signed by the member under `charter`; else why it does not hold."""
    try:
        delegation = BallotKey.from_note(note)
        verifier = Verifier.from_vkey(delegation.key)
    except NoteError as error:
        return Refusal(Code.NOTE_MALFORMED, f"ballot key: {error}")
    member = charter.member(delegation.member)
    if delegation.consortium != charter.consortium.name or member is None:
        return Refusal(
            Code.NOT_AUTHORISED, f"{delegation.member!r} of {delegation.consortium!r} is no member here"
        )
    if verifier.name != ballot_key_name(member.name):
        return Refusal(
            Code.NOT_AUTHORISED,
            f"the ballot key goes by {verifier.name!r}, expected {ballot_key_name(member.name)!r}",
        )
    if any(verifier.public == Verifier.from_vkey(m.key).public for m in charter.members):
        return Refusal(Code.NOT_AUTHORISED, "a ballot key is a key of its own, this one is a member's")
    return open_signed(note, Verifier.from_vkey(member.key), member.name) or delegation


def open_ballot(note: Note, member: Member, delegated: BallotKey | None, at_ms: int) -> Refusal | None:
    """None when the member's key signed this ballot, or the key `delegated` to last, before it expired."""
    name = ballot_key_name(member.name)
    if not note.signatures or note.signatures[0].name != name:
        return open_signed(note, Verifier.from_vkey(member.key), member.name)
    if delegated is None:
        return Refusal(Code.SIGNATURE_INVALID, f"{member.name} has delegated its ballots to no key")
    if at_ms >= delegated.expires_ms:
        return Refusal(
            Code.SIGNATURE_INVALID,
            f"the ballot key of {member.name} expired at {delegated.expires_ms} ms; {member.name} delegates anew",
        )
    return open_signed(note, Verifier.from_vkey(delegated.key), name)


def unlawful_pause(pause: Pause, note: Note, charter: Charter) -> Refusal | None:
    """Why a pause is not an officer's of this charter; None when it is."""
    member = charter.member(pause.member)
    if (
        pause.consortium != charter.consortium.name
        or member is None
        or member.name not in charter.voting.officers
    ):
        officers = ", ".join(charter.voting.officers) or "nobody"
        return Refusal(
            Code.NOT_AUTHORISED,
            f"{pause.member!r} is no safety officer of {charter.consortium.name}; {officers} is",
        )
    if not charter.voting.pause_s:
        return Refusal(Code.NOT_AUTHORISED, "the charter gives officers no pause (voting.pause_s is 0)")
    return open_signed(note, Verifier.from_vkey(member.key), member.name)
