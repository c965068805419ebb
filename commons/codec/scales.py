"""Scales: what the elements of one block are measured in before they are rounded to few bits.

A scale is the block's largest magnitude / the largest step, its mantissa cut so short that step x scale is exact. So a
decoded frame encodes to the same bytes. It is zero, and so is the whole block, below SMALLEST: far enough above the
subnormals that machines which flush those agree with those which do not.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from commons.codec.rules import (
    CELL,
    LARGEST,
    SCRATCH,
    Array,
    Bytes,
    CodecError,
    Words,
    check_magnitude,
    magnitudes,
)

SMALLEST = 2.0**-80
"""Smallest scale but zero."""

_SMALLEST_BITS = np.uint32(np.float32(SMALLEST).view(np.uint32))


@dataclass(frozen=True)
class Scales:
    """The rule of one codec's scales."""

    block: int
    """Elements that share one; divides CELL."""
    steps: float
    """The largest step."""
    mantissa: int
    """Bits of the scale's mantissa, the leading one among them."""

    def count(self, elements: int) -> int:
        return -(-elements // self.block)

    def divide(self, values: Array) -> tuple[Array, Array]:
        """The scales of at most a cell of values, at least one, and the values in units of them, in this thread's scratch.

        Raises CodecError for values that are not finite or beyond LARGEST.
        """
        largest: Words = np.maximum.reduceat(magnitudes(values), self._starts[: self.count(values.size)])
        check_magnitude(int(largest.max()), "cannot encode")
        scales = largest.view(np.float32) / np.float32(self.steps)
        bits = scales.view(np.uint32)
        np.bitwise_and(bits, self._cut, out=bits)
        bits[bits < _SMALLEST_BITS] = 0
        inverse = np.divide(np.float32(1), scales, out=np.zeros_like(scales), where=bits > 0)
        scaled = SCRATCH.scaled[: values.size]
        self.multiply(values, inverse, scaled)
        return scales, scaled

    def multiply(self, values: Array | NDArray[np.int8], factors: Array, out: Array) -> None:
        """Each element times its block's factor; `factors` may have more than are needed."""
        whole = values.size // self.block
        end = whole * self.block
        grid = out[:end].reshape(-1, self.block)
        np.multiply(values[:end].reshape(-1, self.block), factors[:whole, None], out=grid)
        if end < values.size:
            np.multiply(values[end:], factors[whole], out=out[end:])

    def check(self, scales: Array, codec: str) -> None:
        """Refuse scales that `divide` cannot give."""
        bits = scales.view(np.uint32)
        small = (bits < _SMALLEST_BITS) & (bits != 0)
        if small.any() or (bits > self._largest).any() or (bits & ~self._cut).any():
            raise CodecError(f"refused: an {codec} scale is negative, NaN, too large, too small or too fine")

    def check_zeros(self, scales: Array, data: Bytes, *, width: int, zero: int, codec: str) -> None:
        """Refuse a block of scale zero whose `width` bytes are not all `zero`."""
        empty = scales == 0
        if not empty.any():
            return
        whole = data.size // width
        end = whole * width
        wrong = (data[:end].reshape(-1, width)[empty[:whole]] != zero).any()
        if wrong or (empty[whole:].any() and (data[end:] != zero).any()):
            raise CodecError(f"refused: an {codec} block of scale zero holds more than zeros")

    @cached_property
    def _cut(self) -> np.uint32:
        cut: np.uint32 = np.uint32(0xFFFFFFFF << (24 - self.mantissa) & 0xFFFFFFFF)
        return cut

    @cached_property
    def _largest(self) -> np.uint32:
        largest: np.uint32 = np.float32(LARGEST / self.steps).view(np.uint32) & self._cut
        return largest

    @cached_property
    def _starts(self) -> NDArray[np.intp]:
        """Of the blocks of a cell."""
        return np.arange(0, CELL, self.block)
