"""What one round of a charter moves: which slices a site trains, which it sends, and whose updates move which slice.

Coordinator and sites reach the same answer from the charter's `[learning]`, the expert map and the round's number. How
deltas are encoded is `commons.codec`'s, how they are put together `orchestrator.combine`'s.
"""

from __future__ import annotations

from dataclasses import dataclass

from commons.charter import Charter
from commons.experts.map import ExpertMap, Kind, Slice
from commons.learning import Learning, Outer
from commons.names import ExpertId, SiteId


@dataclass(frozen=True)
class Exchange:
    """All slices are in name order."""

    expert_map: ExpertMap
    learning: Learning
    number: int
    """Of the round, from 1."""

    def by_all(self, part: Slice) -> bool:
        """Whether every site trains and sends that slice; else none, or the owner of its expert alone."""
        match self.learning.strategy:
            case "expert_diloco":
                return part.kind is not Kind.EXPERT
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
        """Whether a site's own experts go on at the site as it left them: they are combined with nobody's."""
        return self.learning.strategy != "diloco"

    def outer(self, part: Slice) -> Outer:
        """The step by which the combined delta of that slice moves it."""
        return Outer() if self.rows_by_owner else self.learning.outer

    @property
    def shared(self) -> tuple[Slice, ...]:
        """What every site sends."""
        return tuple(s for s in self.expert_map.slices if self.by_all(s))

    def experts_of(self, site: SiteId) -> tuple[ExpertId, ...]:
        """The experts the site trains."""
        return self.expert_map.experts_of(site) if self.owners_keep else self.expert_map.experts

    def trained(self, site: SiteId) -> tuple[Slice, ...]:
        """Everything the site's inner steps may move."""
        own = set(self.expert_map.experts_of(site))
        return tuple(s for s in self.expert_map.slices if self.by_all(s) or s.expert in own)

    def uplink(self, site: SiteId) -> tuple[Slice, ...]:
        """Everything the site sends."""
        return self.trained(site)

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
