"""What each update counts in the combined delta of a slice, where they do not all count by their tokens alone.

Two kinds. By row: a row of a router as its expert's owner has it. By slice: radial-directional averaging (RDA, arXiv
2604.21428), which keeps the mean direction of the updates and their mean length. It is a weighted sum too, whose weights
follow from the inner products of the updates, so that two passes over them do in bounded memory.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from commons.exchange import Exchange
from commons.experts.map import Kind, Slice
from commons.names import SiteId
from orchestrator.combine.contributions import Contribution, Rows
from orchestrator.combine.distances import Distances
from orchestrator.combine.walking import each

Shares = NDArray[np.float32]
"""[n], or [n, rows] where rows count apart; update m adds shares[m] times its delta."""
_NO_DIRECTION = 1e-6
"""A mean of unit vectors shorter than this points nowhere."""


def by_owner(
    exchange: Exchange, ordered: Sequence[Contribution], owners: Mapping[SiteId, Contribution]
) -> dict[str, Shares]:
    """Every router row by the newest update of its expert's owner; by none where that did not come."""
    expert_map = exchange.expert_map
    newest = [owners.get(expert_map.owners[expert]) for expert in expert_map.experts]
    rows = np.array([[one is owner for owner in newest] for one in ordered], np.float32)
    return {part.name: rows for part in exchange.shared}


def radial(
    exchange: Exchange, ordered: Sequence[Contribution], rows: Rows, threads: int
) -> dict[str, Shares]:
    """Of the matrices that all sites send, but for embeddings. Reads every update once; raises StoreError when one cannot be."""
    parts = [part for part in exchange.shared if stretched(part)]
    weights = np.array([one.weight for one in ordered], np.float64)
    weights /= weights.sum()
    found = each(rows.distances, parts, threads)
    return {
        part.name: along(distances, weights).astype(np.float32)
        for part, distances in zip(parts, found, strict=True)
    }


def stretched(part: Slice) -> bool:
    """Whether radial averaging is for that slice."""
    return part.kind in (Kind.TRUNK_MATRIX, Kind.EXPERT) and "embed" not in part.name


def along(distances: Distances, weights: NDArray[np.float64], *, share: float = 1.0) -> NDArray[np.float64]:
    """[n] weights of the sum that points where the mean of the unit vectors points, and is as long as the updates are in the
    mean; the `weights` themselves where no direction is to be had.

    `weights`: [n], adding up to 1. `share`: how far the length goes, geometrically, from that of the plain mean (0) to the
    mean length (1).
    """
    gram, norms = distances.gram, distances.norms()
    short = _length(gram, weights)
    if norms.min() <= 0 or short <= 0:
        return weights
    units = weights / norms
    if (size := _length(gram, units)) < _NO_DIRECTION:
        return weights
    length = float(short ** (1 - share) * (weights @ norms) ** share)
    return units * (length / size)


def _length(gram: NDArray[np.float64], weights: NDArray[np.float64]) -> float:
    """Of the weighted sum."""
    return math.sqrt(max(0.0, float(weights @ gram @ weights)))
