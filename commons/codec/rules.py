"""What all codecs keep to: which values they take, how they refuse, in what portions they work.

Little-endian throughout, elements in C order. Only elementwise IEEE operations decide what is written and read, so
the same bytes decode to the same values on every machine.
"""

from __future__ import annotations

import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

if sys.byteorder != "little":
    raise ImportError(
        "commons.codec reads and writes little-endian words in place: this machine is big-endian"
    )

Array = NDArray[np.float32]
Bytes = NDArray[np.uint8]
Cells = Callable[[int, Array], None]
"""(first, out): decodes the elements from `first`, a multiple of CELL, into `out`, at most CELL of them."""

LARGEST = 3.3895313892515355e38
"""Largest magnitude of any codec: the largest finite bf16."""
CELL = 1 << 16
"""Elements worked on at a time: what is made of them on the way stays in the cache."""
MAGNITUDE = np.int32(0x7FFFFFFF)
"""Mask of an fp32's bits without its sign. So masked they order as the magnitudes do, infinity and NaN above all."""

_LARGEST_BITS = int(np.float32(LARGEST).view(np.int32))
_ROW = 1 << 13
"""Elements of one BLAS product: fewer than it would spread over threads of its own."""
_EXACT_BELOW = 1e-20
"""Sums of squares below this may have lost squares to underflow."""


class CodecError(ValueError):
    """These bytes, or these values, are no tensor of this codec. The message says which rule they break."""


class FrameCodec(ABC):
    """One codec. Frames come in with their right length, values contiguous; `frames` sees to both."""

    @abstractmethod
    def size(self, count: int) -> int:
        """Bytes of a frame of `count` elements."""

    @abstractmethod
    def encode(self, values: Array) -> bytes:
        """Raises CodecError for NaN, infinity and magnitudes beyond LARGEST."""

    @abstractmethod
    def open(self, data: Bytes, count: int) -> Cells:
        """How to read this frame. It or the reading raises CodecError for what `encode` cannot write."""

    def decode(self, data: Bytes, out: Array) -> None:
        read = self.open(data, out.size)
        for first in range(0, out.size, CELL):
            read(first, out[first : first + CELL])

    def squares(self, data: Bytes, count: int) -> float:
        """Sum of the squares of what it decodes to."""
        read, total = self.open(data, count), 0.0
        for first in range(0, count, CELL):
            cell = SCRATCH.cell[: min(CELL, count - first)]
            read(first, cell)
            total += sum_of_squares(cell, "refused")
        return total

    def add(self, data: Bytes, weight: np.float32, total: Array, scratch: Array) -> None:
        """total += weight * decoded, the product and the sum rounded to fp32."""
        read = self.open(data, total.size)
        for first in range(0, total.size, CELL):
            part = total[first : first + CELL]
            cell = scratch[: part.size]
            read(first, cell)
            if weight != 1:
                np.multiply(cell, weight, out=cell)
            np.add(part, cell, out=part)


class _Scratch(threading.local):
    """One thread's reused memory; nothing in it outlives a call."""

    def __init__(self) -> None:
        self.cell = np.empty(CELL, np.float32)
        self.work = np.empty(CELL, np.float32)
        self.bits = self.work.view(np.int32)
        """The same memory as `work`."""
        self.halves = np.empty(CELL, np.uint16)


SCRATCH = _Scratch()


def cells(count: int) -> Iterator[slice]:
    """The portions of `count` elements, in order."""
    return (slice(first, min(first + CELL, count)) for first in range(0, count, CELL))


def sum_of_squares(values: Array, verb: str) -> float:
    """Within 1e-5 of the true sum. `verb` begins the CodecError for NaN, infinity and magnitudes beyond LARGEST."""
    rows = values[: values.size // _ROW * _ROW].reshape(-1, _ROW)
    rest = values[rows.size :]
    with np.errstate(over="ignore", invalid="ignore"):
        # A finite sum of squares proves every element finite and far below LARGEST, at the price of one read.
        total = float(np.vecdot(rows, rows).sum(dtype=np.float64)) + float(np.dot(rest, rest))
    if _EXACT_BELOW < total < np.inf:
        return total
    check_bits(int(largest_bits(values)), verb)
    pieces = (values[first : first + _ROW].astype(np.float64) for first in range(0, values.size, _ROW))
    return float(sum(np.dot(piece, piece) for piece in pieces))


def largest_bits(values: Array) -> int:
    """The bits of the largest magnitude; NaN counts as the largest of all."""
    bits = values.view(np.int32)
    return max((int((bits[part] & MAGNITUDE).max()) for part in cells(values.size)), default=0)


def check_bits(largest: int, verb: str) -> None:
    """Refuse a magnitude beyond LARGEST, given as fp32 bits."""
    if largest > _LARGEST_BITS:
        what = "NaN" if largest > 0x7F800000 else "infinity, or nearly so"
        raise CodecError(f"{verb}: the tensor holds {what}")
