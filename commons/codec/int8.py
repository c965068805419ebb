"""int8: one fp32 scale per block of 256 elements, then one signed byte an element; element = step x scale.

Layout of a frame: the scales of its blocks, then the steps, -127..127, of its elements. A scale is the block's largest
magnitude / 127, cut to 16 bits of mantissa: so step x scale is exact, and a decoded frame encodes to the same bytes.
It is zero, and so are the block's steps, where it would be no normal fp32.

Error of an element: at most 1/253 of its block's largest magnitude, plus 2^-119.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from commons.codec.rules import (
    LARGEST,
    MAGNITUDE,
    SCRATCH,
    Array,
    Bytes,
    Cells,
    CodecError,
    FrameCodec,
    cells,
    check_bits,
)

BLOCK = 256
"""Elements that share one scale."""

_STEPS = np.float32(127)
_CUT = np.uint32(0xFFFFFF00)
"""Keeps sign, exponent and 16 bits of mantissa, the leading one among them."""
_NORMAL = np.uint32(0x00800000)
_SCALE_MAX = (np.float32(LARGEST) / _STEPS).view(np.uint32) & _CUT


class Int8(FrameCodec):
    def size(self, count: int) -> int:
        return 4 * blocks(count) + count

    def encode(self, values: Array) -> bytes:
        scales = np.empty(blocks(values.size), "<f4")
        steps = np.empty(values.size, np.int8)
        for part in cells(values.size):
            of = slice(part.start // BLOCK, blocks(part.stop))
            steps[part] = _quantise(values[part], scales[of])
        return scales.tobytes() + steps.tobytes()

    def open(self, data: Bytes, count: int) -> Cells:
        scales = data[: 4 * blocks(count)].view("<f4")
        steps = data[scales.nbytes :].view(np.int8)
        _check(scales, steps)

        def read(first: int, out: Array) -> None:
            whole = out.size // BLOCK * BLOCK
            block = first // BLOCK
            of = scales[block : block + whole // BLOCK, None]
            grid = out[:whole].reshape(-1, BLOCK)
            np.multiply(steps[first : first + whole].reshape(-1, BLOCK), of, out=grid)
            if whole < out.size:
                np.multiply(steps[first + whole : first + out.size], scales[-1], out=out[whole:])

        return read


def blocks(count: int) -> int:
    return -(-count // BLOCK)


def _quantise(values: Array, scales: Array) -> Array:
    """The steps, as floats in this thread's scratch; writes the scales."""
    padded = scales.size * BLOCK
    bits, work = SCRATCH.bits[:padded], SCRATCH.work[:padded]
    np.bitwise_and(values.view(np.int32), MAGNITUDE, out=bits[: values.size])
    bits[values.size :] = 0
    largest = bits.reshape(-1, BLOCK).max(axis=1)
    check_bits(int(largest.max()), "cannot encode")
    np.divide(largest.view(np.float32), _STEPS, out=scales)
    cut = scales.view(np.uint32)
    np.bitwise_and(cut, _CUT, out=cut)
    cut[cut < _NORMAL] = 0
    inverse = np.divide(np.float32(1), scales, out=np.zeros_like(scales), where=cut > 0)
    work[: values.size] = values
    grid = work.reshape(-1, BLOCK)
    np.multiply(grid, inverse[:, None], out=grid)
    return np.rint(work, out=work)[: values.size]


def _check(scales: Array, steps: NDArray[np.int8]) -> None:
    if not steps.size:
        return
    bits = scales.view(np.uint32)
    zero = bits == 0
    if (bits > _SCALE_MAX).any() or ((bits < _NORMAL) & ~zero).any() or (bits & ~_CUT).any():
        raise CodecError("refused: an int8 scale is negative, NaN, infinite, subnormal or too fine")
    if steps.min() < -127:
        raise CodecError("refused: an int8 step is -128, which no encoder writes")
    for block in np.flatnonzero(zero):
        if steps[block * BLOCK : (block + 1) * BLOCK].any():
            raise CodecError("refused: an int8 block of scale zero has steps that are not zero")
