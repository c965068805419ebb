"""Differential privacy at the site: its update is clipped, and noise is added to every value, before anything leaves.

One L2 norm over all noised slices, then Gaussian noise of deviation noise_multiplier * clip_norm, frame by frame in
bounded memory. Knows nothing of what a site has spent (`workers.spending`) or of codecs: what is done to the values
afterwards, quantisation and its error feedback too, costs no privacy.

The noise is a keystream turned into normal values (Box and Muller, 1958). Its key follows from a secret of the site,
from the round and from the update itself: a killed site draws the same noise again, and two different updates never
have the same. Floating-point noise tells its summand by its last bits (Mironov, CCS 2012), so sums are rounded to a
grid 2^-20 of the deviation wide, 2^32 times as coarse as the arithmetic: a remedy and no proof, see decision 0009.
"""

from __future__ import annotations

import hashlib
import hmac
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from commons.codec import FRAME, CodecError
from commons.experts.map import Slice
from commons.masking import Keystream
from commons.privacy.terms import DP
from commons.records import canonical_json

Array = NDArray[np.float32]
Doubles = NDArray[np.float64]
TAIL = math.sqrt(2 * 65 * math.log(2))
"""No value of the noise is further out than this many deviations, 9.49: the smallest uniform is 2^-65. That cuts off 2.3e-21
of the distribution; delta grows by at most as much for each value sent, 2.3e-12 for 10^9 of them."""
_BLOCK = 1 << 15
"""Values at a time: the arithmetic stays in the cache."""
_GRID_BITS = 20
_SHORT = 1 - 2.0**-30
"""Clipped updates are this much shorter than `clip_norm`, more than rounding can make them longer."""


@dataclass(frozen=True, kw_only=True)
class Noising:
    """How this site's update of one round is noised."""

    terms: DP
    secret: bytes
    """At least 32 bytes from a good source, which the site keeps (`workers.spending`)."""
    consortium: str
    run: str
    round: int
    charter: str
    """Digest of the charter in force: other terms, other noise."""
    site: str

    def covers(self, part: Slice) -> bool:
        """Whether that slice of the update is noised."""
        return part.expert is None or self.terms.slices == "all"

    def begin(self, update: Iterable[tuple[str, Array]]) -> Noise:
        """Read the update once, for its norm and its digest. Raises CodecError when it is not finite.

        `update`: every slice that is covered, flat, in the order in which they are numbered.
        """
        squares: list[float] = []
        read, numbers = hashlib.sha256(), dict[str, int]()
        for number, (name, delta) in enumerate(update):
            numbers[name] = number
            read.update(f"{name} {delta.size}\n".encode())
            for first in range(0, delta.size, FRAME):
                values = np.ascontiguousarray(delta[first : first + FRAME], "<f4")
                read.update(values.data)
                doubles = values.astype(np.float64)
                squares.append(float(np.add.reduce(np.square(doubles, out=doubles))))
        norm = math.sqrt(math.fsum(squares))
        if not math.isfinite(norm):
            raise CodecError(
                f"the update of site {self.site} for round {self.round} has values that are not finite"
            )
        return Noise(self.terms, self._key(read.hexdigest()), norm, numbers)

    def _key(self, update: str) -> bytes:
        # The attempt at a round is no part of it: trained from the same base the update is the same, and sent twice
        # under the same noise it tells no more than once.
        context = {name: value for name, value in vars(self).items() if name not in ("terms", "secret")}
        text = canonical_json({"kind": "hansa-noise/v1", "update": update, **context})
        return hmac.digest(self.secret, text, "sha256")


class Noise:
    """The clip and the noise of one update. For one thread."""

    def __init__(self, terms: DP, key: bytes, norm: float, slices: Mapping[str, int]) -> None:
        self.norm = norm
        """L2, before clipping."""
        self.scale = 1.0 if norm <= terms.clip_norm * _SHORT else terms.clip_norm * _SHORT / norm
        self.deviation = terms.noise_multiplier * terms.clip_norm
        self._grid = 2.0 ** (math.floor(math.log2(self.deviation)) - _GRID_BITS)
        self._slices, self._normal = slices, Normal(key)

    def covers(self, name: str) -> bool:
        return name in self._slices

    def frame(self, name: str, number: int, values: Array) -> Array:
        """One frame of slice `name` as it may leave the site. Asked again, the same."""
        noised = self._normal.frame(values.size, self._slices[name], number)
        noised *= self.deviation
        for first in range(0, values.size, _BLOCK):
            block = noised[first : first + _BLOCK]
            block += np.multiply(values[first : first + _BLOCK], self.scale, dtype=np.float64)
            block *= 1 / self._grid
            np.rint(block, out=block)
            block *= self._grid
        return noised.astype(np.float32)


class Normal:
    """Independent standard normal values from one key, 64 random bits for each. For one thread."""

    def __init__(self, key: bytes) -> None:
        """`key`: 32 bytes, used for nothing else."""
        self._stream = Keystream(key)
        self._words = np.empty(2 * FRAME, np.uint32)
        self._values = np.empty(FRAME, np.float64)
        self._radius, self._angle = (np.empty(_BLOCK // 2, np.float64) for _ in range(2))

    def frame(self, count: int, slice_index: int, frame: int) -> Doubles:
        """The first `count` values, 1 to FRAME, of that frame of that slice; written over by the next call."""
        even = count + count % 2
        for half, first in enumerate(range(0, 2 * even, FRAME)):
            self._stream.fill(
                self._words[first : min(first + FRAME, 2 * even)], slice_index, 2 * frame + half
            )
        uniform = self._words[: 2 * even].view("<u8")
        for first in range(0, even, _BLOCK):
            drawn = uniform[first : first + _BLOCK]
            self._turn(drawn, self._values[first : first + drawn.size])
        return self._values[:count]

    def _turn(self, drawn: NDArray[np.uint64], into: Doubles) -> None:
        pairs = drawn.size // 2
        radius, angle = self._radius[:pairs], self._angle[:pairs]
        np.add(drawn[:pairs], 0.5, out=radius)
        radius *= 2.0**-64
        np.log(radius, out=radius)
        radius *= -2.0
        np.sqrt(radius, out=radius)
        np.multiply(drawn[pairs:], 2.0**-63 * math.pi, out=angle)
        np.multiply(np.cos(angle, out=into[:pairs]), radius, out=into[:pairs])
        np.multiply(np.sin(angle, out=into[pairs:]), radius, out=into[pairs:])
