"""Counting votes: one opening, its ballots and motions give one outcome, wherever it is counted.

Pure and integer-only: coordinator, sites, command line and browser come to the same result
(vectors in tests/support/vectors/tally.json). Signatures are checked before ballots and motions come here;
everything else that makes a ballot count is checked here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from commons.ballots import CHOICES, Ballot
from commons.motions import Motion
from commons.opening import Opening
from commons.ranking import Order, ranked, readable
from commons.voting import fraction

State = Literal["open", "passed", "defeated", "ranked"]
Phase = Literal["pending", "active", "paused", "closed"]
CALLERS = 2
"""Members who together stop a vote for discussion, once."""


@dataclass(frozen=True)
class Tally:
    state: State
    for_weight: int
    against_weight: int
    abstain_weight: int
    turnout_weight: int
    total_weight: int
    counted: Mapping[str, tuple[str, int]]
    """voter -> (choice, journal index) of the ballot that counts."""
    phase: Phase
    closes_ms: int
    """When the vote ends, with what pauses and extensions have added so far; of a paused one, were it resumed now."""
    callers: frozenset[str] = frozenset()
    """Who called for a discussion."""
    discussed: bool = False
    """The vote was paused, or is."""
    stray: tuple[int, ...] = ()
    """Indexes of ballots that can never count: outside the window, of a stranger, under other rules."""
    order: Order | None = None
    """Of a roadmap ballot that has ended."""
    pause: tuple[int, int] | None = None
    """From when to when it was paused."""

    @property
    def facts(self) -> dict[str, Any]:
        """The count as JSON values."""
        facts = {
            "state": self.state,
            "for": self.for_weight,
            "against": self.against_weight,
            "abstain": self.abstain_weight,
            "turnout": self.turnout_weight,
            "total": self.total_weight,
            "counted": {voter: {"choice": c, "index": i} for voter, (c, i) in sorted(self.counted.items())},
        }
        return facts if self.order is None else facts | {"order": self.order.facts}


def tally(
    opening: Opening,
    ballots: Sequence[tuple[int, int, Ballot]],
    now_ms: int,
    motions: Sequence[tuple[int, int, Motion]] = (),
) -> Tally:
    """Count `ballots`, given as (journal index, log time in ms, ballot) in any order; `motions` likewise.

    A voter's last valid ballot by index counts. A ballot recorded twice counts where it first stood, so
    that nobody can undo a later choice by recording an earlier one again. Voting ends when the window does,
    or with the ballot that completes the electorate; then quorum and majorities decide (`_passes`). Two members
    who call for a discussion stop the window until one of them resumes it, at most for as long as a window, once.
    Quorums do not wait for dormant members, but those lower them to a half at most. A quorum reached within `extend_ms` of the end moves the end, once, to so long after it.
    """
    count = _Count(opening)
    events: list[tuple[int, int, Ballot | Motion]] = [*ballots, *motions]
    for index, at_ms, event in sorted(events, key=lambda e: e[0]):
        count.advance(at_ms)
        if isinstance(event, Ballot):
            count.ballot(index, at_ms, event)
        else:
            count.motion(at_ms, event)
    count.advance(now_ms)
    return count.result(now_ms)


def outcome_facts(opening: Opening, count: Tally) -> dict[str, Any]:
    """The fields of the journal's OUTCOME record of a decided vote."""
    return {"proposal": opening.proposal, "number": opening.number, **count.facts}


def fits(opening: Opening, ballot: Ballot) -> bool:
    """Whether a ballot with a good signature is one for this vote at all, whenever it came."""
    answers = (
        readable(ballot.choice, opening.candidates, opening.credits)
        if opening.candidates
        else ballot.choice in CHOICES
    )
    return (
        answers
        and ballot.consortium == opening.consortium
        and ballot.proposal == opening.proposal
        and ballot.rules == opening.rules_digest
        and ballot.electorate == opening.electorate_digest
        and ballot.voter in opening.electorate
    )


