"""fp8: one fp32 scale per block of 256 elements, then one e4m3 float an element; element = float x scale.

Layout of a frame: the scales of its blocks; then its elements as sign, 4 bits of exponent (bias 7) and 3 of mantissa,
rounded to nearest even (arXiv 2209.05433). The largest is 448; 0x7f and 0xff (NaN) and 0x80 (a negative zero) are
never written.

Error of an element: at most 1/16 of its magnitude, or 1/458,000 of its block's largest magnitude where that is more,
plus 2^-71.
"""

from __future__ import annotations

import numpy as np

from commons.codec.rules import SCRATCH, Array, Bytes, Cells, CodecError, DenseCodec, cells, magnitudes
from commons.codec.scales import Scales

SCALES = Scales(block=256, steps=448, mantissa=16)

_NAN = 0x7F
"""Its code without the sign."""
_SIGN = _NEGATIVE_ZERO = 0x80
_NORMAL = np.float32(2.0**-6).view(np.int32)
"""Bits of the smallest magnitude whose float has its full mantissa."""
_EXPONENT = np.int32(0x7F800000)
_ROUNDER = np.int32((20 << 23) | 0x400000)
"""Makes of a power of two 1.5 x 2^20 times as much: added to a number of that exponent, it rounds to 3 bits."""
_OFFSET = np.int32((120 + 20) * 8 + 4 + 8)


def _decoded() -> Array:
    code = np.arange(256)
    exponent, mantissa = code >> 3 & 15, code & 7
    magnitude = np.ldexp(
        np.where(exponent > 0, 8 + mantissa, mantissa).astype(np.float32), np.maximum(exponent, 1) - 10
    )
    values: Array = np.where(code < 128, magnitude, -magnitude)
    return values


VALUES = _decoded()
"""What each code stands for, in units of the scale; the two codes of NaN are refused before they are looked up."""


class Fp8(DenseCodec):
    def size(self, count: int) -> int:
        return 4 * SCALES.count(count) + count

    def encode(self, values: Array) -> bytes:
        frame = np.empty(self.size(values.size), np.uint8)
        scales, data = _split(frame, values.size)
        for part in cells(values.size):
            first = part.start // SCALES.block
            found, scaled = SCALES.divide(values[part])
            scales[first : first + found.size] = found
            _round(scaled, data[part])
        return frame.tobytes()

    def open(self, data: Bytes, count: int) -> Cells:
        scales, codes = _split(data, count)
        SCALES.check(scales, "fp8")
        SCALES.check_zeros(scales, codes, width=SCALES.block, zero=0, codec="fp8")

        def read(first: int, out: Array) -> None:
            part = codes[first : first + out.size]
            if np.bitwise_and(part, _NAN, out=SCRATCH.bytes[: part.size]).max() == _NAN:
                raise CodecError("refused: the fp8 tensor holds NaN")
            if np.equal(part, _NEGATIVE_ZERO, out=SCRATCH.marks[: part.size]).any():
                raise CodecError("refused: the fp8 tensor holds a negative zero, which no encoder writes")
            np.take(VALUES, part, out=out, mode="clip")
            SCALES.multiply(out, scales[first // SCALES.block :], out)

        return read


def _round(scaled: Array, out: Bytes) -> None:
    """The codes of `scaled`."""
    size = magnitudes(scaled)
    unit = np.maximum(size, _NORMAL, out=SCRATCH.steps[: size.size])
    np.bitwise_and(unit, _EXPONENT, out=unit)
    np.add(unit, _ROUNDER, out=unit)
    rounded = size.view(np.float32)
    np.add(rounded, unit.view(np.float32), out=rounded)
    # What the sum has beyond the unit counts mantissa steps, 8..16 of them; 16 carries into the exponent by itself.
    np.subtract(size, unit, out=size)
    np.right_shift(unit, 20, out=unit)
    np.add(unit, size, out=unit)
    np.subtract(unit, _OFFSET, out=unit)
    signs = np.right_shift(scaled.view(np.int32), 24, out=size)
    np.bitwise_and(signs, _SIGN, out=signs)
    np.bitwise_or(unit, signs, out=unit)
    np.copyto(out, unit, casting="unsafe")
    np.multiply(out, np.not_equal(out, _NEGATIVE_ZERO, out=SCRATCH.marks[: out.size]), out=out)


def _split(frame: Bytes, count: int) -> tuple[Array, Bytes]:
    end = 4 * SCALES.count(count)
    return frame[:end].view("<f4"), frame[end:]
