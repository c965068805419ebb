"""From the sites' measurements to a verdict on a round: pure, the same for the coordinator, auditors and whoever recounts.

A site measures the round's base and its new state on the same text, and only the relation of its two numbers counts, so that
sites need not hold the same experts. Of several sites the lower median counts: a state is worse when more than half of
those who measured say so, which one liar among three can neither make up nor hide. Changes are whole parts per million.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Literal, TypeVar

from commons.judging import Rollback

Losses = Mapping[str, Sequence[float]]
"""Site -> losses of one state, one for each part of the probe, nats per byte."""
Word = Literal["measured", "good", "harmful", "rolled-back", "unmeasured"]
"""`measured`: the charter asks for no more. `harmful`: an update is left out and the round combined without it.
`rolled-back`: the round ends with the state it began from."""
Name = TypeVar("Name", bound=tuple[str, int])
"""Of an update: its site, and the round it is of."""
Said = tuple[int, int]
"""What one appraisal says of a site: what the new state's loss rises by without its update, and how far that of its own part
of the probe does beyond where it counts as help (`helping_nobody`). Of several updates the sum."""
History = Mapping[str, Sequence[Said]]
"""Site -> what its appraisals said, oldest first."""

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


def change_of_part(before: Losses, after: Losses, part: int | None) -> int | None:
    """The same of one part; None: of the part whose loss rose most, or fell least."""
    both = before.keys() & after.keys()
    parts = range(min((min(len(before[site]), len(after[site])) for site in both), default=0))
    each = [_median([_ppm(before[site][n], after[site][n]) for site in both]) for n in parts]
    if part is not None:
        return each[part] if part < len(each) else None
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


def culprit(rise: int, without: Mapping[Name, int], own: Mapping[Name, int]) -> Name | None:
    """The update that does most of the harm; None where leaving any single one out helps little.

    `without`: by update, the round's change if it is left out. `own`: by update, what the new state's loss rises by without it
    on the part of the probe that is its site's kind of text, or where there is none on the part it helps most. One is named
    only if that takes back a quarter of the rise and it helps not even its own: what all of them do together, a rate that
    is too high or a probe that tells little, is nobody's fault, and nobody's whose text is unlike the others'. Of equals
    the first by name.
    """
    idle = helping_nobody(own)
    found = [name for name in without if name in idle and 4 * (rise - without[name]) >= rise]
    return min(found, key=lambda name: (without[name], name), default=None)


def helping_nobody(own: Mapping[Name, int]) -> set[Name]:
    """Updates that help their own part of the probe by less than a quarter of what the median update does."""
    return {name for name, spare in _spare(own).items() if spare <= 0}


def dragging(
    worth: Mapping[Name, int],
    own: Mapping[Name, int],
    rules: Rollback,
    before: History = MappingProxyType({}),
) -> list[Name]:
    """Updates that hold the others up, though the loss may have fallen, in order of name.

    `worth`: by update, what the loss of the new state rises by without it; `own` as for `culprit`. An update drags when the
    state is better without it by more than the charter bears **and** it helps not even its own kind of text: what helps
    one partner's alone is no drag, however much the others would gain without it. Both are sums over what the site's
    appraisals `before` said of it, as far as `rules.drag_memory` keeps it (`History`): text of which nothing can be learnt
    does harm in every round, and soon so little that a single appraisal cannot tell it from chance.
    """
    if not rules.drag_percent:
        return []
    bears, spare = round(rules.drag_percent * 10_000), _spare(own)
    found = []
    for name in worth.keys() & own.keys():
        sums = _summed([*before.get(name[0], ()), (worth[name], spare[name])], rules.drag_memory)
        if -sums[0] > bears and sums[1] <= 0:
            found.append(name)
    return sorted(found)


def dragging_still(
    worth: Mapping[Name, int],
    own: Mapping[Name, int],
    rules: Rollback,
    before: History,
    flagged: Collection[str],
) -> list[Name]:
    """Those of `dragging` whose site dragged (`flagged`) the last time it was appraised, too, and whose update does not help its
    own kind of text now either: a site that has mended is not left out for what it was."""
    idle = helping_nobody(own)
    found = dragging(worth, own, rules, before)
    return [name for name in found if name[0] in flagged and name in idle]


def changes_of(
    updates: Mapping[str, tuple[str, int, int]],
) -> tuple[dict[tuple[str, int], int], dict[tuple[str, int], int]]:
    """`worth` and `own` of a WORTH record's updates (``site/round``)."""
    worth, own = dict[tuple[str, int], int](), dict[tuple[str, int], int]()
    for name, (_, whole, part) in updates.items():
        site, _, number = name.rpartition("/")
        worth[site, int(number)], own[site, int(number)] = whole, part
    return worth, own


def remembering(
    before: History, worth: Mapping[Name, int], own: Mapping[Name, int]
) -> dict[str, tuple[Said, ...]]:
    """`before` with one more appraisal; of each site the last `RECENT`."""
    spare, said = _spare(own), dict[str, Said]()
    for name in sorted(worth.keys() & own.keys()):
        whole, beyond = said.get(name[0], (0, 0))
        said[name[0]] = whole + worth[name], beyond + spare[name]
    kept = {site: tuple(earlier) for site, earlier in before.items()}
    return kept | {site: (*kept.get(site, ()), now)[-RECENT:] for site, now in said.items()}


def _spare(own: Mapping[Name, int]) -> dict[Name, int]:
    """How far an update helps its own part beyond a quarter of what the median update does."""
    usual = sorted(own.values())[(len(own) - 1) // 2] if own else 0
    return {name: most - max(0, usual // 4) for name, most in own.items()}


def _summed(said: Sequence[Said], memory: float) -> Said:
    """Each appraisal leaves the share `memory` of the sums before it."""
    whole = beyond = 0
    for worth, spare in said:
        whole, beyond = round(memory * whole) + worth, round(memory * beyond) + spare
    return whole, beyond


def _median(values: list[int]) -> int | None:
    """The lower one."""
    return sorted(values)[(len(values) - 1) // 2] if values else None


def _ppm(before: float, after: float) -> int:
    if before <= 0:
        return 0 if after <= 0 else CHANGE_MAX
    return round(min(float(CHANGE_MAX), _MILLION * (after / before - 1)))
