"""Folding updates into the next state, frame by frame.

What all sites send (`commons.exchange`: as a rule trunk and router): the mean of the contributors' deltas, weighted by
tokens, through the outer step; or what the charter's robust rule makes of them (`merging`). An expert's slices that are its
owner's alone: base plus the owner's delta, or what the charter's outer step for experts makes of it; the base as it is when
the owner did not contribute. A slice that no update holds stays, and so does what belongs to it.
What sites can build from the base they hold is written as a step beside the slice: shared matrices in the charter's
`down` codec, with what it drops added to the next round's step; experts in the frames their owner sent.
Memory: a few frames per thread, whatever the number of sites and the size of the model. Sums run in order of site
name, in fp32, so the result depends neither on who came first nor on the number of threads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

from typing_extensions import Self

from commons.codec import add_frame, decode_frame, encode_frame, encode_with_feedback, encoded_bytes
from commons.exchange import Exchange
from commons.experts.map import Kind, Slice
from commons.learning import Codec
from commons.names import Digest, SiteId
from commons.privacy.terms import Robust
from commons.states import Blob, BlobReader, BlobWriter, SliceWriter, StateStore, StateWriter, Step
from orchestrator.combine.contributions import Array, Bench, Contribution
from orchestrator.combine.merging import Mean, Merge, merging
from orchestrator.combine.outer import outer_step
from orchestrator.combine.unmasking import Opening, Unmoved
from orchestrator.combine.walking import blocks, each, threads_for
from orchestrator.combine.weights import nudges

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
    exchange: Exchange,
    contributions: Sequence[Contribution],
    rule: Robust | Opening | Unmoved | None = None,
    threads: int | None = None,
) -> Combined:
    """Compute and save the next state; durable on return. A repeat writes the same bytes.

    `rule`: how slices that all sites send are combined; None: by their mean. Raises StoreError when the disk is full or the base is damaged; nothing but unused blobs is left then.
    """
    assert contributions, "a round combines at least one update"
    ordered = sorted(contributions, key=lambda c: (c.site, -c.late))
    memory = store.manifest(momentum) if momentum else {}
    expert_map, learning = exchange.expert_map, exchange.learning
    threads = threads or threads_for(expert_map.slices)
    bench = Bench()
    # Of a site's late update and its own of the round, the later one has what the earlier did to its experts.
    owners: dict[SiteId | None, Contribution] = {c.site: c for c in ordered}
    merge = None if isinstance(rule, Unmoved) else merging(rule, exchange, ordered, owners, bench, threads)
    with store.writer() as state, store.writer() as after:
        nudged = nudges(exchange, ordered)
        fold = _Fold(store, store.manifest(base), memory, exchange, nudged, state, after, bench)

        def one(part: Slice) -> None:
            owner = (
                owners.get(expert_map.owners[part.expert])
                if part.expert and part.name in exchange.due
                else None
            )
            if exchange.by_all(part) and merge is not None:
                fold.merged(part, merge)
            elif owner is not None and not exchange.by_all(part):
                if exchange.owners_keep:
                    fold.expert(part, owner)
                else:
                    fold.merged(part, Mean([owner], bench))
            else:
                fold.stay(part)

        each(one, expert_map.slices, threads)
        momentum_kept = learning.outer.momentum or learning.expert_outer.momentum
        kept = after.finish() if momentum_kept or learning.codecs.down != "fp32" else None
        late = frozenset(c.site for c in ordered if c.late)
        in_time = frozenset(c.site for c in ordered if not c.late)
        return Combined(state.finish(), kept, in_time, late, merge is not None)


@dataclass(frozen=True)
class _Fold:
    store: StateStore
    blobs: dict[str, Blob]
    memory: dict[str, Blob]
    exchange: Exchange
    nudges: Mapping[str, Array]
    """Added to a slice whatever it moves by."""
    state: StateWriter
    after: StateWriter
    bench: Bench

    def merged(self, part: Slice, merge: Merge) -> None:
        bench, blob, outer = self.bench, self.blobs[part.name], self.exchange.outer(part)
        matrix = part.kind in (Kind.TRUNK_MATRIX, Kind.EXPERT)
        codec = self.exchange.codecs.down if matrix else "fp32"
        new, frames = self.state.slice(part.name, part.shape), _frames(self.state, codec)
        with ExitStack() as stack:
            base = stack.enter_context(self.store.open(blob))
            momentum = stack.enter_context(self._kept(part.name, part, wanted=outer.momentum > 0))
            residual = stack.enter_context(self._kept(f"residual/{part.name}", part, wanted=codec != "fp32"))
            for number, (first, count) in enumerate(blocks(part.size)):
                mean = merge.delta(part, number, count)
                velocity = momentum.read(first, bench.velocity[:count]) if outer.momentum else None
                move, velocity = outer_step(mean, velocity, outer)
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
                if part.name in self.nudges:
                    weights += self.nudges[part.name][first : first + count]
                new.write(weights)
        new.close(_step(blob, codec, frames))

    def stay(self, part: Slice) -> None:
        name, learning = part.name, self.exchange.learning
        self.state.keep(name, replace(self.blobs[name], step=None))
        wanted = {
            name: self.exchange.outer(part).momentum > 0,
            f"residual/{name}": learning.codecs.down != "fp32",
        }
        for kept in (one for one, is_wanted in wanted.items() if is_wanted):
            if kept in self.memory:
                self.after.keep(kept, self.memory[kept])

    def expert(self, part: Slice, owner: Contribution) -> None:
        blob, bench = self.blobs[part.name], self.bench
        sent = owner.frames[part.name]
        codec = sent[0].part.plain if sent[0].part.plain != "fp32" else self.exchange.codecs.down
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
                add_frame(codec, data, count, 1.0, weights, bench.scratch)
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
