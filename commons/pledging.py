"""Pledges: a member promises money for a proposal, held at once, paid if it becomes law and given back if it does not.

Owns the note and the one rule of which pledges stand. Coordinator, auditor and sites read this file; what is held and
paid is booked by `governance.pledging`, and whether the member has the money is the ledger's to say.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from commons.charter import Charter
from commons.errors import Code, Refusal
from commons.notes import Note, NoteError, Verifier
from commons.signed import open_signed
from commons.work import Words

PLEDGES_MAX = 8
"""Of one member on one proposal: each is shown to every site that checks the vote."""


@dataclass(frozen=True, kw_only=True)
class Pledge(Words):
    """`member` pays `amount_micro` of its budget into that of `to` when the proposal becomes law before `expires_ms`."""

    KIND = "hansa-pledge/v1"
    consortium: str
    proposal: str
    member: str
    to: str
    amount_micro: int
    expires_ms: int
    """Unix ms; from then on it is given back."""
    nonce: str

    @property
    def tail(self) -> str:
        """What the ids of its transfers end in."""
        return self.digest.partition(":")[2][:32]

    def stands(self, after: Charter, now_ms: int) -> bool:
        """Whether it is paid if `after` becomes the charter now: in time, and both sides still members."""
        both = after.member(self.member) and after.member(self.to)
        return both is not None and now_ms < self.expires_ms


def check_pledge(note: Note, charter: Charter) -> Pledge | Refusal:
    """The pledge, signed by a member of `charter` for another one; else why it is none."""
    try:
        pledge = Pledge.from_note(note)
    except NoteError as error:
        return Refusal(Code.NOTE_MALFORMED, f"pledge: {error}")
    member, to = charter.member(pledge.member), charter.member(pledge.to)
    if pledge.consortium != charter.consortium.name or member is None:
        return Refusal(Code.NOT_AUTHORISED, f"{pledge.member!r} of {pledge.consortium!r} is no member here")
    if to is None or to.name == member.name:
        message = f"a pledge of {member.name} goes to another member, not to {pledge.to!r}"
        return Refusal(Code.ACCOUNT_NOT_FOUND, message)
    return open_signed(note, Verifier.from_vkey(member.key), member.name) or pledge


def lacking(needs_micro: int, pledges: Iterable[Pledge], after: Charter, now_ms: int) -> str:
    """Why a proposal that needs so much is not carried out, which would make `after` the charter; empty: it has it."""
    total = sum(pledge.amount_micro for pledge in pledges if pledge.stands(after, now_ms))
    if total >= needs_micro:
        return ""
    return f"it needs pledges of {needs_micro} micro, and {total} stand"
