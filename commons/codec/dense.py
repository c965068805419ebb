"""Dense codecs: every element is sent, in fp32, bf16 or int8.

Layouts, all little-endian, elements in C order:
fp32: 4 bytes an element. bf16: the upper half of fp32, rounded to nearest even.
int8: one fp32 scale per block of 256 elements, then one signed byte an element; element = byte x scale.

Knows nothing of deltas, residuals or manifests. Values that are not finite, or beyond `LARGEST`, are refused
on both ways: an update that holds one is broken, and a codec must not make it look whole.
"""

from __future__ import annotations

from math import prod

import numpy as np
from numpy.typing import NDArray

from commons.charter import Codec

Array = NDArray[np.float32]

BLOCK = 256
"""Elements that share one int8 scale."""
LARGEST = 3.3895313892515355e38
"""Largest magnitude of any codec: the largest finite bf16."""

_CHUNK = 1024 * BLOCK
"""Elements worked on at a time: temporaries stay in the cache."""
_FLOOR = 1e-36
"""A block whose largest magnitude is below this is sent as zeros: its scale would be no normal fp32."""


class CodecError(ValueError):
    """These bytes, or these values, are no tensor of this codec. The message says which rule they break."""


def encode(codec: Codec, array: Array) -> bytes:
    """The bytes of `array` (any shape and strides), `encoded_bytes(codec, array.shape)` of them.

    Error per element: fp32 0; bf16 at most 2^-8 of its magnitude (subnormals: 2^-134); int8 at most 1/253 of
    its block's largest magnitude, plus 1e-36. Raises CodecError for another dtype, NaN, infinity and values
    beyond `LARGEST`.
    """
    if array.dtype != np.float32:
        raise CodecError(f"{codec} takes float32, not {array.dtype}")
    flat = np.ascontiguousarray(array).reshape(-1)
    _check_range(flat, "cannot encode")
    match codec:
        case "fp32":
            return flat.astype("<f4", copy=False).tobytes()
        case "bf16":
            return _to_bf16(flat)
        case "int8":
            return _to_int8(flat)


def decode(codec: Codec, data: bytes | memoryview, shape: tuple[int, ...]) -> Array:
    """A new, writable array. Raises CodecError for a wrong length and for what `encode` cannot write."""
    expected = encoded_bytes(codec, shape)
    if len(data) != expected:
        raise CodecError(f"{codec} of shape {list(shape)} is {expected} bytes, got {len(data)}")
    match codec:
        case "fp32":
            flat = np.frombuffer(data, "<f4").astype(np.float32)
            _check_range(flat, "refused")
        case "bf16":
            flat = _from_bf16(np.frombuffer(data, "<u2"))
        case "int8":
            flat = _from_int8(data, prod(shape))
    return flat.reshape(shape)


def encoded_bytes(codec: Codec, shape: tuple[int, ...]) -> int:
    """Exact length of the encoding of a tensor of `shape`."""
    size = prod(shape)
    match codec:
        case "fp32":
            return 4 * size
        case "bf16":
            return 2 * size
        case "int8":
            return size + 4 * _blocks(size)


def _blocks(size: int) -> int:
    return -(-size // BLOCK)


def _check_range(flat: Array, verb: str) -> None:
    with np.errstate(over="ignore", invalid="ignore"):
        # A finite sum of squares proves every element finite and far below LARGEST, at the price of one read.
        if np.isfinite(np.dot(flat, flat)):
            return
        largest = np.max(np.abs(flat))
    if not largest <= LARGEST:
        what = "NaN" if np.isnan(largest) else "infinity, or nearly so"
        raise CodecError(f"{verb}: the tensor holds {what}")


def _to_bf16(flat: Array) -> bytes:
    out = np.empty(flat.size, "<u2")
    for start in range(0, flat.size, _CHUNK):
        bits = flat[start : start + _CHUNK].view(np.uint32)
        tie = bits >> 16
        tie &= 1
        tie += 0x7FFF
        tie += bits
        tie >>= 16
        out[start : start + _CHUNK] = tie
    return out.tobytes()


def _from_bf16(halves: NDArray[np.uint16]) -> Array:
    flat = np.empty(halves.size, np.float32)
    bits = flat.view(np.uint32)
    for start in range(0, halves.size, _CHUNK):
        part = halves[start : start + _CHUNK]
        if np.max(part & 0x7FFF) >= 0x7F80:
            raise CodecError("refused: the bf16 tensor holds NaN or infinity")
        np.left_shift(part, 16, out=bits[start : start + _CHUNK], dtype=np.uint32)
    return flat


def _to_int8(flat: Array) -> bytes:
    blocks = _blocks(flat.size)
    scales = np.empty(blocks, "<f4")
    steps = np.empty(blocks * BLOCK, np.int8)
    scratch = np.empty(min(_CHUNK, blocks * BLOCK), np.float32)
    for start in range(0, flat.size, _CHUNK):
        part = flat[start : start + _CHUNK]
        rows = scratch[: _blocks(part.size) * BLOCK]
        np.abs(part, out=rows[: part.size])
        rows[part.size :] = 0
        largest = rows.reshape(-1, BLOCK).max(axis=1)
        largest[largest < _FLOOR] = 0
        inverse = np.divide(np.float32(127), largest, out=np.zeros_like(largest), where=largest > 0)
        first = start // BLOCK
        scales[first : first + len(largest)] = largest / np.float32(127)
        rows[: part.size] = part
        grid = rows.reshape(-1, BLOCK)
        grid *= inverse[:, None]
        np.rint(rows, out=rows)
        steps[start : start + rows.size] = rows
    return scales.tobytes() + steps[: flat.size].tobytes()


def _from_int8(data: bytes | memoryview, size: int) -> Array:
    blocks = _blocks(size)
    scales = np.frombuffer(data, "<f4", count=blocks).astype(np.float32)
    steps = np.frombuffer(data, np.int8, count=size, offset=4 * blocks)
    # NaN fails both comparisons, so the conditions state what is allowed.
    if size and not (scales.min() >= 0 and scales.max() <= LARGEST / 126.9):
        raise CodecError("refused: an int8 scale is negative, NaN or infinite")
    if size and steps.min() < -127:
        raise CodecError("refused: an int8 step is -128, which no encoder writes")
    flat = np.empty(size, np.float32)
    whole = size // BLOCK * BLOCK
    for start in range(0, whole, _CHUNK):
        end = min(start + _CHUNK, whole)
        factors = scales[start // BLOCK : end // BLOCK, None]
        out = flat[start:end].reshape(-1, BLOCK)
        np.multiply(steps[start:end].reshape(-1, BLOCK), factors, out=out)
    if whole < size:
        np.multiply(steps[whole:], scales[-1], out=flat[whole:])
    return flat
