"""Error feedback (EF-SGD, arXiv 1901.09847): what a codec dropped is added to what is encoded next."""

from __future__ import annotations

import numpy as np

from commons.codec.frames import FRAME, decode_frame, encode_frame
from commons.codec.rules import Array
from commons.learning import Codec

DECAY: dict[Codec, float] = {"fp32": 1.0, "bf16": 1.0, "int8": 1.0, "int4": 1.0, "fp8": 1.0, "top_k": 0.95}
"""Share of the residual that is added to the next values."""


def encode_with_feedback(codec: Codec, values: Array, residual: Array | None) -> tuple[bytes, Array]:
    """The encoding of `values` plus what was left over, and what is left over now, 1-D fp32.

    `values` has any shape; `residual` as many elements, None stands for zeros and it is not changed. With decay 1
    all that was ever decoded plus the last residual is the sum of all values, but for fp32 rounding of the sums.
    Raises CodecError as `encode_frame`.
    """
    flat = np.ascontiguousarray(values).reshape(-1)
    left = flat.copy() if residual is None else flat + np.float32(DECAY[codec]) * residual
    decoded = np.empty(min(FRAME, left.size), np.float32)
    frames = []
    for first in range(0, left.size, FRAME):
        part = left[first : first + FRAME]
        frames.append(bytes(encode_frame(codec, part)))
        np.subtract(part, decode_frame(codec, frames[-1], part.size, decoded), out=part)
    return b"".join(frames), left
