"""What one round of a charter moves: which slices a site trains, which it sends, and whose updates move which slice.

Coordinator and sites reach the same answer from the charter's `[learning]`, the expert map and the round's number. How
deltas are encoded is `commons.codec`'s, how they are put together `orchestrator.combine`'s.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from commons.charter import Charter
from commons.experts.fragments import due
from commons.experts.map import ExpertMap, Kind, Slice
from commons.learning import Codecs, Learning, Outer
from commons.names import ExpertId, SiteId


@dataclass(frozen=True)
class Exchange:
    """All slices are in name order."""

    expert_map: ExpertMap
    learning: Learning
    number: int
    """Of the round, from 1."""

    @cached_property
    def due(self) -> frozenset[str]:
        """Names of the slices that the round exchanges, as far as anybody trains them.

        The branches of `branch_mix` (Branch-Train-MiX, arXiv 2403.07816) grow by themselves until the run's last round: then
        trunk and router are averaged once, and experts stand side by side.
        """
        if self.learning.strategy == "branch_mix" and self.number < self.learning.rounds:
            return frozenset()
        return due(self.expert_map, self.learning, self.number)

    @property
    def codecs(self) -> Codecs:
        """What the round is encoded by."""
        return self.learning.codecs_in(self.number)

    def by_all(self, part: Slice) -> bool:
        """Whether every site sends that slice."""
        return part.name in self.due and self._trained_by_all(part)

    def _trained_by_all(self, part: Slice) -> bool:
        """Else by nobody, or by the owner of its expert."""
        match self.learning.strategy:
            case "expert_diloco" | "branch_mix":
                return part.shared
            case "sovereign":
                return part.kind is Kind.ROUTER
            case "diloco":
                return True

    @property
    def rows_by_owner(self) -> bool:
        """Whether a router's row moves by the update of its expert's owner alone, as far as that went."""
        return self.learning.strategy == "sovereign"

    @property
    def owners_keep(self) -> bool:
        """Whether a site's own experts are everywhere what the site made of them, so that it goes on from there."""
        return self.learning.strategy != "diloco" and self.learning.expert_outer == Outer()

    def outer(self, part: Slice) -> Outer:
        """The step by which the combined delta of that slice moves it."""
        if not self._trained_by_all(part) and part.expert is not None:
            return self.learning.expert_outer
        by_owner = self.rows_by_owner and part.kind is Kind.ROUTER
        return Outer() if by_owner else self.learning.outer

    @property
    def counts(self) -> bool:
        """Whether sites say in this round's updates how many tokens they routed to which expert."""
        return self.learning.counts and bool(self.due)

    def may_route_to(self, site: SiteId) -> tuple[bool, ...]:
        """By index: which experts the site's tokens may go to."""
        own, whole = set(self.expert_map.experts_of(site)), self.learning.routing == "joint"
        return tuple(whole or expert in own for expert in self.expert_map.experts)

    @property
    def shared(self) -> tuple[Slice, ...]:
        """What every site sends."""
        return tuple(s for s in self.expert_map.slices if self.by_all(s))

    def experts_of(self, site: SiteId) -> tuple[ExpertId, ...]:
        """The experts the site trains."""
        return (
            self.expert_map.experts
            if self.learning.strategy == "diloco"
            else self.expert_map.experts_of(site)
        )

    def trained(self, site: SiteId) -> tuple[Slice, ...]:
        """Everything the site's inner steps may move."""
        own = set(self.expert_map.experts_of(site))
        return tuple(s for s in self.expert_map.slices if self._trained_by_all(s) or s.expert in own)

    def uplink(self, site: SiteId) -> tuple[Slice, ...]:
        """Everything the site sends."""
        return tuple(s for s in self.trained(site) if s.name in self.due)

    def held(self, site: SiteId) -> tuple[Slice, ...]:
        """What the site trains with: trunk and router, and its own experts or, beside guests and copies, all."""
        whole = self.learning.routing == "joint"
        return self.expert_map.slices if whole else self.expert_map.uplink(site)

    def gflop(self, steps: int) -> int:
        """Useful model FLOPs of so many of the round's steps, in whole GFLOP rounded up."""
        tokens = steps * self.learning.batch_size * self.learning.sequence_length
        frozen = self.learning.strategy == "sovereign"
        return self.expert_map.training_gflop(tokens, frozen_trunk=frozen)


def round_gflop(charter: Charter) -> int:
    """The work of one site's whole round, a warm phase being over, in 10^9 useful operations."""
    learning = charter.learning
    return Exchange(ExpertMap.from_charter(charter), learning, learning.rounds).gflop(
        learning.steps_in(learning.rounds)
    )
