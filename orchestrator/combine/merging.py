"""The combined delta of a shared slice, one frame at a time: the weighted mean, or what a robust rule makes of the sites'."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from commons.codec import FRAME, add_frame, decode_frame
from commons.exchange import Exchange
from commons.experts.map import Slice
from commons.names import SiteId
from commons.privacy.terms import Robust
from orchestrator.combine.contributions import Array, Bench, Contribution, Rows
from orchestrator.combine.distances import Distances
from orchestrator.combine.robust import combine_block, needs_distances, shares
from orchestrator.combine.unmasking import Opening, Unmasking
from orchestrator.combine.walking import each
from orchestrator.combine.weights import Shares, by_owner, by_routed, radial


@dataclass(frozen=True)
class Mean:
    """Weighted by tokens, but for slices that have weights of their own. Sums run in order of `ordered`."""

    ordered: Sequence[Contribution]
    bench: Bench
    shares: Mapping[str, Shares] = field(default_factory=dict)
    """By name of the slice."""

    def delta(self, part: Slice, number: int, count: int) -> Array:
        """Of frame `number` of a slice; the thread's own memory, until its next call."""
        if (shares := self.shares.get(part.name)) is not None:
            return self._by_shares(shares, part, number, count)
        bench, weights = self.bench, [c.weight for c in self.ordered]
        total, alike = sum(weights), len(set(weights)) == 1
        mean = bench.mean[:count]
        mean.fill(0)
        for one in self.ordered:
            frame = one.frames[part.name][number]
            share = 1.0 if alike else one.weight / total
            add_frame(frame.part.plain, bench.read(one, frame), count, share, mean, bench.scratch)
        if alike:  # one multiplication in place of one for each
            mean *= np.float32(1 / len(weights))
        return mean

    def _by_shares(self, shares: Shares, part: Slice, number: int, count: int) -> Array:
        bench, first, total = self.bench, number * FRAME, self.bench.mean[:count]
        total.fill(0)
        for one, share in zip(self.ordered, shares, strict=True):
            frame = one.frames[part.name][number]
            if not share.any():
                continue
            sent = decode_frame(frame.part.plain, bench.read(one, frame), count, bench.scratch)
            if share.ndim:
                width = part.size // part.shape[0]
                rows = np.arange(first, first + count) // width
                share = share[rows]
            total += sent * share
        return total


class Believing:
    """By a robust rule: each thread holds one frame of every update. Made by `merging`."""

    def __init__(self, robust: Robust, ordered: Sequence[Contribution], bench: Bench) -> None:
        self._robust, self._rows, self._bench = robust, Rows(ordered, bench), bench
        self._counted: Array | None = None

    def measure(self, parts: Sequence[Slice], threads: int) -> None:
        """Read every update once where the rule needs norms or distances before the first frame is combined."""
        # All count alike: a weight is what a site says of itself, and a rule that believes it can be outweighed.
        n = len(self._rows.ordered)
        weights, distances = np.full(n, 1 / n), Distances(n)
        if needs_distances(self._robust) or self._robust.rule == "norm_clip":
            for found in each(self._rows.distances, parts, threads):
                distances.include(found)
        self._counted = shares(self._robust, weights, distances.norms(), distances)

    def delta(self, part: Slice, number: int, count: int) -> Array:
        """As `Mean.delta`."""
        out = self._bench.mean[:count]
        combine_block(self._robust, self._rows.read(part, number, count), self._counted, out)
        return out


Merge = Mean | Believing | Unmasking


def merging(
    rule: Robust | Opening | None,
    exchange: Exchange,
    ordered: Sequence[Contribution],
    owners: Mapping[SiteId | None, Contribution],
    bench: Bench,
    threads: int,
) -> Merge:
    """How what all sites send is combined. `owners`: by site, its newest. Raises StoreError when an update cannot be read."""
    if exchange.rows_by_owner:
        return Mean(ordered, bench, by_owner(exchange, ordered, owners))
    if rule is None:
        learning = exchange.learning
        shares = by_routed(exchange, ordered) if learning.expert_weights == "routed" else {}
        if learning.merge == "radial":
            shares |= radial(exchange, ordered, Rows(ordered, bench), threads, shares)
        return Mean(ordered, bench, shares)
    if isinstance(rule, Opening):
        return Unmasking(rule, ordered, bench, exchange.shared)
    made = Believing(rule, ordered, bench)
    made.measure(exchange.shared, threads)
    return made
