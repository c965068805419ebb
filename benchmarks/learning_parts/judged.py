"""Rounds judged on a probe, as the coordinator judges them (`orchestrator.judging`): what each update is worth, who is left out.

The probe is public text of the sites' own kinds that nobody trains on. Each site measures with its own experts on the shared
slices, as a lean site of the product does; of its own experts it takes those it has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.learning_parts.combining import State
from commons.charter import Model
from commons.experts.map import ExpertMap
from commons.judging import Rollback
from commons.names import SiteId
from commons.verdict import change, culprit, limit
from workers.data import Rows
from workers.objectives import held_out_loss
from workers.shard import build_shard

RULES = Rollback(on=True)
_KEPT = ("losses", "changes", "out_until", "log")
Combine = Callable[[Sequence[str]], State]
"""Sites -> the shared slices, combined from their updates alone."""


@dataclass
class Judge:
    model: Model
    map: ExpertMap
    rows: Rows
    losses: dict[str, float] = field(default_factory=dict)
    """Of the state the round begins from, by site."""
    changes: list[int] = field(default_factory=list)
    out_until: dict[str, int] = field(default_factory=dict)
    """Site -> the last round of its quarantine."""
    log: list[dict[str, Any]] = field(default_factory=list)

    def counted(
        self, number: int, local: Mapping[str, State], base: State, combine: Combine, *, leaves_out: bool
    ) -> Sequence[str] | None:
        """Sites whose updates count in round `number`; None: the shared slices stay as they are.

        `local`: by site, what it holds after its training. Without `leaves_out` it is only written down what each update is worth.
        """
        if not self.losses:
            self.losses = self._measured(local, base)
        sites = [s for s in local if self.out_until.get(s, 0) < number]
        while True:
            after = self._measured(local, combine(sites))
            rise = change(self.losses, after)
            assert rise is not None, "every site measures"
            most = limit(self.changes, RULES)
            harm = leaves_out and rise > most
            entry: dict[str, Any] = {"round": number, "change_ppm": rise, "limit_ppm": most}
            self.log.append(entry)
            if not harm and leaves_out:
                self.losses = after
                self.changes.append(rise)
                return sites
            without = {s: self._measured(local, combine([o for o in sites if o != s])) for s in sites}
            worth = {(s, number): change(self.losses, left) or 0 for s, left in without.items()}
            entry["worth_ppm"] = {s: change(after, left) for s, left in without.items()}
            if not harm:
                self.losses = after
                return sites
            named = culprit(rise, worth) if len(sites) > 2 else None
            entry["left_out"] = named[0] if named else "all"
            if named is None:
                return None
            sites = [s for s in sites if s != named[0]]
            self.out_until[named[0]] = number + RULES.quarantine_rounds

    def remembered(self) -> dict[str, Any]:
        """What the next round's verdict depends on, and the log."""
        return {name: getattr(self, name) for name in _KEPT}

    def remember(self, kept: Mapping[str, Any]) -> None:
        for name in _KEPT:
            setattr(self, name, kept[name])

    def _measured(self, local: Mapping[str, State], shared: State) -> dict[str, float]:
        found = {}
        for site, state in local.items():
            own = self.map.experts_of(SiteId(site))
            shard = build_shard(self.model, self.map, own=own, guests=False, state={**state, **shared})
            found[site] = held_out_loss(shard, self.rows)
        return found
