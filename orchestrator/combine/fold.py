"""Folding updates into the next state, frame by frame.

Shared slices (trunk and router): the mean of the contributors' deltas, weighted by tokens, through the outer
step. An expert's slices: base plus its owner's delta, or the base as it is when the owner did not contribute.
What sites can build from the base they hold is written as a step beside the slice: matrices of the trunk in the charter's
`down` codec, with what it drops added to the next round's step; experts in the frames their owner sent.
Memory: a few frames per thread, whatever the number of sites and the size of the model. Sums run in order of site
name, in fp32, so the result depends neither on who came first nor on the number of threads.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from commons.charter import Codec, Outer
from commons.codec import FRAME, add_frame, decode_frame, encode_frame, encode_with_feedback, encoded_bytes
from commons.experts.map import ExpertMap, Kind, Slice
from commons.names import Digest, SiteId
from commons.states import Blob, BlobReader, BlobWriter, SliceWriter, StateStore, StateWriter, Step
from commons.updates import Frame, UpdateManifest
from orchestrator.combine.outer import outer_step

Array = NDArray[np.float32]
Data = bytes | memoryview
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
    """What the next round's combining starts from, kept like a state: momentum by the slice's name, what the way down
    dropped by ``residual/<name>``; None while there is none."""
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
    down: Codec = "fp32",
    threads: int | None = None,
) -> Combined:
    """Compute and save the next state; durable on return. A repeat writes the same bytes.

    `down`: codec of the step from `base`; fp32: sites fetch whole slices. Raises StoreError when the disk is full or the base is damaged; nothing but unused blobs is left then.
    """
    assert contributions, "a round combines at least one update"
    ordered = sorted(contributions, key=lambda c: c.site)
    memory = store.manifest(momentum) if momentum else {}
    with store.writer() as state, store.writer() as after:
        fold = _Fold(store, store.manifest(base), memory, outer, down, ordered, state, after)
        owners = {c.site: c for c in ordered}

        def one(part: Slice) -> None:
            if part.expert is None:
                fold.shared(part)
            else:
                fold.expert(part, owners.get(expert_map.owners[part.expert]))

        # Each slice is hashed by one thread, so the largest go first.
        parts = sorted(expert_map.slices, key=lambda part: -part.size)
        _each(one, parts, threads or _threads(parts))
        kept = after.finish() if outer.momentum or down != "fp32" else None
        return Combined(state.finish(), kept, frozenset(owners))


class _Bench(threading.local):
    """What each thread works with: arrays of one frame."""

    def __init__(self) -> None:
        arrays = (np.empty(FRAME, np.float32) for _ in range(5))
        self.mean, self.scratch, self.base, self.velocity, self.residual = arrays
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
    down: Codec
    ordered: Sequence[Contribution]
    state: StateWriter
    after: StateWriter
    bench: _Bench = field(default_factory=_Bench)

    def shared(self, part: Slice) -> None:
        bench, blob = self.bench, self.blobs[part.name]
        codec = self.down if part.kind is Kind.TRUNK_MATRIX else "fp32"
        new, frames = self.state.slice(part.name, part.shape), _frames(self.state, codec)
        with ExitStack() as stack:
            base = stack.enter_context(self.store.open(blob))
            momentum = stack.enter_context(self._kept(part.name, part, wanted=self.outer.momentum > 0))
            residual = stack.enter_context(self._kept(f"residual/{part.name}", part, wanted=codec != "fp32"))
            for number, (first, count) in enumerate(_blocks(part.size)):
                mean = self._mean(part.name, number, count)
                velocity = momentum.read(first, bench.velocity[:count]) if self.outer.momentum else None
                move, velocity = outer_step(mean, velocity, self.outer)
                momentum.write(velocity)
                dropped = residual.read(first, bench.residual[:count])
                if frames or dropped is not None:
                    data, rest = encode_with_feedback(codec, move, dropped)
                    move = decode_frame(codec, data, count, bench.scratch)
                    residual.write(rest)
                    if frames:
                        frames.write(data)
                weights = bench.base[:count]
                base.read_into(first, weights)
                weights += move
                new.write(weights)
        new.close(_step(blob, codec, frames))

    def expert(self, part: Slice, owner: Contribution | None) -> None:
        blob, bench = self.blobs[part.name], self.bench
        if owner is None:
            self.state.keep(part.name, replace(blob, step=None))
            return
        sent = owner.frames[part.name]
        codec = sent[0].part.codec if sent[0].part.codec != "fp32" else self.down
        new, frames = self.state.slice(part.name, part.shape), _frames(self.state, codec)
        with self.store.open(blob) as base:
            for frame, (first, count) in zip(sent, _blocks(part.size), strict=True):
                data: Data = bench.read(owner, frame)
                if codec != frame.part.codec:  # its owner's next delta makes up for what is dropped here
                    data = encode_frame(codec, decode_frame("fp32", data, count, bench.scratch))
                if frames:
                    frames.write(data)
                weights = bench.base[:count]
                base.read_into(first, weights)
                weights += decode_frame(codec, data, count, bench.scratch)
                new.write(weights)
        new.close(_step(blob, codec, frames))

    def _kept(self, name: str, part: Slice, *, wanted: bool) -> _Kept:
        before = self.memory.get(name)
        return _Kept(
            self.store.open(before) if before else None,
            self.after.slice(name, part.shape) if wanted else None,
        )

    def _mean(self, name: str, number: int, count: int) -> Array:
        bench, weights = self.bench, [c.weight for c in self.ordered]
        total, alike = sum(weights), len(set(weights)) == 1
        mean = bench.mean[:count]
        mean.fill(0)
        for one in self.ordered:
            frame = one.frames[name][number]
            share = 1.0 if alike else one.weight / total
            add_frame(frame.part.codec, bench.read(one, frame), count, share, mean, bench.scratch)
        if alike:  # one multiplication in place of one for each
            mean *= np.float32(1 / len(weights))
        return mean


@dataclass(frozen=True)
class _Kept:
    """A tensor of the memory beside a slice: what the last round left, and what this one leaves."""

    before: BlobReader | None
    after: SliceWriter | None

    def read(self, first: int, out: Array) -> Array | None:
        if self.before is None:
            return None
        self.before.read_into(first, out)
        return out

    def write(self, values: Array | None) -> None:
        if self.after is not None and values is not None:
            self.after.write(values)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if self.before is not None:
            self.before.close()
        if self.after is not None and kind is None:
            self.after.close()


def _frames(state: StateWriter, codec: Codec) -> BlobWriter | None:
    """Where the step's frames go; None when sites fetch the slice itself."""
    return None if codec == "fp32" else state.frames()


def _step(base: Blob, codec: Codec, frames: BlobWriter | None) -> Step | None:
    if frames is None:
        return None
    return Step(base.digest, codec, frames.close(), encoded_bytes(codec, base.shape))


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
