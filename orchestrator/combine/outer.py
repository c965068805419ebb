"""The outer step: how the mean of the sites' deltas moves the shared slices (DiLoCo, arXiv 2311.08105)."""

from __future__ import annotations

import numpy as np

from commons.charter import Outer
from commons.states import Tensor


def outer_step(
    base: Tensor, mean: Tensor, momentum: Tensor | None, outer: Outer
) -> tuple[Tensor, Tensor | None]:
    """New weights and new momentum of one slice, fp32; the mean delta is the (negative) outer gradient.

    SGD as PyTorch writes it: v = momentum * v + d, step by v, or with Nesterov by d + momentum * v. Without
    momentum and at rate 1 it is plain averaging. The momentum is None while the charter asks for none.
    """
    rate = np.float32(outer.learning_rate)
    if not outer.momentum:
        return base + rate * mean, None
    share = np.float32(outer.momentum)
    velocity = mean.copy() if momentum is None else share * momentum + mean
    step = mean + share * velocity if outer.nesterov else velocity
    return base + rate * step, velocity
