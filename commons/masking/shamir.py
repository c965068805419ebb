"""Sharing a secret among n so that any t of them can put it together and t - 1 learn nothing (Shamir, 1979).

Whole numbers modulo a prime just below 2^256. Python's whole numbers do not hide by their timing how large they
are; shares are computed once an attempt on the machine that owns the secret, where nobody else can time them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

PRIME = 2**256 - 189
"""The largest prime of 256 bits: a share is 32 bytes, and so is a secret."""


def split(secret: int, coefficients: Sequence[int], count: int) -> list[int]:
    """Shares 1 to `count` of `secret`: any ``len(coefficients) + 1`` of them give it back.

    `coefficients` are uniform below PRIME, secret, and used for this one secret only.
    """
    assert 0 <= secret < PRIME, "a secret is below the prime"
    assert len(coefficients) < count < PRIME, "as many shares as are needed to put the secret together"
    shares = []
    for x in range(1, count + 1):
        y = 0
        for coefficient in reversed(coefficients):
            y = (y + coefficient) * x % PRIME
        shares.append((y + secret) % PRIME)
    return shares


def weights(numbers: Sequence[int]) -> list[int]:
    """What each of the shares with these numbers counts in the secret: Lagrange's polynomials at 0."""
    assert len(set(numbers)) == len(numbers) and all(n % PRIME for n in numbers), (
        "numbers differ and are not 0"
    )
    found = []
    for x in numbers:
        above, below = 1, 1
        for other in numbers:
            if other != x:
                above = above * other % PRIME
                below = below * (other - x) % PRIME
        found.append(above * pow(below, -1, PRIME) % PRIME)
    return found


def join(shares: Mapping[int, int]) -> int:
    """The secret of these shares, number -> share. Fewer than were asked for, or a wrong one, give another number."""
    return sum(w * y for w, y in zip(weights(list(shares)), shares.values(), strict=True)) % PRIME
