"""Counting votes: one opening and its ballots give one outcome, wherever it is counted.

Pure and integer-only: coordinator, sites, command line and browser come to the same result
(vectors in tests/support/vectors/tally.json). Signatures are checked before ballots come here;
everything else that makes a ballot count is checked here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from typing_extensions import Self

from commons.ballots import Ballot, Choice, Proposal
from commons.charter import Charter
from commons.charter_file import digest
from commons.names import Digest, ProposalId
from commons.notes import digest as digest_bytes
from commons.records import canonical_json

State = Literal["open", "passed", "defeated"]


@dataclass(frozen=True)
class Opening:
    """What is frozen when a proposal opens. Nothing that happens later changes it."""

    consortium: str
    proposal: ProposalId
    number: int
    """Running number, for people: P-0001 is 1."""
    electorate: Mapping[str, int]
    """Member -> weight, each at least 1."""
    quorum_percent: int
    pass_percent: int
    opened_ms: int
    """Ballots count from this time, inclusive."""
    closes_ms: int
    """Ballots count until this time, exclusive."""
    charter: Digest
    """The charter version in force at the opening."""

    @classmethod
    def of(cls, proposal: Proposal, charter: Charter, *, number: int, now_ms: int) -> Self:
        """How a proposal opens under `charter`: equal power, the charter's rules, its window from now."""
        return cls(
            consortium=charter.consortium.name,
            proposal=proposal.id,
            number=number,
            electorate={member.name: 1 for member in charter.members},
            quorum_percent=charter.voting.quorum_percent,
            pass_percent=charter.voting.pass_percent,
            opened_ms=now_ms,
            closes_ms=now_ms + 1000 * charter.voting.window_s,
            charter=digest(charter),
        )

    @property
    def facts(self) -> dict[str, Any]:
        """The fields of the journal's OPENING record."""
        return {
            "consortium": self.consortium,
            "proposal": self.proposal,
            "number": self.number,
            "electorate": dict(self.electorate),
            "quorum_percent": self.quorum_percent,
            "pass_percent": self.pass_percent,
            "opened_ms": self.opened_ms,
            "closes_ms": self.closes_ms,
            "charter": self.charter,
        }

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> Self:
        """Read `facts` back. Raises ValueError when a field is missing, unknown or of another type."""
        wanted: dict[str, type] = {"consortium": str, "proposal": str, "electorate": dict, "charter": str}
        numbers = ("number", "quorum_percent", "pass_percent", "opened_ms", "closes_ms")
        wanted |= dict.fromkeys(numbers, int)
        if set(facts) != set(wanted) or any(type(facts[key]) is not kind for key, kind in wanted.items()):
            raise ValueError("not the facts of an opening")
        if any(type(weight) is not int or weight < 1 for weight in facts["electorate"].values()):
            raise ValueError("an electorate's weights are integers from 1")
        return cls(**facts)

    @property
    def rules_digest(self) -> Digest:
        """Names the rules in a ballot: quorum, share needed, length of the window."""
        return digest_bytes(
            canonical_json(
                {
                    "quorum_percent": self.quorum_percent,
                    "pass_percent": self.pass_percent,
                    "window_ms": self.closes_ms - self.opened_ms,
                }
            )
        )

    @property
    def electorate_digest(self) -> Digest:
        return digest_bytes(canonical_json(dict(self.electorate)))


@dataclass(frozen=True)
class Tally:
    state: State
    for_weight: int
    against_weight: int
    abstain_weight: int
    turnout_weight: int
    total_weight: int
    counted: Mapping[str, tuple[Choice, int]]
    """voter -> (choice, journal index) of the ballot that counts."""

    @property
    def facts(self) -> dict[str, Any]:
        """The count as JSON values."""
        return {
            "state": self.state,
            "for": self.for_weight,
            "against": self.against_weight,
            "abstain": self.abstain_weight,
            "turnout": self.turnout_weight,
            "total": self.total_weight,
            "counted": {voter: {"choice": c, "index": i} for voter, (c, i) in sorted(self.counted.items())},
        }


def tally(opening: Opening, ballots: Sequence[tuple[int, int, Ballot]], now_ms: int) -> Tally:
    """Count `ballots`, given as (journal index, log time in ms, ballot) in any order.

    A voter's last valid ballot by index counts. A ballot recorded twice counts where it first stood, so
    that nobody can undo a later choice by recording an earlier one again. Voting ends when the window does,
    or with the ballot that completes the electorate; then the quorum decides, then the share of
    for among for and against: more than `pass_percent`, and at 100 all of them. Ties fail.
    """
    counted: dict[str, tuple[Choice, int]] = {}
    seen: set[Ballot] = set()
    for index, at_ms, ballot in sorted(ballots, key=lambda b: b[0]):
        if len(counted) == len(opening.electorate):
            break
        if ballot in seen or not valid(opening, at_ms, ballot):
            continue
        seen.add(ballot)
        counted[ballot.voter] = (ballot.choice, index)
    weights: dict[Choice, int] = {"for": 0, "against": 0, "abstain": 0}
    for voter, (choice, _) in counted.items():
        weights[choice] += opening.electorate[voter]
    turnout, total = sum(weights.values()), sum(opening.electorate.values())
    state: State = "open"
    if now_ms >= opening.closes_ms or len(counted) == len(opening.electorate):
        quorum = turnout * 100 >= opening.quorum_percent * total
        wins = _wins(weights["for"], weights["against"], opening.pass_percent)
        state = "passed" if quorum and wins else "defeated"
    return Tally(state, weights["for"], weights["against"], weights["abstain"], turnout, total, counted)


def outcome_facts(opening: Opening, count: Tally) -> dict[str, Any]:
    """The fields of the journal's OUTCOME record of a decided vote."""
    return {"proposal": opening.proposal, "number": opening.number, **count.facts}


def valid(opening: Opening, at_ms: int, ballot: Ballot) -> bool:
    """Whether a ballot with a good signature, recorded at `at_ms`, may count in this vote at all."""
    return (
        ballot.consortium == opening.consortium
        and ballot.proposal == opening.proposal
        and ballot.rules == opening.rules_digest
        and ballot.electorate == opening.electorate_digest
        and ballot.voter in opening.electorate
        and opening.opened_ms <= at_ms < opening.closes_ms
    )


def _wins(for_weight: int, against_weight: int, pass_percent: int) -> bool:
    if pass_percent == 100:
        return for_weight > 0 and against_weight == 0
    return for_weight * 100 > pass_percent * (for_weight + against_weight)
