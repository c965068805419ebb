"""The rules of votes, as a section of the charter: what each type of proposal needs, who weighs how much, who may veto.

A proposal is voted under the rules of the charter in force when it opened; changing them later changes no open vote.
Field names are the TOML keys. How weights are made of them is `commons.ballot_weights`, how votes are counted `commons.tally`.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, get_args

from pydantic import Field, model_validator

from commons.section import Section

SECONDS_MAX = 31_536_000
Seconds = Annotated[int, Field(ge=0, le=SECONDS_MAX)]
Share = Annotated[str, Field(pattern=r"^([1-9][0-9]{0,2}/[1-9][0-9]{0,2})?$")]
"""A fraction such as ``2/3``; empty: not asked for."""
MemberName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,31}$")]

ProposalType = Literal[
    "feature.enable",
    "feature.rank",
    "config.patch",
    "optimistic",
    "expert",
    "budget.grant",
    "ratecard.set",
    "member",
    "model.release",
    "licence.change",
    "rules.change",
    "veto.override",
    "emergency.pause",
]
TYPES: tuple[ProposalType, ...] = get_args(ProposalType)

_TWO_THIRDS, _THREE_QUARTERS = "2/3", "3/4"
_LEAST: dict[str, tuple[Share, Share]] = {
    "member": ("", _TWO_THIRDS),
    "rules.change": (_TWO_THIRDS, _TWO_THIRDS),
    "licence.change": (_THREE_QUARTERS, _THREE_QUARTERS),
    "model.release": (_TWO_THIRDS, ""),
    "veto.override": (_TWO_THIRDS, _TWO_THIRDS),
}
"""Type -> (share of weight, share of members) it needs in a charter that has no rule of its own for it."""

OBJECTION: Share = "1/3"
"""An optimistic proposal becomes law unless this share of all weight is against it."""


def fraction(share: Share) -> tuple[int, int]:
    """Numerator and denominator of a share that is not empty."""
    top, _, bottom = share.partition("/")
    return int(top), int(bottom)


class Rule(Section):
    """What proposals of one type need, and how long each of their states lasts."""

    type: ProposalType
    quorum_percent: Annotated[int, Field(ge=1, le=100)] = 50
    """Of the weight of members that are not dormant; abstaining counts."""
    pass_percent: Annotated[int, Field(ge=50, le=100)] = 50
    """More than this share of the weight for or against must be for; at 100, all of it."""
    share: Share = ""
    """At least this share of the weight for or against must be for, besides."""
    members: Share = ""
    """At least this share of all members in the electorate, by head, must be for, besides."""
    delay_s: Seconds = 0
    """From proposing to the first ballot; the proposer may withdraw until then."""
    window_s: Annotated[int, Field(ge=1, le=SECONDS_MAX)]
    extend_s: Seconds = 0
    """Votes that reach their quorum late stay open for as long after it, once."""
    queue_s: Seconds = 0
    """From the vote's end to the first moment it may be carried out: the time for a veto."""
    grace_s: Seconds = 0
    """How long after that it may still be carried out; 0: for ever."""

    @model_validator(mode="after")
    def _can_be_met(self) -> Rule:
        for name in ("share", "members"):
            value = getattr(self, name)
            if value and not 0 < fraction(value)[0] <= fraction(value)[1]:
                raise ValueError(f"{name} is {value}, which is more than all")
        if self.extend_s > self.window_s:
            raise ValueError(f"extend_s is {self.extend_s}, a vote is extended by its window_s at most")
        return self


class Power(Section):
    """How much a member's ballot weighs. No affiliate group ever has more than a third (`commons.ballot_weights`)."""

    base: Literal["equal", "contribution"] = "equal"
    """`contribution`: by the accepted and settled work it is credited with, valued by the rate card."""
    half_life_days: Annotated[int, Field(ge=1, le=3650)] = 180
    """Work counts half after as many days."""
    curve: Literal["linear", "sqrt"] = "linear"


class Bound(Section):
    """A value that small changes may move within these bounds unless a third of the weight objects."""

    path: Annotated[str, Field(pattern=r"^/(learning|rounds|privacy)(/[a-z_]{1,32}){1,3}$")]
    """JSON pointer of a number in the charter."""
    least: float
    most: float

    @model_validator(mode="after")
    def _is_a_range(self) -> Bound:
        if not self.least <= self.most:
            raise ValueError(f"from {self.least} to {self.most} there is nothing")
        return self


class Voting(Section):
    LATER: ClassVar[frozenset[str]] = frozenset(
        {"rules", "power", "dormancy", "officers", "pause_s", "optimistic"}
    )

    window_s: Annotated[int, Field(ge=1, le=SECONDS_MAX)]
    """Longest time a ballot stays open; it closes earlier once every member has voted."""
    quorum_percent: Annotated[int, Field(ge=1, le=100)] = 50
    pass_percent: Annotated[int, Field(ge=50, le=100)] = 50
    """A proposal passes when more than this share of the votes for or against is for it; at 100, all of them."""
    rules: Annotated[tuple[Rule, ...], Field(max_length=len(TYPES))] = ()
    """Of the types that are not voted by the three values above."""
    power: Power = Power()
    dormancy: bool = False
    """Whether members that missed three votes in a row are left out of quorums until they have voted twice."""
    officers: Annotated[tuple[MemberName, ...], Field(max_length=16)] = ()
    """Safety officers: each may veto a queued proposal and pause the rounds."""
    pause_s: Seconds = 0
    """How long rounds stay paused at an officer's word if the members do not vote for it."""
    optimistic: Annotated[tuple[Bound, ...], Field(max_length=32)] = ()

    @property
    def named(self) -> tuple[tuple[str, list[str]], ...]:
        """(what, names) of what may be named once."""
        return (
            ("rule for", [str(rule.type) for rule in self.rules]),
            ("officer", list(self.officers)),
            ("bound of", [bound.path for bound in self.optimistic]),
        )

    def rule(self, of: ProposalType) -> Rule:
        """The rule for proposals of this type: its own, or the section's with what the type needs at the least."""
        own = next((rule for rule in self.rules if rule.type == of), None)
        if own is not None:
            return own
        share, members = _LEAST.get(of, ("", ""))
        return Rule(
            type=of,
            quorum_percent=self.quorum_percent,
            pass_percent=self.pass_percent,
            share=share,
            members=members,
            window_s=self.window_s,
        )
