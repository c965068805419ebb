"""int4: one bf16 scale per block of 64 elements, then half a byte an element; element = (code - 8) x scale.

Layout of a frame: the scales of its blocks; then its elements' codes, 1..15, two a byte, the first in the low half.
After an odd number of elements the last high half is 8. 0.53125 bytes an element.

The scale is bf16 and not fp16, which is subnormal for a block whose largest magnitude is below 4e-4, as deltas are.

Error of an element: at most 1/13.99 of its block's largest magnitude, plus 2^-77.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from commons.codec.rules import SCRATCH, Array, Bytes, Cells, CodecError, DenseCodec, cells
from commons.codec.scales import Scales

SCALES = Scales(block=64, steps=7, mantissa=8)

_ZERO = 8
"""Code of a zero."""
_ROUNDER = np.float32(1.5 * 2**23 + _ZERO)
"""Added to a small number it leaves the nearest whole one, plus `_ZERO`, in the low bits of the sum."""


class Int4(DenseCodec):
    def size(self, count: int) -> int:
        return 2 * SCALES.count(count) + -(-count // 2)

    def encode(self, values: Array) -> bytes:
        frame = np.empty(self.size(values.size), np.uint8)
        scales, data = _split(frame, values.size)
        for part in cells(values.size):
            first, pairs = part.start // SCALES.block, slice(part.start // 2, -(-part.stop // 2))
            found, scaled = SCALES.divide(values[part])
            np.right_shift(
                found.view(np.uint32), 16, out=scales[first : first + found.size], casting="unsafe"
            )
            np.add(scaled, _ROUNDER, out=scaled)
            codes = SCRATCH.bytes[: scaled.size + scaled.size % 2]
            codes[-1] = _ZERO
            np.copyto(codes[: scaled.size], scaled.view(np.int32), casting="unsafe")
            couples = codes.view("<u2")
            high = np.right_shift(couples, 4, out=SCRATCH.halves[: couples.size])
            np.bitwise_or(couples, high, out=high)
            np.copyto(data[pairs], high, casting="unsafe")
        return frame.tobytes()

    def open(self, data: Bytes, count: int) -> Cells:
        halves, data = _split(data, count)
        scales = (halves.astype(np.uint32) << 16).view(np.float32)
        SCALES.check(scales, "int4")
        SCALES.check_zeros(scales, data, width=SCALES.block // 2, zero=_ZERO * 17, codec="int4")
        if count % 2 and data[-1] >> 4 != _ZERO:
            raise CodecError("refused: the int4 codes are padded with more than a zero")

        def read(first: int, out: Array) -> None:
            pairs = data[first // 2 : -(-(first + out.size) // 2)]
            couples = SCRATCH.halves[: pairs.size]
            high = SCRATCH.more_halves[: pairs.size]
            np.copyto(couples, pairs)
            np.left_shift(couples, 4, out=high)
            np.bitwise_or(couples, high, out=couples)
            np.bitwise_and(couples, 0x0F0F, out=couples)
            codes = couples.view(np.uint8)
            if codes.min() == 0:
                raise CodecError("refused: an int4 code is 0, which no encoder writes")
            steps = np.subtract(codes, _ZERO, out=codes).view(np.int8)
            SCALES.multiply(steps[: out.size], scales[first // SCALES.block :], out)

        return read


def _split(frame: Bytes, count: int) -> tuple[NDArray[np.uint16], Bytes]:
    end = 2 * SCALES.count(count)
    return frame[:end].view("<u2"), frame[end:]
