"""What is frozen when a proposal opens: who may vote with what weight, under which rules, when. Pure values.

Fields that came later are left out of the journal's facts and of the digests while they hold their default, so that
openings from before them read and verify as they always did.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import MISSING, dataclass, field, fields
from functools import cached_property
from typing import Any

from typing_extensions import Self

from commons import features
from commons.ballot_weights import weights
from commons.ballots import Proposal
from commons.charter import Charter
from commons.charter_file import digest
from commons.names import Digest, ProposalId
from commons.notes import digest as digest_bytes
from commons.records import canonical_json
from commons.voting import OBJECTION

_FIRST = (
    "consortium", "proposal", "number", "electorate", "quorum_percent", "pass_percent", "opened_ms", "closes_ms",
    "charter",
)  # fmt: skip
_RULES = (
    "share",
    "members",
    "objection",
    "extend_ms",
    "queue_ms",
    "grace_ms",
    "officers",
    "candidates",
    "credits",
)
"""Later fields that are rules; a ballot names all rules by one digest."""


@dataclass(frozen=True)
class Opening:
    """Nothing that happens later changes it."""

    consortium: str
    proposal: ProposalId
    number: int
    """Running number, for people: P-0001 is 1."""
    electorate: Mapping[str, int]
    """Member -> weight, each at least 1. Who is concerned, or suspended, is not in it."""
    quorum_percent: int
    pass_percent: int
    opened_ms: int
    """Ballots count from this time, inclusive."""
    closes_ms: int
    """Ballots count until this time, exclusive, unless the vote is paused or extended."""
    charter: Digest
    """The charter version in force at the opening."""
    share: str = ""
    members: str = ""
    objection: str = ""
    """It passes unless this share of all weight is against it; quorum and majorities are not asked for."""
    extend_ms: int = 0
    queue_ms: int = 0
    grace_ms: int = 0
    officers: tuple[str, ...] = ()
    """Who may veto it while it is queued."""
    candidates: tuple[str, ...] = ()
    """Of a roadmap ballot: what is to be put in order."""
    credits: int = 0
    """Of a quadratic one: what each member may spend; 0: candidates are ranked."""
    dormant: tuple[str, ...] = ()
    """Members of the electorate that quorums do not wait for."""
    contributed: Mapping[str, int] = field(default_factory=dict)
    """What weights were made of, in micro, where they follow contributions."""

    @classmethod
    def of(
        cls,
        proposal: Proposal,
        charter: Charter,
        *,
        number: int,
        now_ms: int,
        contributed: Mapping[str, int] | None = None,
        dormant: Collection[str] = (),
    ) -> Self:
        """How a proposal that fits `charter` opens under it now.

        `contributed` and `dormant` are used where the charter says so.
        """
        kind = features.type_of(charter, proposal.feature, proposal.parameters)
        rule, voting = charter.voting.rule(kind), charter.voting
        counted = dict(contributed or {}) if voting.power.base == "contribution" else {}
        electorate = weights(
            charter, counted, without=features.concerned(proposal.feature, proposal.parameters)
        )
        candidates, credits = features.roadmap(proposal.feature, proposal.parameters)
        opened_ms = now_ms + 1000 * rule.delay_s
        return cls(
            consortium=charter.consortium.name,
            proposal=proposal.id,
            number=number,
            electorate=electorate,
            quorum_percent=rule.quorum_percent,
            pass_percent=rule.pass_percent,
            opened_ms=opened_ms,
            closes_ms=opened_ms + 1000 * rule.window_s,
            charter=digest(charter),
            share=rule.share,
            members=rule.members,
            objection=OBJECTION if kind == "optimistic" else "",
            extend_ms=1000 * rule.extend_s,
            queue_ms=1000 * rule.queue_s,
            grace_ms=1000 * rule.grace_s,
            officers=voting.officers,
            candidates=candidates,
            credits=credits,
            dormant=tuple(m for m in electorate if m in dormant) if voting.dormancy else (),
            contributed=counted,
        )

    @property
    def facts(self) -> dict[str, Any]:
        """The fields of the journal's OPENING record."""
        return {name: _plain(getattr(self, name)) for name in (*_FIRST, *self._later())}

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> Self:
        """Read `facts` back. Raises ValueError when a field is missing, unknown or of another type."""
        if not set(_FIRST) <= set(facts) <= {f.name for f in fields(cls)}:
            raise ValueError("not the facts of an opening")
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in facts.items()
        }
        if any(type(value) is not _types()[key] for key, value in values.items()):
            raise ValueError("not the facts of an opening")
        for key in ("electorate", "contributed"):
            if any(type(n) is not int or n < (key == "electorate") for n in values.get(key, {}).values()):
                raise ValueError("an electorate's weights are integers from 1, contributions from 0")
        if any(type(item) is not str for v in values.values() if isinstance(v, tuple) for item in v):
            raise ValueError("an opening names members and candidates by their names")
        found = cls(**values)
        if found.facts != facts or not found.opened_ms < found.closes_ms:
            raise ValueError("not the facts of an opening in their one form")
        return found

    @property
    def window_ms(self) -> int:
        return self.closes_ms - self.opened_ms

    @cached_property
    def rules_digest(self) -> Digest:
        """Names the rules in a ballot: quorum, shares needed, length of the window, and what else was voted."""
        first = {
            "quorum_percent": self.quorum_percent,
            "pass_percent": self.pass_percent,
            "window_ms": self.window_ms,
        }
        later = {name: _plain(getattr(self, name)) for name in self._later() if name in _RULES}
        return digest_bytes(canonical_json(first | later))

    @cached_property
    def electorate_digest(self) -> Digest:
        """Names members, weights and who is dormant."""
        named: dict[str, Any] = dict(self.electorate)
        return digest_bytes(canonical_json([named, list(self.dormant)] if self.dormant else named))

    def _later(self) -> list[str]:
        return [f.name for f in fields(self) if f.name not in _FIRST and getattr(self, f.name) != _default(f)]


def _default(of: Any) -> Any:
    return of.default if of.default is not MISSING else of.default_factory()


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    return dict(value) if isinstance(value, Mapping) else value


def _types() -> dict[str, type]:
    types: dict[str, type] = {f.name: int for f in fields(Opening)}
    types |= dict.fromkeys(("consortium", "proposal", "charter", "share", "members", "objection"), str)
    types |= dict.fromkeys(("officers", "candidates", "dormant"), tuple)
    return types | dict.fromkeys(("electorate", "contributed"), dict)
