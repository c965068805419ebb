"""Which slices a round exchanges: the model dealt into fragments that take turns (Streaming DiLoCo, arXiv 2501.18512).

A pure function of the expert map, so that site and coordinator agree on it without a word. Layers are dealt like cards,
layer l to fragment l modulo their number, as far as fragments stay of one size; embedding, head, final norm and what has
no room go to the lightest. Trunk and router are dealt by themselves, and so are experts, alike for each of them: whatever a
site owns, its rounds are of one size. The last round exchanges everything, so that nothing a site has trained is left out
of the final state.
"""

from __future__ import annotations

from collections.abc import Iterable

from commons.experts.map import ExpertMap
from commons.experts.slices import Kind, Slice
from commons.learning import Learning

Unit = tuple[Slice, ...]
"""Slices that stay together: one of the trunk or router, or the same of every expert, reader, or site's own layers."""


def due(expert_map: ExpertMap, learning: Learning, number: int) -> frozenset[str]:
    """Names of the slices that round `number` (from 1) exchanges."""
    everything = learning.owned_every == 1 or number % learning.owned_every == 0 or number >= learning.rounds
    if learning.fragments == 1 or number >= learning.rounds:
        return frozenset(part.name for part in expert_map.slices if everything or not part.kind.owned)
    fragments = deal(expert_map, learning.fragments)
    return fragments[number % len(fragments)]


def deal(expert_map: ExpertMap, most: int) -> tuple[frozenset[str], ...]:
    """Every slice's name, but for what nobody changes, in one of at most `most` fragments; each has some of trunk and router.

    Neither the trunk's share of a fragment nor an expert's is larger than an equal one and its largest slice together.
    """
    owned: dict[Kind, dict[str, list[Slice]]] = {Kind.EXPERT: {}, Kind.READER: {}, Kind.OWN: {}}
    for part in expert_map.slices:
        if part.expert is not None:
            owned[part.kind].setdefault(part.expert, []).append(part)
    fragments = [names for names in _dealt([(part,) for part in expert_map.shared()], most) if names]
    units = [unit for of in owned.values() for unit in zip(*of.values(), strict=True)]
    alike = _dealt(units, len(fragments))
    return tuple(frozenset(one) | more for one, more in zip(fragments, alike, strict=True))


def _dealt(units: list[Unit], number: int) -> list[set[str]]:
    """The largest first, of equals in order of name."""
    fragments: list[set[str]] = [set() for _ in range(number)]
    loads, fair = [0] * number, sum(unit[0].size for unit in units) / number
    for unit in sorted(units, key=lambda unit: (-unit[0].size, unit[0].name)):
        size, layer = unit[0].size, unit[0].layer
        place = layer % number if layer is not None else -1
        if place < 0 or loads[place] + size > fair:
            place = loads.index(min(loads))
        loads[place] += size
        fragments[place] |= _names(unit)
    return fragments


def _names(unit: Iterable[Slice]) -> set[str]:
    return {part.name for part in unit}
