"""int8: one fp32 scale per block of 256 elements, then one signed byte an element; element = step x scale.

Layout of a frame: the scales of its blocks, then the steps, -127..127, of its elements.

Error of an element: at most 1/253 of its block's largest magnitude, plus 2^-73.
"""

from __future__ import annotations

import numpy as np

from commons.codec.rules import Array, Bytes, Cells, CodecError, DenseCodec, cells
from commons.codec.scales import Scales

SCALES = Scales(block=256, steps=127, mantissa=16)


class Int8(DenseCodec):
    def size(self, count: int) -> int:
        return 4 * SCALES.count(count) + count

    def encode(self, values: Array) -> bytes:
        frame = np.empty(self.size(values.size), np.uint8)
        scales, data = _split(frame, values.size)
        steps = data.view(np.int8)
        for part in cells(values.size):
            first = part.start // SCALES.block
            found, scaled = SCALES.divide(values[part])
            scales[first : first + found.size] = found
            steps[part] = np.rint(scaled, out=scaled)
        return frame.tobytes()

    def open(self, data: Bytes, count: int) -> Cells:
        scales, data = _split(data, count)
        steps = data.view(np.int8)
        SCALES.check(scales, "int8")
        SCALES.check_zeros(scales, data, width=SCALES.block, zero=0, codec="int8")
        if steps.min(initial=0) < -127:
            raise CodecError("refused: an int8 step is -128, which no encoder writes")

        def read(first: int, out: Array) -> None:
            SCALES.multiply(steps[first : first + out.size], scales[first // SCALES.block :], out)

        return read


def _split(frame: Bytes, count: int) -> tuple[Array, Bytes]:
    end = 4 * SCALES.count(count)
    return frame[:end].view("<f4"), frame[end:]
