"""The life of one proposal, computed from what the journal says of it and the log's time. Nothing here is stored.

    pending -> active <-> paused (once) -> succeeded | defeated | ranked
    pending -> cancelled                   by its proposer
    succeeded -> queued -> executed        at a round boundary, when its time has come
    queued -> vetoed -> queued             by an officer; by the members' override
    queued -> expired | stale | failed     too late; its ground has moved; it no longer applies

Coordinator, auditor and sites read this one file; who signed what is checked before it comes here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from commons.ballots import Ballot
from commons.charter import Charter
from commons.motions import Motion
from commons.opening import Opening
from commons.pledging import Pledge, lacking
from commons.tally import Tally, tally

State = Literal[
    "pending", "active", "paused", "cancelled", "succeeded", "defeated", "ranked", "queued", "vetoed", "expired",
    "executed", "stale", "failed",
]  # fmt: skip
ENDED: tuple[State, ...] = ("cancelled", "defeated", "ranked", "expired", "executed", "stale", "failed")


@dataclass
class Course:
    """What the journal says of one proposal so far; ballots, motions and pledges as (journal index, log time in ms,
    note)."""

    opening: Opening
    proposer: str
    binding: bool = True
    """Whether its success changes the charter."""
    ballots: list[tuple[int, int, Ballot]] = field(default_factory=list)
    motions: list[tuple[int, int, Motion]] = field(default_factory=list)
    decided: tuple[int, str] | None = None
    """Log time and state of its OUTCOME."""
    overridden_ms: int | None = None
    """When the members voted to carry it out although it was vetoed."""
    ended: Literal["", "executed", "stale", "failed"] = ""
    needs_micro: int = 0
    pledges: list[tuple[int, int, Pledge]] = field(default_factory=list)

    def tally(self, now_ms: int) -> Tally:
        return tally(self.opening, self.ballots, now_ms, self.motions)

    def state(self, now_ms: int) -> State:
        if self.cancelled:
            return "cancelled"
        if self.decided is None:
            count = self.tally(now_ms)
            if count.phase != "closed":
                return count.phase
            return {"passed": "succeeded", "ranked": "ranked"}.get(count.state, "defeated")  # type: ignore[return-value]
        if self.ended:
            return self.ended
        match self.decided[1]:
            case "passed" if self.binding:
                return self._queue(now_ms)
            case "passed":
                return "succeeded"
            case "ranked":
                return "ranked"
            case _:
                return "defeated"

    @property
    def cancelled(self) -> bool:
        """Withdrawn by its proposer before voting began."""
        return any(
            m.motion == "withdraw" and m.member == self.proposer and at < self.opening.opened_ms
            for _, at, m in self.motions
        )

    @property
    def eta_ms(self) -> int | None:
        """When it may be carried out at the earliest; None: it did not succeed."""
        if self.decided is None or self.decided[1] != "passed":
            return None
        return max(self.decided[0] + self.opening.queue_ms, self.overridden_ms or 0)

    @property
    def vetoed_ms(self) -> int | None:
        """When an officer vetoed it, while it was queued."""
        if self.decided is None:
            return None
        began, ends = self.decided[0], self.decided[0] + self.opening.queue_ms
        lawful = (
            at
            for _, at, m in self.motions
            if m.motion == "veto" and m.member in self.opening.officers and began <= at < ends
        )
        return next(lawful, None)

    def ready(self, now_ms: int) -> bool:
        """Whether it may be carried out now."""
        eta_ms = self.eta_ms
        return eta_ms is not None and now_ms >= eta_ms and self.state(now_ms) == "queued"

    def lacks(self, after: Charter, now_ms: int) -> str:
        """Why it may not make `after` the charter for want of pledges now; empty when it may."""
        return lacking(self.needs_micro, (pledge for _, _, pledge in self.pledges), after, now_ms)

    def refuses(self, motion: Motion, now_ms: int) -> str:
        """Why a member's motion comes to nothing now; empty when it stands."""
        state, count, of = self.state(now_ms), self.tally(now_ms), self.opening
        match motion.motion:
            case "withdraw" if motion.member != self.proposer:
                return f"only {self.proposer}, who proposed it, withdraws it"
            case "withdraw" if state != "pending":
                return f"it is {state}: a proposal is withdrawn before voting begins"
            case "veto" if motion.member not in of.officers:
                return f"{motion.member} was no safety officer when it opened"
            case "veto" if motion.reason == "-":
                return "a veto gives its reason"
            case "veto" if state != "queued" or self.overridden_ms is not None:
                return (
                    f"it is {state}: a proposal is vetoed while it is queued, and not again after an override"
                )
            case "veto" if self.eta_ms is not None and now_ms >= self.eta_ms:
                return "its time for vetoes is over"
            case "discuss" | "resume" if motion.member not in of.electorate:
                return f"{motion.member} is not in its electorate"
            case "discuss" if state != "active":
                return f"it is {state}: a vote is paused while it is active"
            case "discuss" if count.discussed:
                return "a vote is paused for discussion once"
            case "resume" if state != "paused" or motion.member not in count.callers:
                return f"it is {state}: who called for a paused vote's discussion ends it"
            case _:
                return ""

    def _queue(self, now_ms: int) -> State:
        eta_ms = self.eta_ms
        assert eta_ms is not None, "only what succeeded is queued"
        if self.vetoed_ms is not None and self.overridden_ms is None:
            return "vetoed"
        if self.opening.grace_ms and now_ms >= eta_ms + self.opening.grace_ms:
            return "expired"
        return "queued"
