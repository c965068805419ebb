"""Folding updates into the next state, frame by frame.

Shared slices (trunk and router): the mean of the contributors' deltas, weighted by tokens, through the outer
step; or what the charter's robust rule makes of them (`merging`). An expert's slices: base plus its owner's delta, or the
base as it is when the owner did not contribute.
What sites can build from the base they hold is written as a step beside the slice: matrices of the trunk in the charter's
`down` codec, with what it drops added to the next round's step; experts in the frames their owner sent.
Memory: a few frames per thread, whatever the number of sites and the size of the model. Sums run in order of site
name, in fp32, so the result depends neither on who came first nor on the number of threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

from typing_extensions import Self

from commons.codec import decode_frame, encode_frame, encode_with_feedback, encoded_bytes
from commons.experts.map import ExpertMap, Kind, Slice
from commons.learning import Codec, Outer
from commons.names import Digest, SiteId
from commons.privacy.terms import Robust
from commons.states import Blob, BlobReader, BlobWriter, SliceWriter, StateStore, StateWriter, Step
from orchestrator.combine.contributions import Array, Bench, Contribution
from orchestrator.combine.merging import Believing, Mean, merging
from orchestrator.combine.outer import outer_step
from orchestrator.combine.unmasking import Opening, Unmasking, Unmoved
from orchestrator.combine.walking import blocks, each, threads_for

Data = bytes | memoryview


@dataclass(frozen=True)
class Combined:
    state: Digest
    momentum: Digest | None
    """What the next round's combining starts from, kept like a state: momentum by the slice's name, what the way down
    dropped by ``residual/<name>``; None while there is none."""
    sites: frozenset[SiteId]
    """Whose updates of the round are in it."""
    late: frozenset[SiteId] = frozenset()
    """Whose late updates are."""
    moved: bool = True
    """Whether shared slices moved."""


def combine(
    store: StateStore,
    *,
    base: Digest,
    momentum: Digest | None,
    expert_map: ExpertMap,
    outer: Outer,
    contributions: Sequence[Contribution],
    down: Codec = "fp32",
    rule: Robust | Opening | Unmoved | None = None,
    threads: int | None = None,
) -> Combined:
    """Compute and save the next state; durable on return. A repeat writes the same bytes.

    `down`: codec of the step from `base`; fp32: sites fetch whole slices. `rule`: how shared slices are combined; None: by
    their mean. Raises StoreError when the disk is full or the base is damaged; nothing but unused blobs is left then.
    """
    assert contributions, "a round combines at least one update"
    ordered = sorted(contributions, key=lambda c: (c.site, -c.late))
    memory = store.manifest(momentum) if momentum else {}
    threads = threads or threads_for(expert_map.slices)
    bench = Bench()
    shared = expert_map.shared()
    merge = None if isinstance(rule, Unmoved) else merging(rule, ordered, bench, shared, threads)
    with store.writer() as state, store.writer() as after:
        fold = _Fold(store, store.manifest(base), memory, outer, down, merge, state, after, bench)
        # Of a site's late update and its own of the round, the later one has what the earlier did to its experts.
        owners = {c.site: c for c in ordered}

        def one(part: Slice) -> None:
            if part.expert is None:
                fold.shared(part)
            else:
                owner = expert_map.owners[part.expert]
                fold.expert(part, owners.get(owner) if owner else None)

        each(one, expert_map.slices, threads)
        kept = after.finish() if outer.momentum or down != "fp32" else None
        late = frozenset(c.site for c in ordered if c.late)
        in_time = frozenset(c.site for c in ordered if not c.late)
        return Combined(state.finish(), kept, in_time, late, merge is not None)


@dataclass(frozen=True)
class _Fold:
    store: StateStore
    blobs: dict[str, Blob]
    memory: dict[str, Blob]
    outer: Outer
    down: Codec
    merge: Mean | Believing | Unmasking | None
    """None: shared slices stay."""
    state: StateWriter
    after: StateWriter
    bench: Bench

    def shared(self, part: Slice) -> None:
        bench, blob, merge = self.bench, self.blobs[part.name], self.merge
        if merge is None:
            self._stay(part.name, blob)
            return
        codec = self.down if part.kind is Kind.TRUNK_MATRIX else "fp32"
        new, frames = self.state.slice(part.name, part.shape), _frames(self.state, codec)
        with ExitStack() as stack:
            base = stack.enter_context(self.store.open(blob))
            momentum = stack.enter_context(self._kept(part.name, part, wanted=self.outer.momentum > 0))
            residual = stack.enter_context(self._kept(f"residual/{part.name}", part, wanted=codec != "fp32"))
            for number, (first, count) in enumerate(blocks(part.size)):
                mean = merge.delta(part.name, number, count)
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

    def _stay(self, name: str, blob: Blob) -> None:
        self.state.keep(name, replace(blob, step=None))
        for kept in (name, f"residual/{name}"):
            if kept in self.memory:
                self.after.keep(kept, self.memory[kept])

    def expert(self, part: Slice, owner: Contribution | None) -> None:
        blob, bench = self.blobs[part.name], self.bench
        if owner is None:
            self._stay(part.name, blob)
            return
        sent = owner.frames[part.name]
        codec = sent[0].part.plain if sent[0].part.plain != "fp32" else self.down
        new, frames = self.state.slice(part.name, part.shape), _frames(self.state, codec)
        with self.store.open(blob) as base:
            for frame, (first, count) in zip(sent, blocks(part.size), strict=True):
                data: Data = bench.read(owner, frame)
                if codec != frame.part.plain:  # its owner's next delta makes up for what is dropped here
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
