"""Frames: how a tensor becomes bytes and back, in self-contained portions of at most FRAME elements.

A slice of n elements is ceil(n / FRAME) frames, all but the last full, none when it is empty; a scalar is one element.
The frame of an index covers the same elements in every codec, so updates combine frame by frame in bounded memory.
Owns lengths, shapes and the portioning; each codec's own module owns its bytes.
"""

from __future__ import annotations

from math import prod

import numpy as np
from numpy.typing import NDArray

from commons.codec.floats import Bf16, Fp32
from commons.codec.fp8 import Fp8
from commons.codec.int4 import Int4
from commons.codec.int8 import Int8
from commons.codec.rules import CELL, Array, Bytes, CodecError, Encoded, FrameCodec
from commons.codec.top_k import TopK
from commons.learning import Codec

FRAME = 1 << 18
"""Elements of a full frame."""

Data = bytes | bytearray | memoryview | NDArray[np.uint8]

_CODECS: dict[Codec, FrameCodec] = {
    "fp32": Fp32(),
    "bf16": Bf16(),
    "int8": Int8(),
    "int4": Int4(),
    "fp8": Fp8(),
    "top_k": TopK(),
}


def frame_count(size: int) -> int:
    """Frames of a slice of `size` elements."""
    return -(-size // FRAME)


def frame_bytes(codec: Codec, count: int) -> int:
    """Exact length of a frame of `count` elements. Raises ValueError outside 0..FRAME."""
    if not 0 <= count <= FRAME:
        raise ValueError(f"a frame has at most {FRAME} elements, not {count}")
    return _CODECS[codec].size(count)


def encoded_bytes(codec: Codec, shape: tuple[int, ...]) -> int:
    """Exact length of the encoding of a tensor of `shape`."""
    full, rest = divmod(prod(shape), FRAME)
    of = _CODECS[codec]
    return full * of.size(FRAME) + of.size(rest)


def encode_frame(codec: Codec, values: Array) -> Encoded:
    """The frame of at most FRAME values, 1-D fp32. The same values give the same bytes on every machine.

    An fp32 frame is the values' own memory where that is contiguous: use it before they change.
    Error per element: see the codec's module. Raises CodecError for another dtype, more dimensions or elements,
    NaN, infinity and magnitudes beyond LARGEST.
    """
    if values.dtype != np.float32:
        raise CodecError(f"{codec} takes float32, not {values.dtype}")
    if values.ndim != 1 or values.size > FRAME:
        raise CodecError(f"a frame takes at most {FRAME} values in one row, not {list(values.shape)}")
    return _CODECS[codec].encode(np.ascontiguousarray(values))


def decode_frame(codec: Codec, data: Data, count: int, out: Array | None = None) -> Array:
    """The `count` values of a frame; `out` is a contiguous buffer of at least as many, whose beginning is returned.

    Allocates for `count` elements, whatever the bytes say, and nothing when `out` is given. Raises CodecError for a
    wrong length and for what `encode_frame` cannot write; `out` then holds no values.
    """
    frame = _frame(codec, data, count)
    out = np.empty(count, np.float32) if out is None else _room(out, count)
    _CODECS[codec].decode(frame, out)
    return out


def check_frame(codec: Codec, data: Data, count: int) -> float:
    """The squared L2 norm of what the frame decodes to, within 1e-5 of it. Raises CodecError as `decode_frame`."""
    return _CODECS[codec].squares(_frame(codec, data, count), count)


def add_frame(codec: Codec, data: Data, count: int, weight: float, total: Array, scratch: Array) -> None:
    """total[:count] += weight * decoded, the weight, the product and the sum rounded to fp32.

    For frames that `check_frame` has passed, or whose sum is checked by its digest: fp32 values are not looked at again,
    which would cost a fifth of the time.
    `scratch` is an fp32 buffer of at least min(count, CELL) elements whose content is lost; nothing of the frame's
    size is allocated. Raises CodecError as `decode_frame`; `total` may then hold a part of the frame.
    """
    frame = _frame(codec, data, count)
    room = _room(scratch, min(count, CELL))
    _CODECS[codec].add(frame, np.float32(weight), _room(total, count), room)


def encode(codec: Codec, array: Array) -> bytes:
    """The frames of a whole tensor of any shape and strides, one after the other. Raises as `encode_frame`."""
    if array.dtype != np.float32:
        raise CodecError(f"{codec} takes float32, not {array.dtype}")
    flat = np.ascontiguousarray(array).reshape(-1)
    return b"".join(encode_frame(codec, flat[at : at + FRAME]) for at in range(0, flat.size, FRAME))


def decode(codec: Codec, data: Data, shape: tuple[int, ...]) -> Array:
    """A new, writable array. Raises CodecError for a wrong length and for what `encode` cannot write."""
    expected, size = encoded_bytes(codec, shape), prod(shape)
    if len(data) != expected:
        raise CodecError(f"{codec} of shape {list(shape)} is {expected} bytes, got {len(data)}")
    flat, position = np.empty(size, np.float32), 0
    whole = np.frombuffer(data, np.uint8)
    for first in range(0, size, FRAME):
        count = min(FRAME, size - first)
        length = frame_bytes(codec, count)
        decode_frame(codec, whole[position : position + length], count, flat[first:])
        position += length
    return flat.reshape(shape)


def _room(buffer: Array, count: int) -> Array:
    """The beginning of a caller's buffer; ValueError when it is none for `count` elements."""
    if buffer.dtype != np.float32 or buffer.ndim != 1 or buffer.size < count or not buffer.flags.c_contiguous:
        what = f"{buffer.dtype} {list(buffer.shape)}"
        raise ValueError(f"{count} elements need a contiguous row of as many float32, this is {what}")
    return buffer[:count]


def _frame(codec: Codec, data: Data, count: int) -> Bytes:
    expected = frame_bytes(codec, count)
    if len(data) != expected:
        raise CodecError(f"{codec} frame of {count} elements is {expected} bytes, got {len(data)}")
    return np.frombuffer(data, np.uint8)
