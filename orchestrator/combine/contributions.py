"""Admitted updates as combining reads them: frame by frame, from any thread, into memory that is used again."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from commons.codec import FRAME, decode_frame
from commons.experts.map import Slice
from commons.names import SiteId
from commons.updates import Frame, UpdateManifest
from orchestrator.combine.distances import Distances
from orchestrator.combine.walking import blocks

Array = NDArray[np.float32]
_FRAME_BYTES = 4 * FRAME


class Update(Protocol):
    """A whole update that can be read from any thread."""

    @property
    def manifest(self) -> UpdateManifest: ...

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` with the bytes of one frame of the payload, which begins at `offset`."""


@dataclass(frozen=True)
class Contribution:
    """One admitted update."""

    site: SiteId
    weight: float
    """Of its deltas in the shared slices; above 0."""
    update: Update
    late: int = 0
    """By how many rounds."""
    frames: dict[str, list[Frame]] = field(init=False, repr=False, compare=False)
    """By name of the slice."""

    def __post_init__(self) -> None:
        by_name: dict[str, list[Frame]] = {}
        for frame in self.update.manifest.frames:
            by_name.setdefault(frame.part.name, []).append(frame)
        object.__setattr__(self, "frames", by_name)


class Bench(threading.local):
    """What each thread works with: arrays of one frame."""

    def __init__(self) -> None:
        arrays = (np.empty(FRAME, np.float32) for _ in range(5))
        self.mean, self.scratch, self.base, self.velocity, self.residual = arrays
        self._raw = memoryview(bytearray(_FRAME_BYTES))

    def read(self, contribution: Contribution, frame: Frame) -> memoryview:
        """The frame's bytes, until the next call."""
        raw = self._raw[: frame.bytes]
        contribution.update.read_into(frame.offset, raw)
        return raw


class Rows:
    """The updates side by side, one frame of each: [n, count] in every thread."""

    def __init__(self, ordered: Sequence[Contribution], bench: Bench) -> None:
        self.ordered, self._bench, self._held = ordered, bench, _Held(len(ordered))

    def read(self, part: Slice, number: int, count: int) -> Array:
        """Frame `number` of a slice, a row for each update in order; the thread's own memory, until its next call."""
        for row, one in zip(self._held.rows, self.ordered, strict=True):
            frame = one.frames[part.name][number]
            decode_frame(frame.part.plain, self._bench.read(one, frame), count, row)
        return self._held.rows[:, :count]

    def distances(self, part: Slice) -> Distances:
        """Between the updates of that slice."""
        found = Distances(len(self.ordered))
        for number, (_, count) in enumerate(blocks(part.size)):
            found.add(self.read(part, number, count))
        return found


class _Held(threading.local):
    def __init__(self, n: int) -> None:
        self.rows = np.empty((n, FRAME), np.float32)
