"""How much privacy a site has spent: epsilon at a given delta after its noised updates.

Each update is one Gaussian mechanism with the whole site as the unit of privacy and no subsampling, since every site
works in every round. Composed, such mechanisms are exactly one Gaussian mechanism with mu = sqrt(sum 1/z_i^2)
(Dong, Roth, Su, arXiv 1905.02383, corollary 3.3), whose epsilon has a closed form (Balle and Wang, arXiv 1805.06530,
theorem 8). So this is exact, needs no library, and comes out the same at the coordinator and at every site.
The test suite holds it against what the library `dp-accounting` bounds numerically.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache


def epsilon_after(noise_multipliers: Iterable[float], delta: float) -> float:
    """Epsilon of all these updates together; 0.0 for none. Never below the true value by more than rounding.

    `noise_multipliers`: standard deviation of the noise over the clipping norm, one per update sent, each above 0.
    The neighbouring case is that the update had been zero; that it had been any other doubles the sensitivity, which
    is the same as half the multiplier.
    """
    return gaussian_epsilon(math.fsum(1.0 / (z * z) for z in noise_multipliers), delta)


@lru_cache(maxsize=4096)
def gaussian_epsilon(mu_squared: float, delta: float) -> float:
    """Smallest epsilon at which a Gaussian mechanism of sensitivity mu times its deviation is (epsilon, delta)-private."""
    assert mu_squared >= 0 and 0 < delta < 1, "mu is a ratio of lengths, delta a probability"
    if not mu_squared:
        return 0.0
    mu = math.sqrt(mu_squared)
    low, high = 0.0, mu_squared / 2 + mu * math.sqrt(2 * math.log(1 / delta))
    if gaussian_delta(mu, 0.0) <= delta:
        return 0.0
    while (middle := (low + high) / 2) not in (low, high):
        if gaussian_delta(mu, middle) > delta:
            low = middle
        else:
            high = middle
    return high


def gaussian_delta(mu: float, epsilon: float) -> float:
    """The delta that goes with an epsilon: Phi(mu/2 - epsilon/mu) - e^epsilon Phi(-mu/2 - epsilon/mu)."""
    above, below = mu / 2 - epsilon / mu, -mu / 2 - epsilon / mu
    first = _log_normal_cdf(above)
    return math.exp(first) * -math.expm1(min(0.0, epsilon + _log_normal_cdf(below) - first))


def _log_normal_cdf(x: float) -> float:
    if x > -20:
        return math.log(0.5 * math.erfc(-x / math.sqrt(2)))
    square = x * x
    series = -1 / square + 3 / square**2 - 15 / square**3 + 105 / square**4
    return -square / 2 - math.log(-x * math.sqrt(2 * math.pi)) + math.log1p(series)
