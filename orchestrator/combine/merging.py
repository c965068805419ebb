"""The combined delta of a shared slice, one frame at a time: the weighted mean, or what a robust rule makes of the sites'."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from commons.codec import FRAME, add_frame, decode_frame
from commons.exchange import Exchange
from commons.experts.map import Slice
from commons.names import SiteId
from commons.privacy.terms import Robust
from orchestrator.combine.contributions import Array, Bench, Contribution
from orchestrator.combine.distances import Distances
from orchestrator.combine.robust import combine_block, needs_distances, shares
from orchestrator.combine.unmasking import Opening, Unmasking
from orchestrator.combine.walking import blocks, each


@dataclass(frozen=True)
class Alone:
    """One update's own delta."""

    one: Contribution
    bench: Bench

    def delta(self, part: Slice, number: int, count: int) -> Array:
        """As `Mean.delta`."""
        frame = self.one.frames[part.name][number]
        return decode_frame(frame.part.plain, self.bench.read(self.one, frame), count, self.bench.mean)


@dataclass(frozen=True)
class RowsByOwner:
    """Every row of a router as the update of its expert's owner has it; zero where that did not come."""

    exchange: Exchange
    owners: Mapping[SiteId, Contribution]
    bench: Bench

    def delta(self, part: Slice, number: int, count: int) -> Array:
        """As `Mean.delta`."""
        first, out, expert_map = number * FRAME, self.bench.mean[:count], self.exchange.expert_map
        width = part.size // part.shape[0]
        out.fill(0)
        for site, one in self.owners.items():
            frame = one.frames[part.name][number]
            sent = decode_frame(frame.part.plain, self.bench.read(one, frame), count, self.bench.scratch)
            for expert in expert_map.experts_of(site):
                at = expert_map.index(expert) * width - first
                row = slice(max(0, at), max(0, at + width))
                out[row] = sent[row]
        return out


@dataclass(frozen=True)
class Mean:
    """Token-weighted. Sums run in order of `ordered`."""

    ordered: Sequence[Contribution]
    bench: Bench

    def delta(self, part: Slice, number: int, count: int) -> Array:
        """Of frame `number` of a slice; the thread's own memory, until its next call."""
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


class Believing:
    """By a robust rule: each thread holds one frame of every update. Made by `merging`."""

    def __init__(self, robust: Robust, ordered: Sequence[Contribution], bench: Bench) -> None:
        self._robust, self._ordered, self._bench = robust, ordered, bench
        self._rows = _Rows(len(ordered))
        self._counted: Array | None = None

    def measure(self, parts: Sequence[Slice], threads: int) -> None:
        """Read every update once where the rule needs norms or distances before the first frame is combined."""
        # All count alike: a weight is what a site says of itself, and a rule that believes it can be outweighed.
        weights = np.full(len(self._ordered), 1 / len(self._ordered))
        distances = Distances(len(self._ordered))
        if needs_distances(self._robust) or self._robust.rule == "norm_clip":
            for found in each(self._distances, parts, threads):
                distances.include(found)
        self._counted = shares(self._robust, weights, distances.norms(), distances)

    def delta(self, part: Slice, number: int, count: int) -> Array:
        """As `Mean.delta`."""
        out = self._bench.mean[:count]
        combine_block(self._robust, self._read(part.name, number, count), self._counted, out)
        return out

    def _distances(self, part: Slice) -> Distances:
        found = Distances(len(self._ordered))
        for number, (_, count) in enumerate(blocks(part.size)):
            found.add(self._read(part.name, number, count))
        return found

    def _read(self, name: str, number: int, count: int) -> Array:
        rows = self._rows.held[:, :count]
        for row, one in zip(self._rows.held, self._ordered, strict=True):
            frame = one.frames[name][number]
            decode_frame(frame.part.plain, self._bench.read(one, frame), count, row)
        return rows


Merge = Alone | RowsByOwner | Mean | Believing | Unmasking


class _Rows(threading.local):
    def __init__(self, n: int) -> None:
        self.held = np.empty((n, FRAME), np.float32)


def merging(
    rule: Robust | Opening | None,
    exchange: Exchange,
    ordered: Sequence[Contribution],
    owners: Mapping[SiteId, Contribution],
    bench: Bench,
    threads: int,
) -> Merge:
    """How what all sites send is combined. `owners`: by site, its newest. Raises StoreError when an update cannot be read."""
    if exchange.rows_by_owner:
        return RowsByOwner(exchange, owners, bench)
    if rule is None:
        return Mean(ordered, bench)
    if isinstance(rule, Opening):
        return Unmasking(rule, ordered, bench, exchange.shared)
    made = Believing(rule, ordered, bench)
    made.measure(exchange.shared, threads)
    return made
