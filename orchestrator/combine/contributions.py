"""Admitted updates as combining reads them: frame by frame, from any thread, into memory that is used again."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from commons.codec import FRAME
from commons.names import SiteId
from commons.updates import Frame, UpdateManifest

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
