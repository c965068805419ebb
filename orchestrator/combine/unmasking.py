"""The combined delta of a shared slice that nobody but everybody can read: masked updates added up, masks taken away."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from commons.codec import FRAME
from commons.experts.map import Slice
from commons.masking import FixedPoint, Stream, Unmasker, add_words
from orchestrator.combine.contributions import Array, Bench, Contribution


@dataclass(frozen=True)
class Opening:
    """What makes the sum of a round's masked updates readable, and of no single one."""

    streams: tuple[Stream, ...]
    fixed: FixedPoint


@dataclass(frozen=True)
class Unmoved:
    """Too few sites were left to open the sum: shared slices and their momentum stay as they are."""


class Unmasking:
    """The mean of the survivors' updates, each of which counts the same. Sums of words are exact in any order."""

    def __init__(
        self, opening: Opening, ordered: Sequence[Contribution], bench: Bench, parts: Sequence[Slice]
    ) -> None:
        """`parts`: all shared slices, in order of name."""
        self._fixed, self._ordered, self._bench = opening.fixed, ordered, bench
        self._numbers = {part.name: number for number, part in enumerate(parts)}
        self._mine = _Mine(opening.streams)

    def delta(self, part: Slice, number: int, count: int) -> Array:
        """Of frame `number` of a slice; the thread's own memory, until its next call."""
        total = self._mine.total[:count]
        total.fill(0)
        for one in self._ordered:
            add_words(total, self._bench.read(one, one.frames[part.name][number]))
        self._mine.unmasker.frame(total, self._numbers[part.name], number)
        return self._fixed.mean(total, len(self._ordered), self._bench.mean)


class _Mine(threading.local):
    """Of one thread."""

    def __init__(self, streams: Sequence[Stream]) -> None:
        self.unmasker = Unmasker(streams)
        self.total = np.empty(FRAME, np.uint32)
