"""Charters that members vouch for by name, so that a newcomer need not recount every vote since the founding.

An anchor says: I have verified the journal up to this charter version, and it has this digest. From a charter one
trusts, a later one may be believed when two thirds of its members, and of their affiliate groups, have anchored it: as many
as could have voted anything into it, so that nothing is trusted that votes are not trusted with. (Light clients of
Tendermint skip headers by the same argument, arXiv 2010.07031.) Votes since are recounted one by one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from commons.charter import Charter
from commons.errors import Code, Refusal
from commons.merkle import leaf_hash
from commons.names import Digest
from commons.notes import Note, NoteError, Verifier, digest
from commons.signed import open_signed
from commons.work import Words


@dataclass(frozen=True, kw_only=True)
class Anchor(Words):
    """A member vouches for a charter version."""

    KIND = "hansa-anchor/v1"
    consortium: str
    member: str
    charter_version: int
    charter: str


@dataclass(frozen=True, kw_only=True)
class Shown(Words):
    """The coordinator signs what it shows as proof of its charter: one that proves nothing convicts it."""

    KIND = "hansa-shown/v1"
    consortium: str
    size: int
    """Of the checkpoint that came with it."""
    charter_version: int
    charter: str
    entries: str
    """`entries_digest` of the records shown."""


def entries_digest(entries: Sequence[tuple[int, bytes]]) -> Digest:
    """Names records shown, as (journal index, leaf), in order."""
    lines = (f"{index} {leaf_hash(leaf).hex()}\n" for index, leaf in entries)
    return digest("".join(lines).encode())


def check_anchor(note: Note, charter: Charter) -> Anchor | Refusal:
    """The anchor, if a member of `charter` signed it; else why it counts for nothing there."""
    try:
        anchor = Anchor.from_note(note)
    except NoteError as error:
        return Refusal(Code.NOTE_MALFORMED, f"anchor: {error}")
    member = charter.member(anchor.member)
    if member is None or anchor.consortium != charter.consortium.name:
        return Refusal(
            Code.NOT_AUTHORISED,
            f"{anchor.member!r} of {anchor.consortium!r} is no member under charter version {charter.version}",
        )
    return open_signed(note, Verifier.from_vkey(member.key), member.name) or anchor


def vouched(trusted: Charter, anchors: Sequence[Note]) -> tuple[str, ...]:
    """Members of `trusted` whose key has signed one of `anchors`, all of one later version; in charter order."""
    found = {a.member for a in (check_anchor(note, trusted) for note in anchors) if isinstance(a, Anchor)}
    return tuple(m.name for m in trusted.members if m.name in found and not m.suspended)


def suffices(trusted: Charter, members: Iterable[str]) -> bool:
    """Whether these members are two thirds of all that are not suspended, and stand for two thirds of the groups."""
    active = {m.name: m.group or m.name for m in trusted.members if not m.suspended}
    named = [name for name in members if name in active]
    groups, theirs = set(active.values()), {active[name] for name in named}
    return 3 * len(named) >= 2 * len(active) and 3 * len(theirs) >= 2 * len(groups)
