"""What each update counts in the combined delta of a slice, where they do not all count by their tokens alone.

By row: a row of a router as its expert's owner has it, or by the tokens each site routed to that expert. By slice: radial-directional averaging (RDA, arXiv
2604.21428), which keeps the mean direction of the updates and their mean length. It is a weighted sum too, whose weights
follow from the inner products of the updates, so that two passes over them do in bounded memory.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from commons.exchange import Exchange
from commons.experts.map import ExpertMap, Kind, Slice
from commons.names import SiteId
from orchestrator.combine.contributions import Contribution, Rows
from orchestrator.combine.distances import Distances
from orchestrator.combine.walking import each

Shares = NDArray[np.float32]
"""[n], or [n, rows] where rows count apart; update m adds shares[m] times its delta."""
_NO_DIRECTION = 1e-6
"""A mean of unit vectors shorter than this points nowhere."""


def by_owner(
    exchange: Exchange, ordered: Sequence[Contribution], owners: Mapping[SiteId | None, Contribution]
) -> dict[str, Shares]:
    """Every router row by the newest update of its expert's owner; by none where that did not come."""
    expert_map = exchange.expert_map
    newest = [owners.get(expert_map.owners[expert]) for expert in expert_map.experts]
    rows = np.array([[one is owner for owner in newest] for one in ordered], np.float32)
    return {part.name: rows for part in exchange.shared}


def by_routed(exchange: Exchange, ordered: Sequence[Contribution]) -> dict[str, Shares]:
    """What belongs to an expert by the tokens that each update routed to it; by none where nobody routed any."""
    expert_map, found = exchange.expert_map, dict[str, Shares]()
    for part in exchange.shared:
        gates = part.kind is Kind.ROUTER and len(part.shape) == 2
        if part.layer not in expert_map.routed_layers or not (gates or part.expert):
            continue
        load = loads(expert_map, ordered, part.layer)
        sums = load.sum(0)
        shares = np.divide(load, sums, out=np.zeros_like(load), where=sums > 0).astype(np.float32)
        found[part.name] = shares[:, expert_map.index(part.expert)] if part.expert else shares
    return found


def nudges(exchange: Exchange, ordered: Sequence[Contribution]) -> dict[str, Shares]:
    """What the consortium's loads add to the selection biases, by slice: [experts] (balancing without an auxiliary loss,
    arXiv 2408.15664, here from the sum of what all sites routed)."""
    expert_map, rate = exchange.expert_map, exchange.learning.balance_rate
    found: dict[str, Shares] = {}
    for part in exchange.shared if rate else ():
        if part.kind is Kind.ROUTER and len(part.shape) == 1 and part.layer is not None:
            load = loads(expert_map, ordered, part.layer).sum(0)
            found[part.name] = (rate * np.sign(load.mean() - load)).astype(np.float32)
    return found


def loads(expert_map: ExpertMap, ordered: Sequence[Contribution], layer: int) -> NDArray[np.float64]:
    """[n, experts]: each update's weight, divided as it routed its tokens in that layer."""
    at = expert_map.routed_layers.index(layer)
    counts = np.array([one.update.manifest.routed[at] for one in ordered], np.float64)
    weights = np.array([one.weight for one in ordered], np.float64)
    divided: NDArray[np.float64] = counts * (weights / counts.sum(1))[:, None]
    return divided


def radial(
    exchange: Exchange,
    ordered: Sequence[Contribution],
    rows: Rows,
    threads: int,
    shares: Mapping[str, Shares],
) -> dict[str, Shares]:
    """Of the matrices that all sites send, but for embeddings. `shares`: what updates count where it is not by their tokens.

    Reads every update once; raises StoreError when one cannot be.
    """
    parts = [part for part in exchange.shared if stretched(part)]
    weights = np.array([one.weight for one in ordered], np.float64)
    weights /= weights.sum()
    found = dict(zip((part.name for part in parts), each(rows.distances, parts, threads), strict=True))
    return {
        name: along(distances, shares[name].astype(np.float64) if name in shares else weights).astype(
            np.float32
        )
        for name, distances in found.items()
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
