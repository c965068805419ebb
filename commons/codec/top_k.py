"""top_k: of each chunk of 4096 elements the 64 largest magnitudes, 2 bits each (SparseLoCo, arXiv 2508.15706).

A chunk has k = min(64, its elements) entries; only a frame's last chunk may be shorter. It is kept as
  two levels lo <= hi, bf16;
  k indices within the chunk, strictly increasing, 12 bits each, two in three bytes, the first in the low bits;
  k values, 2 bits each, four a byte, the first in the lowest: bit 0 says hi, bit 1 says negative.
Unused bits are zero. A frame has the levels of its full chunks, then their indices, then their values, then the short
chunk's. 116 bytes a full chunk: 1/141 of fp32.

Of equal magnitudes the first are sent. What lies below the middle between the smallest and the largest sent has the
level lo, their mean; the others have hi, theirs. Magnitudes below SMALLEST are zeros: where some must be sent to
make up k, lo is zero and hi the mean of the others. Where both levels are the same bf16, lo alone is used.

Error of an element: where it was not sent, at most the smallest magnitude sent; where it was, at most half of what
lies between the smallest and the largest sent (all of it when lo is zero) plus 1/250 of its magnitude; plus 2^-80.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from commons.codec.rules import (
    SCRATCH,
    Array,
    Bytes,
    CodecError,
    FrameCodec,
    Words,
    cells,
    check_magnitude,
    magnitudes,
)
from commons.codec.scales import SMALLEST

CHUNK = 4096
KEPT = 64

Halves = NDArray[np.uint16]
Indices = NDArray[np.intp]

_GROUPS = 256
_LADDER = np.float32(1 << 16)
"""Steps from the smallest to the largest sent. Means are of whole steps: their sums are exact in any order."""
_SMALLEST_BITS = np.float32(SMALLEST).view(np.int32)
_SMALLEST_HALF, _LARGEST_HALF = int(_SMALLEST_BITS) >> 16, 0x7F7F
_HIGH, _NEGATIVE = 1, 2
_PLACES = np.array([0, 2, 4, 6], np.uint8)


@dataclass(frozen=True)
class _Section:
    """Chunks of one length, as they lie one after the other in a frame."""

    rows: int
    length: int
    first: int
    """Element of the frame it begins with."""

    @property
    def kept(self) -> int:
        return min(KEPT, self.length)

    @property
    def bytes(self) -> int:
        return sum(self._parts())

    def split(self, data: Bytes) -> tuple[Halves, Bytes, Bytes]:
        """Levels (rows, 2), indices and values (rows, bytes of a row), in place."""
        levels, indices, values = np.split(data, np.cumsum(self._parts())[:2])
        return (
            levels.view("<u2").reshape(-1, 2),
            indices.reshape(self.rows, -1),
            values.reshape(self.rows, -1),
        )

    def _parts(self) -> tuple[int, int, int]:
        return 4 * self.rows, 3 * -(-self.kept // 2) * self.rows, -(-self.kept // 4) * self.rows


class TopK(FrameCodec):
    def size(self, count: int) -> int:
        return sum(section.bytes for section in _sections(count))

    def encode(self, values: Array) -> bytes:
        frame, end = np.zeros(self.size(values.size), np.uint8), 0
        for section in _sections(values.size):
            data, end = frame[end : end + section.bytes], end + section.bytes
            chunks = values[section.first : section.first + section.rows * section.length]
            _write(chunks.reshape(section.rows, -1), section, data)
        return frame.tobytes()

    def decode(self, data: Bytes, out: Array) -> None:
        positions, values = _read(data, out.size)
        out[:] = 0
        out[positions] = values

    def squares(self, data: Bytes, count: int) -> float:
        values = _read(data, count)[1].astype(np.float64)
        return float(np.dot(values, values))

    def add(self, data: Bytes, weight: np.float32, total: Array, scratch: Array) -> None:
        positions, values = _read(data, total.size)
        sums = total[positions] + weight * values
        # Nothing is added to the others, which still makes +0 of -0: a sum is the same by whatever codec.
        np.add(total, weight * np.float32(0), out=total)
        total[positions] = sums


def _sections(count: int) -> Iterator[_Section]:
    full, rest = divmod(count, CHUNK)
    if full:
        yield _Section(full, CHUNK, 0)
    if rest:
        yield _Section(1, rest, full * CHUNK)


def _write(chunks: Array, section: _Section, data: Bytes) -> None:
    columns = np.empty((section.rows, section.kept), np.intp)
    for part in cells(chunks.size):
        rows = slice(part.start // CHUNK, -(-part.stop // CHUNK))
        columns[rows] = _largest(chunks[rows], section.kept)
    sent = np.take_along_axis(chunks, columns, axis=1)
    size = np.abs(sent)
    size[size < SMALLEST] = 0
    levels, indices, values = section.split(data)
    levels[:], high = _levels(size)
    negative = (sent < 0) & (high | (levels[:, :1] > 0))
    indices[:] = _pack_indices(columns)
    values[:] = _pack_values(high * np.uint8(_HIGH) | negative * np.uint8(_NEGATIVE))


def _largest(chunks: Array, kept: int) -> Indices:
    """(rows, kept) columns of the largest magnitudes, increasing. Raises CodecError for values out of range."""
    rows, length = chunks.shape
    bits = magnitudes(chunks.reshape(-1)).reshape(rows, length)
    if length == kept:
        check_magnitude(int(bits.max()), "cannot encode")
        return np.tile(np.arange(kept), (rows, 1))
    candidates = np.greater_equal(
        bits, _lower_bound(bits, kept)[:, None], out=SCRATCH.marks[: bits.size].reshape(rows, -1)
    )
    few = np.count_nonzero(candidates, axis=1) < kept
    # What is missing are zeros, and so many of them are among the first: elsewhere are all that are none.
    candidates[few, :kept] = True
    row, column = np.divmod(np.flatnonzero(candidates), length)
    counts = np.bincount(row, minlength=rows)
    place = np.arange(row.size) - np.repeat(np.cumsum(counts) - counts, counts)
    found = bits[row, column].astype(np.int64)
    found[found < _SMALLEST_BITS] = 0
    # Magnitude first, then the smaller index: no two are equal, so what is chosen does not hang on how.
    order = np.full((rows, counts.max()), -1, np.int64)
    order[row, place] = found << 12 | (CHUNK - 1 - column)
    order.partition(-kept, axis=1)
    columns = CHUNK - 1 - (order[:, -kept:] & (CHUNK - 1))
    columns.sort(axis=1)
    return columns


def _lower_bound(bits: Words, kept: int) -> Words:
    """Per row, bits that at least `kept` of the row's reach, if as many are no zeros. Refuses what is out of range."""
    groups = bits
    while groups.shape[1] > _GROUPS and groups.shape[1] % 2 == 0:
        half = groups.shape[1] // 2
        groups = np.maximum(groups[:, :half], groups[:, half:])
    check_magnitude(int(groups.max()), "cannot encode")
    bound: Words = np.partition(groups, -kept, axis=1)[:, -kept]
    bound[bound < _SMALLEST_BITS] = _SMALLEST_BITS
    return bound


