"""How far the updates of a round are from each other: their Gram matrix, added up frame by frame.

Norms, distances between updates, and distances to any weighted mean of them all follow from it, so that no rule reads
the updates more than twice, whatever their size.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_CHUNK = 4096
"""Columns turned to float64 at a time."""


class Distances:
    """Inner products of n updates, in float64. Rows stand in order of site name, everywhere the same."""

    def __init__(self, n: int) -> None:
        self._gram = np.zeros((n, n))
        self._wide = np.empty((n, _CHUNK))

    @property
    def gram(self) -> NDArray[np.float64]:
        """[n, n]; entry (i, j) is the inner product of updates i and j."""
        return self._gram

    def add(self, block: NDArray[np.float32]) -> None:
        """Account for the same run of elements of every update: [n, count], any cut, no element twice."""
        for start in range(0, block.shape[1], _CHUNK):
            part = block[:, start : start + _CHUNK]
            wide = self._wide[:, : part.shape[1]]
            wide[...] = part
            self._gram += wide @ wide.T

    def include(self, other: Distances) -> None:
        """Account for all that `other` has: other slices of the same updates. To get the same bits, in the same order."""
        self._gram += other._gram

    def norms(self) -> NDArray[np.float64]:
        """L2 norm of each update."""
        return np.sqrt(np.diagonal(self._gram))

    def squared(self) -> NDArray[np.float64]:
        """[n, n] squared L2 distances between the updates."""
        squares = np.diagonal(self._gram)
        return np.maximum(squares[:, None] + squares[None, :] - 2 * self._gram, 0.0)

    def to_mean(self, shares: NDArray[np.float64]) -> NDArray[np.float64]:
        """L2 distance of each update to sum(shares * updates)."""
        along = self._gram @ shares
        squared = np.diagonal(self._gram) - 2 * along + shares @ along
        return np.sqrt(np.maximum(squared, 0.0))

    def chosen(self, faulty: int, kept: int) -> tuple[int, ...]:
        """The `kept` updates closest to their n - faulty - 2 nearest neighbours, as indices in rising order.

        Krum where `kept` is 1, else multi-Krum (Blanchard et al., NeurIPS 2017). Of equals, the first by name.
        """
        n = len(self._gram)
        neighbours = n - faulty - 2
        assert neighbours >= 1 and 1 <= kept <= n, "the charter's schema holds n >= 2 * faulty + 3"
        apart = self.squared()
        np.fill_diagonal(apart, np.inf)
        scores = np.sort(apart, axis=1)[:, :neighbours].sum(axis=1)
        return tuple(sorted(int(i) for i in np.argsort(scores, kind="stable")[:kept]))
