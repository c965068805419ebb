"""One try at a masked sum, and what is said in it, as typed notes.

Owns the fields and their writing, and how a note is checked to be this site's word about this attempt.
Knows nothing of keys, shares or masks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeVar

from commons.errors import Code, Refusal
from commons.names import Digest
from commons.notes import Note, NoteError, Verifier, compose, digest, open_note, parse, read
from commons.work import Words


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """What every note, key and mask is bound to: nothing said in one attempt means anything in another."""

    consortium: str
    run: str
    round: int
    attempt: int
    """From 1; a new one for every roster."""
    charter: str
    """Digest of the charter in force, which says what is masked, at which scale."""

    def info(self, label: str, *parts: str | bytes) -> bytes:
        """Context for a key derivation or a cipher: one writing for one meaning, as every part has its length."""
        whole = (
            "hansa-mask/v1",
            label,
            self.consortium,
            self.run,
            str(self.round),
            str(self.attempt),
            self.charter,
            *parts,
        )
        raw = [part.encode() if isinstance(part, str) else part for part in whole]
        return b"".join(len(part).to_bytes(4, "big") + part for part in raw)

    def __str__(self) -> str:
        return f"attempt {self.attempt} of round {self.round} of run {self.run}"


@dataclass(frozen=True, kw_only=True)
class Said(Words):
    """The head of every note that a site signs here."""

    consortium: str
    run: str
    round: int
    attempt: int
    charter: str
    site: str

    @property
    def of(self) -> Attempt:
        return Attempt(
            consortium=self.consortium,
            run=self.run,
            round=self.round,
            attempt=self.attempt,
            charter=self.charter,
        )


@dataclass(frozen=True, kw_only=True)
class KeysNote(Said):
    """The two public keys of a site for one attempt."""

    KIND = "hansa-mask-keys/v1"
    channel: str
    """X25519, 64 hex digits: what peers encrypt shares to."""
    mask: str
    """X25519, 64 hex digits: what pairwise masks are agreed with."""


@dataclass(frozen=True, kw_only=True)
class SharesNote(Said):
    """A site has dealt shares of its two secrets to everybody in the roster."""

    KIND = "hansa-mask-shares/v1"
    roster: str
    """Digest of the roster dealt to."""
    threshold: int
    seed: str
    """Commitment to the self-mask seed."""
    bundle: str
    """Digest of the bundle: commitments to all shares, and each peer's shares encrypted to it."""


@dataclass(frozen=True, kw_only=True)
class ComplaintNote(Said):
    """A site could not use what a peer dealt to it, and masks nothing in this attempt."""

    KIND = "hansa-mask-complaint/v1"
    accused: str
    deals: str
    """Digest of the deals it was shown."""


@dataclass(frozen=True, kw_only=True)
class AgreementNote(Said):
    """A survivor has seen this survivor list, and no other in this attempt."""

    KIND = "hansa-mask-agreement/v1"
    survivors: str
    """Digest of the list."""


@dataclass(frozen=True, kw_only=True)
class RevealNote(Said):
    """The shares a site reveals under a survivor list."""

    KIND = "hansa-mask-reveal/v1"
    survivors: str
    shares: str
    """Digest of the shares: 32 bytes for each dealer, in order of name."""


@dataclass(frozen=True, kw_only=True)
class SurvivorsNote:
    """Whose masked updates are in the sum, and whose are not; signed by the coordinator's log key.

    Names stand one a line, as 64 of them do not fit into a field. The order is that of the names.
    """

    KIND: ClassVar[str] = "hansa-mask-survivors/v1"
    KEYS: ClassVar[tuple[str, ...]] = ("consortium", "run", "round", "attempt", "charter", "deals")

    of: Attempt
    deals: str
    """Digest of the deals under which the sites masked."""
    survivors: tuple[str, ...]
    dropped: tuple[str, ...]

    @property
    def text(self) -> str:
        """What is signed. Raises NoteError for a value no note can hold."""
        head = [str(value) for value in vars(self.of).values()]
        return compose(
            self.KIND,
            [
                *zip(self.KEYS, [*head, self.deals], strict=True),
                *(("survivor", name) for name in self.survivors),
                *(("dropped", name) for name in self.dropped),
            ],
        )

    @property
    def digest(self) -> Digest:
        """SHA-256 of the signed text."""
        return digest(self.text.encode())

    @classmethod
    def from_note(cls, note: Note) -> SurvivorsNote:
        """Raises NoteError when the note is no survivor list in its one form; whether it is a fair one is not checked."""
        rest = [line.partition(" ") for line in note.text.split("\n")[1 + len(cls.KEYS) : -1]]
        if any(key not in ("survivor", "dropped") for key, _, _ in rest):
            raise NoteError(f"a {cls.KIND} note ends with lines `survivor` and `dropped`")
        head = "\n".join([*note.text.split("\n")[: 1 + len(cls.KEYS)], ""])
        found = read(Note(head, note.signatures, note.data), cls.KIND, cls.KEYS)
        if not (found["round"].isdecimal() and found["attempt"].isdecimal()):
            raise NoteError("round and attempt are whole numbers")
        made = cls(
            of=Attempt(
                consortium=found["consortium"],
                run=found["run"],
                round=int(found["round"]),
                attempt=int(found["attempt"]),
                charter=found["charter"],
            ),
            deals=found["deals"],
            survivors=tuple(name for key, _, name in rest if key == "survivor"),
            dropped=tuple(name for key, _, name in rest if key == "dropped"),
        )
        if made.text != note.text:
            raise NoteError("the survivor list is not in its one form")
        return made


S = TypeVar("S", bound=Said)


def open_said(
    kind: type[S], data: bytes, *, attempt: Attempt, sites: Mapping[str, Verifier], code: Code
) -> S | Refusal:
    """A site's note of this kind about this attempt, signed by the key known for the site it names; else a Refusal."""
    try:
        claimed = kind.from_note(parse(data))
        key = sites.get(claimed.site)
        if key is None:
            return Refusal(code, f"{claimed.site} has no part in {attempt}; leave its note out")
        open_note(data, [key])
    except NoteError as wrong:
        return Refusal(code, f"no {kind.KIND} note by a site of {attempt}: {wrong}")
    if claimed.of != attempt:
        return Refusal(
            code,
            f"{claimed.site} speaks of {claimed.of}, expected {attempt} under {attempt.charter}; "
            "only what was said in this attempt counts",
            {"site": claimed.site},
        )
    return claimed


def speaker(data: bytes) -> str:
    """The site that a note names as the one speaking, which nothing proves yet; empty when it names none."""
    try:
        lines = parse(data).text.split("\n")
    except NoteError:
        return ""
    return next((line[5:] for line in lines if line.startswith("site ")), "")


def digest_of(kind: str, named: Sequence[tuple[str, Digest]]) -> Digest:
    """One digest over the digests of several sites' words, in the order given."""
    return digest(compose(kind, [("word", f"{site} {said}") for site, said in named]).encode())