def _levels(size: Array) -> tuple[Halves, NDArray[np.bool_]]:
    """Both levels of each row of magnitudes, as bf16 (rows, 2), and which of them take the higher."""
    low, top = size.min(axis=1, keepdims=True), size.max(axis=1, keepdims=True)
    span = top - low
    step = np.rint(np.divide(size - low, span, out=np.zeros_like(size), where=span > 0) * _LADDER)
    high = np.where(low > 0, step >= _LADDER / 2, size > 0)
    levels = np.empty((len(size), 2), np.uint16)
    for column, chosen in enumerate((~high, high)):
        steps = (step * chosen).sum(axis=1, keepdims=True)
        share = steps / (np.maximum(chosen.sum(axis=1, keepdims=True), 1).astype(np.float32) * _LADDER)
        bits = (low + span * share).view(np.uint32)
        levels[:, column : column + 1] = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    alone = ~high.any(axis=1) | (levels[:, 0] == levels[:, 1])
    levels[alone, 1] = levels[alone, 0]
    high[alone] = False
    return levels, high


def _read(data: Bytes, count: int) -> tuple[Indices, Array]:
    """Positions in the frame, increasing, and the values there."""
    positions, values, end = [], [], 0
    for section in _sections(count):
        part, end = data[end : end + section.bytes], end + section.bytes
        levels, indices, packed = section.split(part)
        columns = _unpack_indices(indices, section)
        codes = _unpack_values(packed, section)
        _check_levels(levels, codes)
        of = (levels.astype(np.uint32) << 16).view(np.float32)
        size = np.where(codes & _HIGH, of[:, 1:], of[:, :1])
        values.append(np.where(codes & _NEGATIVE, -size, size).reshape(-1))
        starts = section.first + section.length * np.arange(section.rows)
        positions.append((columns + starts[:, None]).reshape(-1))
    if not positions:
        return np.empty(0, np.intp), np.empty(0, np.float32)
    return np.concatenate(positions), np.concatenate(values)


def _check_levels(levels: Halves, codes: Bytes) -> None:
    low, high = levels[:, :1], levels[:, 1:]
    small = (levels > 0) & (levels < _SMALLEST_HALF)
    if small.any() or (levels > _LARGEST_HALF).any() or (low > high).any():
        raise CodecError("refused: a top_k level is negative, not finite, too small or out of order")
    if ((codes == _NEGATIVE) & (low == 0)).any() or ((codes & _HIGH > 0) & (low == high)).any():
        raise CodecError("refused: a top_k value is a negative zero, or high where both levels are one")


def _pack_indices(columns: Indices) -> Bytes:
    rows, kept = columns.shape
    pairs = np.zeros((rows, -(-kept // 2), 2), np.uint16)
    pairs.reshape(rows, -1)[:, :kept] = columns
    first, second = pairs[..., 0], pairs[..., 1]
    packed = np.stack((first & 255, first >> 8 | (second & 15) << 4, second >> 4), axis=-1)
    return packed.astype(np.uint8).reshape(rows, -1)


def _unpack_indices(data: Bytes, section: _Section) -> Indices:
    one, two, three = (data[:, at::3].astype(np.intp) for at in range(3))
    columns = np.stack((one | (two & 15) << 8, two >> 4 | three << 4), axis=-1).reshape(section.rows, -1)
    kept = columns[:, : section.kept]
    if columns[:, section.kept :].any():
        raise CodecError("refused: the top_k indices are padded with more than zeros")
    if (np.diff(kept, axis=1) <= 0).any() or (kept[:, -1] >= section.length).any():
        raise CodecError("refused: the top_k indices do not increase, or leave their chunk")
    return kept


def _pack_values(codes: Bytes) -> Bytes:
    rows, kept = codes.shape
    fours = np.zeros((rows, -(-kept // 4), 4), np.uint8)
    fours.reshape(rows, -1)[:, :kept] = codes
    packed: Bytes = np.bitwise_or.reduce(fours << _PLACES, axis=-1)
    return packed


def _unpack_values(data: Bytes, section: _Section) -> Bytes:
    codes: Bytes = (data[:, :, None] >> _PLACES & np.uint8(3)).reshape(section.rows, -1)
    if codes[:, section.kept :].any():
        raise CodecError("refused: the top_k values are padded with more than zeros")
    return codes[:, : section.kept]
