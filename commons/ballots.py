"""What members sign in a vote: proposals and ballots, as typed values of their notes.

Reading is strict: a note whose fields would be written in another way is refused, so that one proposal has
one id. Who may sign, and when, is decided elsewhere (`governance.proposals`, `commons.chain`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from typing_extensions import Self

from commons import notes
from commons.names import Digest, ProposalId
from commons.notes import Note, NoteError
from commons.ranking import QUADRATIC, RANKED
from commons.records import canonical_json

Choice = Literal["for", "against", "abstain"]
CHOICES: tuple[Choice, ...] = ("for", "against", "abstain")
ROUND_MAX = 1_000_000

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_NONCE = re.compile(r"[0-9a-f]{16,64}")


@dataclass(frozen=True)
class Proposal:
    """Asks to switch a feature on, with exactly these parameters, from `effective_round` on."""

    KIND: ClassVar = "hansa-proposal/v1"
    WITH_NEEDS: ClassVar = "hansa-proposal/v2"
    KEYS: ClassVar = (
        "consortium",
        "proposer",
        "title",
        "feature",
        "parameters",
        "charter",
        "effective-round",
        "nonce",
    )

    consortium: str
    proposer: str
    title: str
    feature: str
    parameters: Mapping[str, Any]
    charter: Digest
    """The charter version the proposer saw."""
    effective_round: int
    """Earliest round of a run that may use it, counted from 1."""
    nonce: str
    """16 to 64 hex digits, fresh for each proposal."""
    needs_micro: int = 0
    """It is carried out only with pledges of so much (`commons.pledging`); 0: without, and the note is of the first kind."""

    def compose(self) -> str:
        """The text to sign. Raises NoteError when a field cannot stand in a note."""
        values = (
            self.consortium,
            self.proposer,
            self.title,
            self.feature,
            canonical_json(dict(self.parameters)).decode(),
            self.charter,
            str(self.effective_round),
            self.nonce,
        )
        pairs = list(zip(self.KEYS, values, strict=True))
        if self.needs_micro:
            return notes.compose(self.WITH_NEEDS, [*pairs, ("needs-micro", str(self.needs_micro))])
        return notes.compose(self.KIND, pairs)

    @property
    def id(self) -> ProposalId:
        """Digest of the text: it binds consortium, proposer, content and base."""
        return ProposalId(notes.digest(self.compose().encode()))

    @classmethod
    def from_note(cls, note: Note) -> Self:
        """Raises NoteError when the note is no proposal or not in its one form."""
        needs = kind(note) == cls.WITH_NEEDS
        fields = notes.read(
            note, *((cls.WITH_NEEDS, (*cls.KEYS, "needs-micro")) if needs else (cls.KIND, cls.KEYS))
        )
        proposal = cls(
            consortium=fields["consortium"],
            proposer=fields["proposer"],
            title=fields["title"],
            feature=fields["feature"],
            parameters=_object(fields["parameters"]),
            charter=_digest("charter", fields["charter"]),
            effective_round=_round(fields["effective-round"]),
            nonce=_nonce(fields["nonce"]),
            needs_micro=_micro(fields["needs-micro"]) if needs else 0,
        )
        if proposal.compose() != note.text:
            raise NoteError("the proposal's parameters are not canonical JSON")
        return proposal


@dataclass(frozen=True)
class Ballot:
    """One member's choice on one proposal, under rules and an electorate named by digest."""

    KIND: ClassVar = "hansa-ballot/v1"
    WITH_REASON: ClassVar = "hansa-ballot/v2"
    KEYS: ClassVar = (
        "consortium",
        "proposal",
        "rules",
        "electorate",
        "voter",
        "choice",
        "nonce",
        "cast-at",
    )

    consortium: str
    proposal: ProposalId
    rules: Digest
    electorate: Digest
    voter: str
    choice: str
    """One of `CHOICES`; on a roadmap ``rank a > b`` or ``credits a 5, b 2`` (`commons.ranking`)."""
    nonce: str
    """16 to 64 hex digits, fresh for each ballot: a ballot counts once however often it is recorded."""
    cast_at: str
    """RFC 3339 UTC as the voter's clock had it. Informative: only the journal's order and time decide."""
    reason: str = ""
    """Digest of a text that says why, kept by the voter; empty: none, and the note is of the first kind."""

    def compose(self) -> str:
        """The text to sign. Raises NoteError when a field cannot stand in a note."""
        values = (
            self.consortium,
            self.proposal,
            self.rules,
            self.electorate,
            self.voter,
            self.choice,
            self.nonce,
            self.cast_at,
        )
        pairs = list(zip(self.KEYS, values, strict=True))
        if self.reason:
            return notes.compose(self.WITH_REASON, [*pairs, ("reason", self.reason)])
        return notes.compose(self.KIND, pairs)

    @classmethod
    def from_note(cls, note: Note) -> Self:
        """Raises NoteError when the note is no ballot."""
        reasoned = kind(note) == cls.WITH_REASON
        fields = notes.read(
            note, *((cls.WITH_REASON, (*cls.KEYS, "reason")) if reasoned else (cls.KIND, cls.KEYS))
        )
        choice = fields["choice"]
        if choice not in CHOICES and not RANKED.fullmatch(choice) and not QUADRATIC.fullmatch(choice):
            raise NoteError(
                f"choice is {choice[:40]!r}, expected one of {', '.join(CHOICES)}, or an order of candidates"
            )
        return cls(
            reason=_digest("reason", fields["reason"]) if reasoned else "",
            consortium=fields["consortium"],
            proposal=ProposalId(_digest("proposal", fields["proposal"])),
            rules=_digest("rules", fields["rules"]),
            electorate=_digest("electorate", fields["electorate"]),
            voter=fields["voter"],
            choice=choice,
            nonce=_nonce(fields["nonce"]),
            cast_at=fields["cast-at"],
        )


def kind(note: Note) -> str:
    """First line of the note's text."""
    return note.text.partition("\n")[0]


def _digest(key: str, value: str) -> Digest:
    if not _DIGEST.fullmatch(value):
        raise NoteError(f"{key} is {value[:80]!r}, expected sha256: and 64 hex digits")
    return Digest(value)


def _nonce(value: str) -> str:
    if not _NONCE.fullmatch(value):
        raise NoteError("nonce is not 16 to 64 lower-case hex digits")
    return value


def _round(value: str) -> int:
    if not re.fullmatch(r"[1-9][0-9]{0,6}", value) or int(value) > ROUND_MAX:
        raise NoteError(f"effective-round is {value[:40]!r}, expected 1 to {ROUND_MAX}")
    return int(value)


def _micro(value: str) -> int:
    if not re.fullmatch(r"[1-9][0-9]{0,18}", value) or int(value) >= 2**63:
        raise NoteError(f"needs-micro is {value[:40]!r}, expected whole micro from 1")
    return int(value)


def _object(value: str) -> dict[str, Any]:
    try:
        found = json.loads(value)
    except (ValueError, RecursionError) as error:
        raise NoteError("parameters are not JSON") from error
    if not isinstance(found, dict):
        raise NoteError("parameters are not a JSON object")
    try:
        canonical_json(found)
    except ValueError as error:
        raise NoteError("parameters hold a number that is not finite, or text that is not Unicode") from error
    return found
