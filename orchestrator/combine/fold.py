"""Folding updates into the next state, frame by frame.

Shared slices (trunk and router): the mean of the contributors' deltas, weighted by tokens, through the outer
step. An expert's slices: base plus its owner's delta, or the base as it is when the owner did not contribute.
Memory: a few frames per thread, whatever the number of sites and the size of the model. Sums run in order of site
name, in fp32, so the result depends neither on who came first nor on the number of threads.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from commons.charter import Outer
from commons.codec import FRAME, add_frame, decode_frame
from commons.experts.map import ExpertMap, Slice
from commons.names import Digest, SiteId
from commons.states import Blob, StateStore, StateWriter
from commons.updates import Frame, UpdateManifest
from orchestrator.combine.outer import outer_step

Array = NDArray[np.float32]
THREADS_MAX = 4
_FRAME_BYTES = 4 * FRAME


class Update(Protocol):
    """A whole update that can be read from any thread."""

    @property
    def manifest(self) -> UpdateManifest: ...

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` with the bytes of one frame of the payload, which begins at `offset`."""


@dataclass(frozen=True)
class Contribution:
    """One admitted update."""

    site: SiteId
    weight: float
    """Of its deltas in the shared slices; above 0."""
    update: Update
    frames: dict[str, list[Frame]] = field(init=False, repr=False, compare=False)
    """By name of the slice."""

    def __post_init__(self) -> None:
        by_name: dict[str, list[Frame]] = {}
        for frame in self.update.manifest.frames:
            by_name.setdefault(frame.part.name, []).append(frame)
        object.__setattr__(self, "frames", by_name)


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
    threads: int | None = None,
) -> Combined:
    """Compute and save the next state; durable on return. A repeat writes the same bytes.

    Raises StoreError when the disk is full or the base is damaged; nothing but unused blobs is left then.
    """
    assert contributions, "a round combines at least one update"
    ordered = sorted(contributions, key=lambda c: c.site)
    memory = store.manifest(momentum) if momentum and outer.momentum else {}
    with store.writer() as state, store.writer() as velocities:
        fold = _Fold(store, store.manifest(base), memory, outer, ordered, state, velocities)
        owners = {c.site: c for c in ordered}

        def one(part: Slice) -> None:
            if part.expert is None:
                fold.shared(part)
            else:
                fold.expert(part, owners.get(expert_map.owners[part.expert]))

        # Each slice is hashed by one thread, so the largest go first.
        parts = sorted(expert_map.slices, key=lambda part: -part.size)
        _each(one, parts, threads or _threads(parts))
        kept = velocities.finish() if outer.momentum else None
        return Combined(state.finish(), kept, frozenset(owners))


class _Bench(threading.local):
    """What each thread works with: arrays of one frame."""

    def __init__(self) -> None:
        self.mean, self.scratch, self.base, self.velocity = (np.empty(FRAME, np.float32) for _ in range(4))
        self._raw = memoryview(bytearray(_FRAME_BYTES))

    def read(self, contribution: Contribution, frame: Frame) -> memoryview:
        """The frame's bytes, until the next call."""
        raw = self._raw[: frame.bytes]
        contribution.update.read_into(frame.offset, raw)
        return raw


@dataclass(frozen=True)
class _Fold:
    store: StateStore
    blobs: dict[str, Blob]
    memory: dict[str, Blob]
    outer: Outer
    ordered: Sequence[Contribution]
    state: StateWriter
    velocities: StateWriter
    bench: _Bench = field(default_factory=_Bench)

    def shared(self, part: Slice) -> None:
        bench, old = self.bench, self.memory.get(part.name)
        new = self.state.slice(part.name, part.shape)
        after = self.velocities.slice(part.name, part.shape) if self.outer.momentum else None
        with ExitStack() as stack:
            base = stack.enter_context(self.store.open(self.blobs[part.name]))
            before = stack.enter_context(self.store.open(old)) if old else None
            for number, (first, count) in enumerate(_blocks(part.size)):
                velocity = bench.velocity[:count] if before else None
                if before and velocity is not None:
                    before.read_into(first, velocity)
                step, velocity = outer_step(self._mean(part.name, number, count), velocity, self.outer)
                weights = bench.base[:count]
                base.read_into(first, weights)
                weights += step
                new.write(weights)
                if after and velocity is not None:
                    after.write(velocity)
        new.close()
        if after:
            after.close()

    def expert(self, part: Slice, owner: Contribution | None) -> None:
        blob, bench = self.blobs[part.name], self.bench
        if owner is None:
            self.state.keep(part.name, blob)
            return
        new = self.state.slice(part.name, part.shape)
        with self.store.open(blob) as base:
            for frame, (first, count) in zip(owner.frames[part.name], _blocks(part.size), strict=True):
                weights = bench.base[:count]
                base.read_into(first, weights)
                weights += decode_frame(frame.part.codec, bench.read(owner, frame), count, bench.scratch)
                new.write(weights)
        new.close()

    def _mean(self, name: str, number: int, count: int) -> Array:
        bench = self.bench
        total = sum(c.weight for c in self.ordered)
        mean = bench.mean[:count]
        mean.fill(0)
        for one in self.ordered:
            frame = one.frames[name][number]
            share = np.float32(one.weight / total)
            add_frame(frame.part.codec, bench.read(one, frame), count, share, mean, bench.scratch)
        return mean


def _blocks(size: int) -> Iterator[tuple[int, int]]:
    """(first element, elements) of each frame of a slice."""
    return ((first, min(FRAME, size - first)) for first in range(0, size, FRAME))


def _threads(parts: Sequence[Slice]) -> int:
    """One for each four frames there are: a small model is combined sooner than threads have started."""
    frames = sum(part.size for part in parts) // FRAME
    return max(1, min(THREADS_MAX, os.cpu_count() or 1, frames // 4))


def _each(work: Callable[[Slice], None], parts: Iterable[Slice], threads: int) -> None:
    """Do `work` for all parts; the first error ends it."""
    if threads == 1:
        for part in parts:
            work(part)
        return
    with ThreadPoolExecutor(threads, thread_name_prefix="combine") as pool:
        try:
            for done in [pool.submit(work, part) for part in parts]:
                done.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
