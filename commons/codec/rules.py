"""What all codecs keep to: which values they take, how they refuse, in what portions they work.

Little-endian throughout, elements in C order. Only elementwise IEEE operations on normal numbers decide what is
written and read, so the same values give the same bytes, and these the same values, on every machine.
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
Words = NDArray[np.int32]
Encoded = bytes | memoryview
Cells = Callable[[int, Array], None]
"""(first, out): decodes the elements from `first`, a multiple of CELL, into `out`, at most CELL of them."""

LARGEST = 3.3895313892515355e38
"""Largest magnitude of any codec: the largest finite bf16."""
CELL = 1 << 16
"""Elements worked on at a time: what is made of them on the way stays in the cache."""

_MAGNITUDE = np.int32(0x7FFFFFFF)
_INFINITE = 0x7F800000
_LARGEST_BITS = int(np.float32(LARGEST).view(np.int32))
_ROW = 1 << 13
"""Elements of one BLAS product: fewer than it would spread over threads of its own."""
_EXACT_BELOW = 1e-20
"""Sums of squares below this may have lost squares to underflow."""


class CodecError(ValueError):
    """These bytes, or these values, are no tensor of this codec. The message says which rule they break."""


class FrameCodec(ABC):
    """One codec. Frames come in with their right length, values contiguous; `frames` sees to both.

    Reading raises CodecError for what `encode` cannot write.
    """

    @abstractmethod
    def size(self, count: int) -> int:
        """Bytes of a frame of `count` elements."""

    @abstractmethod
    def encode(self, values: Array) -> Encoded:
        """Raises CodecError for NaN, infinity and magnitudes beyond LARGEST."""

    @abstractmethod
    def decode(self, data: Bytes, out: Array) -> None:
        """Fills `out`, which has the frame's count of elements."""

    @abstractmethod
    def squares(self, data: Bytes, count: int) -> float:
        """Sum of the squares of what it decodes to."""

    @abstractmethod
    def add(self, data: Bytes, weight: np.float32, total: Array, scratch: Array) -> None:
        """total += weight * decoded, the product and the sum rounded to fp32."""


class DenseCodec(FrameCodec):
    """Every element is sent, so a frame can be read a cell at a time."""

    @abstractmethod
    def open(self, data: Bytes, count: int) -> Cells:
        """How to read this frame. What is wrong with it comes out here or while reading."""

    def decode(self, data: Bytes, out: Array) -> None:
        read = self.open(data, out.size)
        for part in cells(out.size):
            read(part.start, out[part])

    def squares(self, data: Bytes, count: int) -> float:
        read, total = self.open(data, count), 0.0
        for part in cells(count):
            values = SCRATCH.values[: part.stop - part.start]
            read(part.start, values)
            total += sum_of_squares(values, "refused")
        return total

    def add(self, data: Bytes, weight: np.float32, total: Array, scratch: Array) -> None:
        read = self.open(data, total.size)
        for part in cells(total.size):
            values = scratch[: part.stop - part.start]
            read(part.start, values)
            if weight != 1:
                np.multiply(values, weight, out=values)
            np.add(total[part], values, out=total[part])


class _Scratch(threading.local):
    """One thread's reused memory, a cell each; nothing in it outlives a call."""

    def __init__(self) -> None:
        self.values = np.empty(CELL, np.float32)
        self.scaled = np.empty(CELL, np.float32)
        self.magnitudes = np.empty(CELL, np.int32)
        self.steps = np.empty(CELL, np.int32)
        self.halves = np.empty(CELL, np.uint16)
        self.more_halves = np.empty(CELL, np.uint16)
        self.bytes = np.empty(CELL, np.uint8)
        self.marks = np.empty(CELL, np.bool_)


SCRATCH = _Scratch()


def cells(count: int) -> Iterator[slice]:
    """The portions of `count` elements, in order."""
    return (slice(first, min(first + CELL, count)) for first in range(0, count, CELL))


def magnitudes(values: Array) -> Words:
    """The bits without the sign, in this thread's scratch: they order as magnitudes do, infinity and NaN on top."""
    bits = SCRATCH.magnitudes[: values.size]
    np.bitwise_and(values.view(np.int32), _MAGNITUDE, out=bits)
    return bits


def check_magnitude(bits: int, verb: str) -> None:
    """Refuse a magnitude, given as its bits, beyond LARGEST. `verb` begins the message."""
    if bits > _LARGEST_BITS:
        what = "NaN" if bits > _INFINITE else "infinity, or nearly so"
        raise CodecError(f"{verb}: the tensor holds {what}")


def sum_of_squares(values: Array, verb: str) -> float:
    """Within 1e-5 of the true sum. Raises CodecError for what is beyond LARGEST."""
    rows = values[: values.size // _ROW * _ROW].reshape(-1, _ROW)
    rest = values[rows.size :]
    with np.errstate(over="ignore", invalid="ignore"):
        # A finite sum of squares proves every element finite and far below LARGEST, at the price of one read.
        total = float(np.vecdot(rows, rows).sum(dtype=np.float64)) + float(np.dot(rest, rest))
    if _EXACT_BELOW < total < np.inf:
        return total
    return sum(_wide_sum(values[part], verb) for part in cells(values.size))


def _wide_sum(values: Array, verb: str) -> float:
    """Of at most a cell, whatever it holds."""
    check_magnitude(int(magnitudes(values).max(initial=0)), verb)
    wide = values.astype(np.float64)
    return float(np.dot(wide, wide))
