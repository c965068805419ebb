"""The seed rule of one expert: weights that everybody who knows the charter computes to the same bit.

A normal distribution from whole numbers: twelve of 16 bits summed, which no machine and no version of a library rounds
otherwise. The raw stream is Philox 4x64 (Salmon et al. 2011), whose bits numpy keeps for good; what it makes of them it
does not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from commons.charter import Model
from commons.experts.families import FAMILIES
from commons.names import ExpertId

_BLOCK = 1 << 17
"""Values made at a time."""
_DRAWS, _BITS = 12, 16
_MEAN = _DRAWS * ((1 << _BITS) - 1) // 2


def deviation(model: Model, name: str) -> float:
    """Standard deviation of a matrix's initial weights: `initializer_range`, for projections back into the residual
    stream by 1 / sqrt(2 layers) less (GPT-2)."""
    c = FAMILIES[model.family].settings(model.config)
    back = name.removesuffix(".weight").endswith(("o_proj", "down_proj", "w2"))
    return c.real("initializer_range") * ((2 * c.whole("num_hidden_layers")) ** -0.5 if back else 1.0)


def initial_blocks(
    model: Model, *, seed: int, expert: ExpertId, role: str, size: int
) -> Iterator[NDArray[np.float32]]:
    """The `size` weights of what is called `role` within the expert, in order: N(0, `deviation`), of at most 6 deviations."""
    key = np.frombuffer(hashlib.sha256(f"{seed}/{expert}/{role}".encode()).digest()[:16], np.uint64)
    bits, scale = np.random.Philox(key=key), np.float32(deviation(model, role))
    for first in range(0, size, _BLOCK):
        count = min(_BLOCK, size - first)
        words = np.asarray(bits.random_raw(count * _DRAWS * _BITS // 64), "<u8").view("<u2")
        sums = words.reshape(count, _DRAWS).sum(1, dtype=np.int64) - _MEAN
        yield sums.astype(np.float32) / np.float32(1 << _BITS) * scale
