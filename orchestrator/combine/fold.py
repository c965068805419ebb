"""Folding updates into the next state, slice by slice.

Shared slices (trunk and router): the mean of the contributors' deltas, weighted by tokens, through the outer
step. An expert's slices: base plus its owner's delta, or the base as it is when the owner did not contribute.
Memory: one slice of base, sum and momentum, whatever the number of sites and the size of the model. Sums run
in order of site name, in fp32, so the result does not depend on who came first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from commons.charter import Outer
from commons.codec import decode
from commons.experts.map import ExpertMap, Kind, Slice
from commons.names import Digest, SiteId
from commons.states import Blob, StateStore, StateWriter, Tensor
from commons.updates import Part, UpdateManifest
from orchestrator.combine.outer import outer_step


@dataclass(frozen=True)
class Contribution:
    """One admitted update."""

    site: SiteId
    tokens: int
    """Its weight; above 0."""
    manifest: UpdateManifest
    payload: memoryview
    _parts: dict[str, Part] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_parts", {part.name: part for part in self.manifest.parts})

    def delta(self, name: str) -> Tensor:
        part = self._parts[name]
        return decode(part.codec, self.payload[part.offset : part.offset + part.bytes], part.shape)


@dataclass(frozen=True)
class Combined:
    state: Digest
    momentum: Digest | None
    """The outer optimiser's memory, kept like a state; None while there is none."""
    sites: frozenset[SiteId]
    """Whose updates are in it."""


def combine(
    store: StateStore,
    *,
    base: Digest,
    momentum: Digest | None,
    expert_map: ExpertMap,
    outer: Outer,
    contributions: Sequence[Contribution],
) -> Combined:
    """Compute and save the next state; durable on return. A repeat writes the same bytes.

    Raises StoreError when the disk is full or the base is damaged; nothing but unused blobs is left then.
    """
    assert contributions, "a round combines at least one update"
    ordered = sorted(contributions, key=lambda c: c.site)
    blobs = store.manifest(base)
    memory = store.manifest(momentum) if momentum and outer.momentum else {}
    with store.writer() as state, store.writer() as velocities:
        for part in expert_map.slices:
            if part.kind is Kind.EXPERT:
                _fold_expert(store, part, blobs[part.name], expert_map, ordered, state)
                continue
            old = store.tensor(memory[part.name]) if part.name in memory else None
            new, velocity = outer_step(store.tensor(blobs[part.name]), _mean(part, ordered), old, outer)
            state.add(part.name, new)
            if velocity is not None:
                velocities.add(part.name, velocity)
        kept = velocities.finish() if outer.momentum else None
        return Combined(state.finish(), kept, frozenset(c.site for c in contributions))


def _mean(part: Slice, ordered: Sequence[Contribution]) -> Tensor:
    total = sum(c.tokens for c in ordered)
    mean = np.zeros(part.shape, np.float32)
    for contribution in ordered:
        delta = contribution.delta(part.name)
        delta *= np.float32(contribution.tokens / total)
        mean += delta
    return mean


def _fold_expert(
    store: StateStore,
    part: Slice,
    blob: Blob,
    expert_map: ExpertMap,
    ordered: Sequence[Contribution],
    state: StateWriter,
) -> None:
    assert part.expert is not None
    owner = next((c for c in ordered if c.site == expert_map.owners[part.expert]), None)
    if owner is None:
        state.keep(part.name, blob)
    else:
        state.add(part.name, store.tensor(blob) + owner.delta(part.name))
