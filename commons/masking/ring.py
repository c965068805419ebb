"""Between fp32 values and words of the ring of whole numbers modulo 2^32, in which masked updates are added.

A word is a value in fixed point: a whole number of steps of clip x 2^-fraction_bits, in two's complement. Knows
nothing of masks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from commons.codec import CELL, CodecError
from commons.codec.rules import cells, sum_of_squares
from commons.privacy.terms import SecAgg

Array = NDArray[np.float32]
Words = NDArray[np.uint32]

_FRACTION_BITS_MAX = 30


@dataclass(frozen=True)
class FixedPoint:
    """How values become words: clipped to ±clip, in steps of clip x 2^-fraction_bits, for at most `sites` sites.

    Raises ValueError unless the sum of `sites` words always fits: ``sites * largest < 2^31``. A sum that wrapped
    around would be wrong without anybody being able to see it.
    """

    clip: float
    fraction_bits: int
    sites: int

    def __post_init__(self) -> None:
        if not 1e-30 <= self.clip <= 1e30:
            raise ValueError(f"clip is {self.clip}, it must be a number from 1e-30 to 1e30")
        if self.sites < 1 or not 0 <= self.fraction_bits <= _FRACTION_BITS_MAX:
            raise ValueError(
                f"{self.sites} sites and {self.fraction_bits} fraction bits: at least one site, and 0 to "
                f"{_FRACTION_BITS_MAX} bits"
            )
        if self.sites * self.largest >= 2**31:
            raise ValueError(
                f"no head-room: {self.sites} sites of up to {self.largest} steps each reach 2^31; "
                "vote for fewer fraction bits"
            )

    @classmethod
    def of(cls, terms: SecAgg, sites: int) -> FixedPoint:
        """As the charter says, for all `sites` of the charter. Raises ValueError."""
        return cls(terms.clip, terms.fraction_bits, sites)

    @property
    def largest(self) -> int:
        """Largest magnitude of a word, in steps."""
        return 1 << self.fraction_bits

    @property
    def step(self) -> float:
        """What a word counts in; an fp32."""
        return float(np.float32(math.ldexp(self.clip, -self.fraction_bits)))

    def quantise(self, values: Array, residual: Array, words: Words) -> None:
        """Write `values` plus what `residual` holds into `words`; `residual` then holds what was clipped and rounded off.

        All three 1-D and of one length; `residual` (zeros at first) and `words` are overwritten. Within the clip a
        word is off by at most half a step and 2^-22 of the value, which is fp32's own rounding and nothing when the clip is
        a power of two. Raises CodecError for NaN and infinity; nothing is promised then.
        """
        assert values.shape == residual.shape == words.shape and values.ndim == 1, "one length for all three"
        scale, step = np.float32(math.ldexp(1 / self.clip, self.fraction_bits)), np.float32(self.step)
        scratch = np.empty(min(CELL, values.size), np.float32)
        for part in cells(values.size):
            left = residual[part]
            steps = scratch[: left.size]
            np.add(left, values[part], out=left)
            sum_of_squares(left, "cannot mask")
            with np.errstate(over="ignore"):
                np.multiply(left, scale, out=steps)
            np.rint(steps, out=steps)
            np.clip(steps, -self.largest, self.largest, out=steps)
            words[part].view(np.int32)[:] = steps
            steps *= step
            left -= steps

    def mean(self, words: Words, sites: int, out: Array | None = None) -> Array:
        """The mean of the values of `sites` sites whose words were added up to `words`; fp32, 1-D.

        `out`: a buffer of at least as many elements, whose beginning is returned.
        """
        assert 1 <= sites <= self.sites, f"a sum of 1 to {self.sites} sites, not {sites}"
        found = np.empty(words.size, np.float32) if out is None else out[: words.size]
        for part in cells(words.size):
            mean = found[part]
            mean[:] = words[part].view(np.int32)
            mean *= np.float32(self.step)
            mean /= np.float32(sites)
        return found


def to_bytes(words: Words) -> bytes:
    """A frame as it travels: 4 bytes a word, little-endian."""
    return words.astype("<u4", copy=False).tobytes()


def add_words(total: Words, data: bytes | memoryview) -> None:
    """Add a frame as it travels to `total` in place, modulo 2^32: any order gives the same bits.

    Raises CodecError when it is not as long as `total`.
    """
    if len(data) != 4 * total.size:
        raise CodecError(
            f"a masked frame of {total.size} elements is {4 * total.size} bytes, got {len(data)}"
        )
    np.add(total, np.frombuffer(data, "<u4"), out=total)
