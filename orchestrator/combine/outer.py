"""The outer step: how the mean of the sites' deltas moves the shared slices (DiLoCo, arXiv 2311.08105)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from commons.learning import Outer

Array = NDArray[np.float32]


def outer_step(mean: Array, momentum: Array | None, outer: Outer) -> tuple[Array, Array | None]:
    """What is added to the base's weights, and the new momentum, fp32; the mean delta is the (negative) outer gradient.

    SGD as PyTorch writes it: v = momentum * v + d, step by v, or with Nesterov by d + momentum * v. Without
    momentum and at rate 1 it is plain averaging. The momentum is None while the charter asks for none. All arguments
    and results are of one shape; none is changed.
    """
    rate = np.float32(outer.learning_rate)
    if not outer.momentum:
        return rate * mean, None
    share = np.float32(outer.momentum)
    velocity = mean.copy() if momentum is None else share * momentum + mean
    step = mean + share * velocity if outer.nesterov else velocity
    return rate * step, velocity