@dataclass
class _Count:
    """The vote as it was after each event."""

    opening: Opening
    counted: dict[str, tuple[str, int]] = field(default_factory=dict)
    seen: set[Ballot] = field(default_factory=set)
    stray: list[int] = field(default_factory=list)
    callers: set[str] = field(default_factory=set)
    paused_ms: int | None = None
    """Since when."""
    discussed: bool = False
    extended: bool = False
    pause: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        self.closes_ms = self.opening.closes_ms

    @property
    def complete(self) -> bool:
        return len(self.counted) == len(self.opening.electorate)

    def takes(self, at_ms: int) -> bool:
        return self.opening.opened_ms <= at_ms < self.closes_ms and self.paused_ms is None

    def advance(self, now_ms: int) -> None:
        """A pause ends by itself."""
        if self.paused_ms is not None and now_ms >= self.paused_ms + self.opening.window_ms:
            self._resume(self.paused_ms + self.opening.window_ms)

    def ballot(self, index: int, at_ms: int, ballot: Ballot) -> None:
        if self.complete or ballot in self.seen:
            return
        if not self.takes(at_ms) or not fits(self.opening, ballot):
            self.stray.append(index)
            return
        self.seen.add(ballot)
        before = self._quorate()
        self.counted[ballot.voter] = (ballot.choice, index)
        extend_ms = self.opening.extend_ms
        if not before and not self.extended and self._quorate() and self.closes_ms - at_ms < extend_ms:
            self.closes_ms, self.extended = at_ms + extend_ms, True

    def motion(self, at_ms: int, motion: Motion) -> None:
        if motion.member not in self.opening.electorate or self.complete:
            return
        if motion.motion == "discuss" and self.takes(at_ms) and not self.discussed:
            self.callers.add(motion.member)
            if len(self.callers) >= CALLERS:
                self.paused_ms, self.discussed = at_ms, True
        elif motion.motion == "resume" and self.paused_ms is not None and motion.member in self.callers:
            self._resume(at_ms)

    def _resume(self, at_ms: int) -> None:
        assert self.paused_ms is not None
        self.closes_ms += at_ms - self.paused_ms
        self.pause = (self.paused_ms, at_ms)
        self.paused_ms = None

    def _weight(self, choice: str | None = None) -> int:
        return sum(
            self.opening.electorate[v] for v, (c, _) in self.counted.items() if choice is None or c == choice
        )

    def _quorate(self) -> bool:
        of = self.opening
        total = sum(of.electorate.values())
        asleep = sum(of.electorate[member] for member in of.dormant)
        return self._weight() * 200 >= of.quorum_percent * max(2 * (total - asleep), total)

    def _passes(self) -> bool:
        """Quorum; more than `pass_percent` of for and against; the share of them; the share of members. Ties fail."""
        of, yes, no = self.opening, self._weight("for"), self._weight("against")
        if of.objection:
            top, bottom = fraction(of.objection)
            return no * bottom < top * sum(of.electorate.values())
        wins = (
            yes > 0 and no == 0 if of.pass_percent == 100 else yes * 100 > of.pass_percent * (yes + no)
        ) and self._quorate()
        if of.share:
            top, bottom = fraction(of.share)
            wins = wins and yes * bottom >= top * (yes + no)
        if of.members:
            top, bottom = fraction(of.members)
            heads, all_heads = sum(choice == "for" for choice, _ in self.counted.values()), len(of.electorate)
            asleep = sum(member not in self.counted for member in of.dormant)
            wins = wins and 2 * heads * bottom >= top * max(2 * (all_heads - asleep), all_heads)
        return wins

    def result(self, now_ms: int) -> Tally:
        of, order = self.opening, None
        state: State = "open"
        phase: Phase = "active" if now_ms >= of.opened_ms else "pending"
        if self.paused_ms is not None:
            phase = "paused"
        elif now_ms >= self.closes_ms or self.complete:
            phase = "closed"
        if phase == "closed" and of.candidates:
            state, order = "ranked", ranked(of.candidates, of.credits, of.electorate, self.counted)
        elif phase == "closed":
            state = "passed" if self._passes() else "defeated"
        return Tally(
            state=state,
            for_weight=self._weight("for"),
            against_weight=self._weight("against"),
            abstain_weight=self._weight("abstain"),
            turnout_weight=self._weight(),
            total_weight=sum(of.electorate.values()),
            counted=self.counted,
            phase=phase,
            closes_ms=self.closes_ms + (0 if self.paused_ms is None else now_ms - self.paused_ms),
            callers=frozenset(self.callers),
            discussed=self.discussed,
            stray=tuple(self.stray),
            order=order,
            pause=self.pause,
        )
