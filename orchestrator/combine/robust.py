"""Combining shared slices when some of a round's updates may be anything (the charter's `[privacy.robust]`).

Two kinds of rule. By weights: norm clipping, (multi-)Krum and centred clipping all come to a weighted sum of the
updates, whose weights follow from norms or from distances taken in a first pass; the fold stays the ordinary one.
By element: median and trimmed mean look at all sites' values of one element. Either way one block of frames is held at
a time. Rows are in order of site name, so that nothing depends on who came first. An owner's experts are no matter of
these rules: there is nobody to compare with.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from commons.privacy.terms import Robust
from orchestrator.combine.distances import Distances
from orchestrator.combine.selection import middle_mean


def needs_distances(robust: Robust) -> bool:
    """Whether all frames must be read once before the first can be combined."""
    return robust.rule in ("krum", "multi_krum", "centred_clip")


def shares(
    robust: Robust,
    weights: NDArray[np.float64],
    norms: NDArray[np.float64],
    distances: Distances | None = None,
) -> NDArray[np.float32] | None:
    """What each update counts, [n], adding up to at most 1; None for a rule that goes by element.

    `weights`: [n], adding up to 1. `norms`: [n], each update's L2 norm over the shared slices. Krum and the rules by
    element count every update they keep the same: a weight is what its site says of itself.
    """
    match robust.rule:
        case "median" | "trimmed_mean":
            return None
        case "norm_clip":
            return (weights * _shrink(norms, robust.clip_norm or _median(norms))).astype(np.float32)
        case "krum" | "multi_krum":
            assert distances is not None, "krum goes by distances"
            return _krum(robust, distances)
        case "centred_clip":
            assert distances is not None, "the distances to the centre follow from those between the updates"
            return _centred(robust, weights, distances)


def combine_block(
    robust: Robust,
    blocks: NDArray[np.float32],
    counted: NDArray[np.float32] | None,
    out: NDArray[np.float32],
) -> None:
    """The combined delta of one run of elements, [count], into `out`. `counted`: what `shares` gave for the round.

    `blocks`: [n, count], the same elements of every update, finite; used up as scratch.
    """
    n = len(blocks)
    if counted is None:
        middle = (n - 1) // 2
        middle_mean(blocks, middle if robust.rule == "median" else min(robust.faulty, middle), out)
        return
    np.multiply(blocks[0], counted[0], out=out)
    for block, share in zip(blocks[1:], counted[1:], strict=True):
        np.multiply(block, share, out=block)
        out += block


def _krum(robust: Robust, distances: Distances) -> NDArray[np.float32]:
    n = len(distances.gram)
    # A round closes with enough updates for the rule, but the norm gate may have taken some of the faulty since.
    faulty = min(robust.faulty, max(0, (n - 3) // 2))
    found = np.zeros(n, np.float32)
    if n < 3:
        found[:] = 1 / n
        return found
    kept = 1 if robust.rule == "krum" else min(robust.kept or n - faulty, n - faulty)
    found[list(distances.chosen(faulty, kept))] = 1 / kept
    return found


def _centred(robust: Robust, weights: NDArray[np.float64], distances: Distances) -> NDArray[np.float32]:
    """Centred clipping (Karimireddy, He, Jaggi, arXiv 2012.10333) from the base on.

    The centre is a weighted sum of the updates at every step, so the steps are taken on its weights.
    """
    centre = np.zeros(len(weights))
    for _ in range(robust.iterations):
        apart = distances.to_mean(centre)
        pull = weights * _shrink(apart, robust.radius or _median(apart))
        centre = centre * (1 - pull.sum()) + pull
    return centre.astype(np.float32)


def _shrink(lengths: NDArray[np.float64], longest: float) -> NDArray[np.float64]:
    """The factors that make no length longer than `longest`."""
    return np.divide(longest, lengths, out=np.ones_like(lengths), where=lengths > longest)


def _median(values: NDArray[np.float64]) -> float:
    return float(np.median(values))
