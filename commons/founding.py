"""What members sign to begin: the founding charter, and the keys of the sites that work for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from typing_extensions import Self

from commons import notes
from commons.charter import Charter
from commons.errors import Code, Refusal
from commons.names import Digest
from commons.notes import Note, NoteError, Verifier
from commons.signed import open_signed


@dataclass(frozen=True)
class Founding:
    """A member agrees to charter version 1, named by its digest."""

    KIND: ClassVar = "hansa-founding/v1"
    KEYS: ClassVar = ("consortium", "charter", "partner")

    consortium: str
    charter: Digest
    partner: str

    def compose(self) -> str:
        """The text to sign. Raises NoteError when a field cannot stand in a note."""
        values = (self.consortium, self.charter, self.partner)
        return notes.compose(self.KIND, list(zip(self.KEYS, values, strict=True)))

    @classmethod
    def from_note(cls, note: Note) -> Self:
        """Raises NoteError when the note is not one."""
        fields = notes.read(note, cls.KIND, cls.KEYS)
        return cls(fields["consortium"], Digest(fields["charter"]), fields["partner"])


@dataclass(frozen=True)
class Delegation:
    """A member lets a site sign updates and usage with `key`, and connect with `tls_key`."""

    KIND: ClassVar = "hansa-site/v1"
    KEYS: ClassVar = ("consortium", "partner", "site", "key", "tls-key")

    consortium: str
    partner: str
    site: str
    key: str
    """The site's verifier key (vkey), by the name ``<partner>/<site>``."""
    tls_key: str
    """SHA-256 of the TLS key's SubjectPublicKeyInfo (DER)."""

    def compose(self) -> str:
        """The text to sign. Raises NoteError when a field cannot stand in a note."""
        values = (self.consortium, self.partner, self.site, self.key, self.tls_key)
        return notes.compose(self.KIND, list(zip(self.KEYS, values, strict=True)))

    @classmethod
    def from_note(cls, note: Note) -> Self:
        """Raises NoteError when the note is not one."""
        fields = notes.read(note, cls.KIND, cls.KEYS)
        return cls(*(fields[key] for key in cls.KEYS))


def check_founding(data: bytes, charter: Charter, digest: Digest) -> str | Refusal:
    """The member who signed this note over `charter` (version 1, with this digest); else why it does not count."""
    try:
        note = notes.parse(data)
        founding = Founding.from_note(note)
    except NoteError as error:
        return Refusal(Code.NOTE_MALFORMED, f"founding note: {error}")
    if founding.consortium != charter.consortium.name or founding.charter != digest:
        return Refusal(
            Code.CHARTER_INVALID,
            f"{founding.partner} signed another charter: {founding.charter} of {founding.consortium}, this one is "
            f"{digest} of {charter.consortium.name}; {founding.partner} signs this one",
        )
    member = charter.member(founding.partner)
    if member is None:
        return Refusal(Code.NOT_AUTHORISED, f"{founding.partner} is no member of this charter")
    return open_signed(note, Verifier.from_vkey(member.key), member.name) or member.name


def check_delegation(data: bytes, charter: Charter) -> tuple[Delegation, Verifier] | Refusal:
    """A site's delegation and its key, signed by the partner that owns the site under `charter`; else why not."""
    try:
        note = notes.parse(data)
        delegation = Delegation.from_note(note)
        verifier = Verifier.from_vkey(delegation.key)
    except NoteError as error:
        return Refusal(Code.NOTE_MALFORMED, f"site delegation: {error}")
    site = charter.site(delegation.site)
    if delegation.consortium != charter.consortium.name:
        return Refusal(Code.NOT_AUTHORISED, f"the delegation is for consortium {delegation.consortium!r}")
    if site is None or site.partner != delegation.partner:
        return Refusal(
            Code.NOT_AUTHORISED,
            f"the charter has no site {delegation.site!r} of partner {delegation.partner!r}; a site is added by "
            "the members in the charter",
        )
    member = charter.member(site.partner)
    assert member is not None, "a charter names only members as partners"
    if verifier.name != f"{site.partner}/{site.name}":
        return Refusal(
            Code.NOT_AUTHORISED,
            f"the site's key goes by {verifier.name!r}, expected '{site.partner}/{site.name}'",
        )
    if any(verifier.public == Verifier.from_vkey(m.key).public for m in charter.members):
        return Refusal(Code.NOT_AUTHORISED, "a site needs a key of its own, this one is a member's")
    wrong = open_signed(note, Verifier.from_vkey(member.key), member.name)
    return wrong or (delegation, verifier)
