"""Order statistics across sites, element by element: rows of a block put in order by a comparator network.

Comparing whole rows with numpy's minimum and maximum costs a few passes over a block that stays in the cache;
partitioning each column on its own takes more than twenty times as long. Knows nothing of what the rows are.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

CHUNK = 16384
"""Columns at a time: with a dozen rows they fit the second-level cache."""


@dataclass(frozen=True)
class Comparator:
    """Puts the smaller of two rows first; `low` and `high`: whether anybody reads that row afterwards."""

    first: int
    second: int
    low: bool = True
    high: bool = True

    @property
    def passes(self) -> int:
        return self.low + self.high


def middle_mean(rows: NDArray[np.float32], trim: int, out: NDArray[np.float32]) -> None:
    """For every column the mean of what is left without its `trim` smallest and `trim` largest values.

    `rows`: [n, count], n > 2 * trim, finite; used up as scratch. `out`: [count]. With trim (n - 1) // 2 it is the
    median. The values left are added in an order that depends on n and trim alone, in fp32.
    """
    n, count = rows.shape
    assert n > 2 * trim >= 0 and out.shape == (count,), "something is left in the middle"
    network, share = _network(n, trim), np.float32(1 / (n - 2 * trim))
    spare = np.empty(min(CHUNK, count), np.float32)
    for start in range(0, count, CHUNK):
        lines = list(rows[:, start : start + CHUNK])
        free = spare[: lines[0].size]
        for step in network:
            a, b = lines[step.first], lines[step.second]
            if step.low and step.high:
                np.minimum(a, b, out=free)
                np.maximum(a, b, out=b)
                lines[step.first], free = free, a
            elif step.low:
                np.minimum(a, b, out=a)
            else:
                np.maximum(a, b, out=b)
        into = out[start : start + CHUNK]
        np.multiply(lines[trim], share, out=into)
        for line in lines[trim + 1 : n - trim]:
            np.multiply(line, share, out=line)
            into += line


@lru_cache(maxsize=256)
def _network(n: int, trim: int) -> tuple[Comparator, ...]:
    """The cheaper of two networks after which rows trim .. n - trim - 1 hold the middle values."""
    if not trim:
        return ()
    wanted = range(trim, n - trim)
    found = [_pruned(pairs, wanted) for pairs in (_merge_exchange(n), _peeling(n, trim))]
    return min(found, key=lambda network: sum(step.passes for step in network))


def _merge_exchange(n: int) -> list[tuple[int, int]]:
    """Batcher's sort of n rows (Knuth, volume 3, algorithm 5.2.2M)."""
    pairs = []
    p = top = 1 << (n - 1).bit_length() - 1
    while p:
        q, r, d = top, 0, p
        while True:
            pairs += [(i, i + d) for i in range(n - d) if i & p == r]
            if q == p:
                break
            d, q, r = q - p, q >> 1, p
        p >>= 1
    return pairs


def _peeling(n: int, trim: int) -> list[tuple[int, int]]:
    """The extremes moved outwards, `trim` times: better than sorting where little is trimmed of many rows."""
    pairs = []
    for low in range(trim):
        high = n - 1 - low
        inner = list(range(low, high + 1))
        half = len(inner) // 2
        pairs += [(inner[i], inner[-1 - i]) for i in range(half)]
        pairs += [(low, i) for i in range(low + 1, low + half + len(inner) % 2)]
        pairs += [(i, high) for i in range(high - half + 1 - len(inner) % 2, high)]
    return pairs


def _pruned(pairs: list[tuple[int, int]], wanted: range) -> tuple[Comparator, ...]:
    """Without what no wanted row depends on."""
    read, kept = set(wanted), list[Comparator]()
    for first, second in reversed(pairs):
        if read & {first, second}:
            kept.append(Comparator(first, second, low=first in read, high=second in read))
            read |= {first, second}
    return tuple(reversed(kept))
