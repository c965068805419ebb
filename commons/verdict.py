"""From the sites' measurements to a verdict on a round: pure, the same for the coordinator, auditors and whoever recounts.

A site measures the round's base and its new state on the same text, and only the relation of its two numbers counts, so that
sites need not hold the same experts. Of several sites the lower median counts: a state is worse when more than half of
those who measured say so, which one liar among three can neither make up nor hide. Changes are whole parts per million.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, TypeVar

from commons.judging import Rollback

Losses = Mapping[str, Sequence[float]]
"""Site -> losses of one state, one for each part of the probe, nats per byte."""
Word = Literal["measured", "good", "harmful", "rolled-back", "unmeasured"]
"""`measured`: the charter asks for no more. `harmful`: an update is left out and the round combined without it.
`rolled-back`: the round ends with the state it began from."""
Name = TypeVar("Name", bound=tuple[str, int])
"""Of an update: its site, and the round it is of."""

RECENT = 16
"""Changes that say what is usual."""
LEAST = 4
"""Of fewer nobody can say what is usual."""
EARLY = 4
"""Before that, and while the optimisers' moments are young, a rise is harm only above so many times the charter's percent."""
LOSS_MAX = 1e9
"""Stands for a loss that is larger, or no number at all."""
CHANGE_MAX = 10**9
_MILLION = 1_000_000


def change(before: Losses, after: Losses) -> int | None:
    """What the loss over all parts rose by (fell: below 0), in ppm of what it was, by the lower median of the sites that
    measured both."""
    return _median([_ppm(sum(before[site]), sum(after[site])) for site in before.keys() & after.keys()])


def change_of_best(before: Losses, after: Losses) -> int | None:
    """The same of the part whose loss rose most, or fell least."""
    both = before.keys() & after.keys()
    parts = min((min(len(before[site]), len(after[site])) for site in both), default=0)
    each = (_median([_ppm(before[site][n], after[site][n]) for site in both]) for n in range(parts))
    return max((ppm for ppm in each if ppm is not None), default=None)


def limit(changes: Sequence[int], rules: Rollback) -> int:
    """The largest rise that is no harm, given what earlier rounds of the run changed, oldest first.

    The spread of recent changes is taken by their median deviation, which a single wild round does not widen.
    """
    floor, recent = round(rules.rise_percent * 10_000), sorted(changes[-RECENT:])
    if len(recent) < LEAST:
        return EARLY * floor
    middle = recent[(len(recent) - 1) // 2]
    apart = sorted(abs(one - middle) for one in recent)
    deviation = 1.4826 * apart[(len(apart) - 1) // 2]
    return max(floor, middle + round(rules.sigmas * deviation))


def culprit(rise: int, without: Mapping[Name, int], best: Mapping[Name, int]) -> Name | None:
    """The update that does most of the harm; None where leaving any single one out helps little.

    `without`: by update, the round's change if it is left out. `best`: by update, what the new state's loss rises by without it
    on the part of the probe that it helps most. One is named only if that takes back a quarter of the rise and it helps no
    part: what all of them do together, a rate that is too high or a probe that tells little, is nobody's fault, and
    nobody's whose text is unlike the others'. Of equals the first by name.
    """
    idle = helping_nobody(best)
    found = [name for name in without if name in idle and 4 * (rise - without[name]) >= rise]
    return min(found, key=lambda name: (without[name], name), default=None)


def helping_nobody(best: Mapping[Name, int]) -> set[Name]:
    """Updates that help no part of the probe by a quarter of what the median update helps its best."""
    usual = sorted(best.values())[(len(best) - 1) // 2] if best else 0
    return {name for name, most in best.items() if most <= max(0, usual // 4)}


def dragging(worth: Mapping[Name, int], best: Mapping[Name, int], rules: Rollback) -> list[Name]:
    """Updates that hold the others up, though the loss may have fallen, in order of name.

    `worth`: by update, what the loss of the new state rises by without it; `best` as for `culprit`. An update drags when the
    state is better without it by more than the charter bears **and** it helps no part: what helps one partner's kind of
    text alone is no drag, however much the others would gain without it.
    """
    if not rules.drag_percent:
        return []
    bears, idle = round(rules.drag_percent * 10_000), helping_nobody(best)
    return sorted(name for name in worth if -worth[name] > bears and name in idle)


def _median(values: list[int]) -> int | None:
    """The lower one."""
    return sorted(values)[(len(values) - 1) // 2] if values else None


def _ppm(before: float, after: float) -> int:
    if before <= 0:
        return 0 if after <= 0 else CHANGE_MAX
    return round(min(float(CHANGE_MAX), _MILLION * (after / before - 1)))
