"""Rounds judged on a probe, as the coordinator judges them (`orchestrator.judging`): what each update is worth, who is left out.

The probe is public text of the sites' own kinds that nobody trains on, a part for each domain. Each site measures with its own
experts on the shared slices, as a lean site of the product does; of its own experts it takes those it has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.learning_parts.combining import State
from commons.charter import Model
from commons.experts.map import ExpertMap
from commons.judging import Contribution, Rollback
from commons.names import SiteId
from commons.verdict import Said, change, culprit, dragging, dragging_still, limit, remembering
from workers.data import Rows
from workers.objectives import held_out_loss
from workers.shard import build_shard

_TWICE = Rollback(on=True, drag_percent=0.3, quarantine_rounds=12)
RULES = {
    "watched": (Rollback(), Contribution(every=1)),
    "rollback": (_TWICE, Contribution(every=2)),
    "summed": (_TWICE.model_copy(update={"drag_memory": 0.75}), Contribution(every=1)),
}
"""By what a variant is judged. `watched`: it is only written down what each update is worth."""
_KEPT = ("losses", "changes", "out_until", "dragged", "appraised", "log")
Combine = Callable[[Sequence[str]], State]
"""Sites -> the shared slices, combined from their updates alone."""
Losses = dict[str, list[float]]
"""Site -> losses of the parts of the probe."""


@dataclass
class Judge:
    model: Model
    map: ExpertMap
    rows: Mapping[str, Rows] = field(compare=False)
    rules: Rollback
    appraising: Contribution
    losses: Losses = field(default_factory=dict)
    """Of the state the round begins from."""
    changes: list[int] = field(default_factory=list)
    out_until: dict[str, int] = field(default_factory=dict)
    """Site -> the last round of its quarantine."""
    dragged: list[str] = field(default_factory=list)
    """Sites whose update dragged the last time it was appraised."""
    appraised: Mapping[str, Sequence[Said]] = field(default_factory=dict)
    """Site -> what its appraisals said of it."""
    log: list[dict[str, Any]] = field(default_factory=list)

    def counted(
        self, number: int, local: Mapping[str, State], base: State, combine: Combine
    ) -> Sequence[str] | None:
        """Sites whose updates count in round `number`; None: the shared slices stay as they are.

        `local`: by site, what it holds after its training.
        """
        if not self.losses:
            self.losses = self._measured(local, base)
        sites = [s for s in local if self.out_until.get(s, 0) < number]
        while True:
            after = self._measured(local, combine(sites))
            rise = _rise(self.losses, after)
            most = limit(self.changes, self.rules)
            harm = self.rules.on and rise > most
            entry: dict[str, Any] = {"round": number, "change_ppm": rise, "limit_ppm": most}
            self.log.append(entry)
            if harm or number % self.appraising.every == 0:
                named = self._accused(number, local, after, combine, sites, rise if harm else None, entry)
                if self.rules.on and named:
                    entry["left_out"] = named
                    sites = [s for s in sites if s != named]
                    self.out_until[named] = number + self.rules.quarantine_rounds
                    continue
            if harm:
                entry["left_out"] = "all"
                return None
            self.losses = after
            self.changes.append(rise)
            return sites

    def _accused(
        self,
        number: int,
        local: Mapping[str, State],
        after: Losses,
        combine: Combine,
        sites: Sequence[str],
        rise: int | None,
        entry: dict[str, Any],
    ) -> str | None:
        """As `orchestrator.judging.accused`; the quorum is half the sites. `rise`: where there is harm."""
        left = {s: self._measured(local, combine([o for o in sites if o != s])) for s in sites}
        parts = range(len(self.rows))
        entry["worth_ppm"] = {
            s: [_rise(_part(after, n), _part(x, n)) for n in parts] for s, x in left.items()
        }
        if 2 * len(sites) <= len(local):
            return None
        own = list(self.rows).index
        best = {
            (s, number): entry["worth_ppm"][s][own(s)] for s in left
        }  # with four sites a domain is a site's
        if rise is not None:
            without = {(s, number): _rise(self.losses, losses) for s, losses in left.items()}
            named = culprit(rise, without, best)
        else:
            worth = {(s, number): _rise(after, losses) for s, losses in left.items()}
            entry["whole_ppm"] = {site: ppm for (site, _), ppm in worth.items()}
            again = dragging_still(worth, best, self.rules, self.appraised, self.dragged)
            named = min(again, key=lambda name: worth[name], default=None)
            if named is None:
                new = {site for site, _ in dragging(worth, best, self.rules, self.appraised)}
                self.dragged = sorted(set(self.dragged) - set(sites) | new)
                entry["dragging"] = sorted(new)
                self.appraised = remembering(self.appraised, worth, best)
        return named[0] if named else None

    def remembered(self) -> dict[str, Any]:
        """What the next round's verdict depends on, and the log."""
        return {name: getattr(self, name) for name in _KEPT}

    def remember(self, kept: Mapping[str, Any]) -> None:
        for name in _KEPT:
            setattr(self, name, kept[name])
        self.appraised = {site: tuple((w, s) for w, s in said) for site, said in self.appraised.items()}

    def _measured(self, local: Mapping[str, State], shared: State) -> Losses:
        found: Losses = {}
        for site, state in local.items():
            own = self.map.experts_of(SiteId(site))
            shard = build_shard(self.model, self.map, own=own, guests=False, state={**state, **shared})
            found[site] = [held_out_loss(shard, rows) for rows in self.rows.values()]
        return found


def _rise(before: Losses, after: Losses) -> int:
    rise = change(before, after)
    assert rise is not None, "every site measures"
    return rise


def _part(losses: Losses, number: int) -> Losses:
    return {site: [each[number]] for site, each in losses.items()}
