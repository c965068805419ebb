"""Codecs that send every element as a float: fp32 as it is, bf16 as the upper half of fp32, rounded to nearest even.

fp32: 4 bytes an element, error 0. bf16: 2 bytes an element, error at most 2^-8 of its magnitude (subnormals: 2^-134).
"""

from __future__ import annotations

import numpy as np

from commons.codec.rules import (
    SCRATCH,
    Array,
    Bytes,
    Cells,
    CodecError,
    DenseCodec,
    cells,
    sum_of_squares,
)

_INFINITE = 0x7F80
"""bf16 bits, without the sign, from which on a value is infinite or NaN."""


class Fp32(DenseCodec):
    def size(self, count: int) -> int:
        return 4 * count

    def encode(self, values: Array) -> memoryview:
        sum_of_squares(values, "cannot encode")
        return values.view(np.uint8).data

    def open(self, data: Bytes, count: int) -> Cells:
        values = data.view("<f4")

        def read(first: int, out: Array) -> None:
            np.copyto(out, values[first : first + out.size])
            sum_of_squares(out, "refused")

        return read

    def squares(self, data: Bytes, count: int) -> float:
        return sum_of_squares(data.view("<f4"), "refused")

    def add(self, data: Bytes, weight: np.float32, total: Array, scratch: Array) -> None:
        values = data.view("<f4")
        if weight == 1:
            np.add(total, values, out=total)
            return
        for part in cells(total.size):
            addend = np.multiply(values[part], weight, out=scratch[: part.stop - part.start])
            np.add(total[part], addend, out=total[part])


class Bf16(DenseCodec):
    def size(self, count: int) -> int:
        return 2 * count

    def encode(self, values: Array) -> bytes:
        halves = np.empty(values.size, "<u2")
        for part in cells(values.size):
            sum_of_squares(values[part], "cannot encode")
            bits = values[part].view(np.uint32)
            rounded = SCRATCH.steps.view(np.uint32)[: bits.size]
            np.right_shift(bits, 16, out=rounded)
            np.bitwise_and(rounded, 1, out=rounded)
            np.add(rounded, 0x7FFF, out=rounded)
            np.add(rounded, bits, out=rounded)
            np.right_shift(rounded, 16, out=rounded)
            halves[part] = rounded
        return halves.tobytes()

    def open(self, data: Bytes, count: int) -> Cells:
        halves = data.view("<u2")

        def read(first: int, out: Array) -> None:
            part = halves[first : first + out.size]
            if np.bitwise_and(part, 0x7FFF, out=SCRATCH.halves[: part.size]).max() >= _INFINITE:
                raise CodecError("refused: the bf16 tensor holds NaN or infinity")
            bits = out.view(np.uint32)
            np.copyto(bits, part)
            np.left_shift(bits, 16, out=bits)

        return read
