"""Sharing a secret: any t shares give it back, fewer fit every secret alike."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from commons.masking.shamir import PRIME, join, split, weights

numbers = st.integers(0, PRIME - 1)


@st.composite
def sharings(draw: st.DrawFn) -> tuple[int, list[int], list[int]]:
    """A secret, t - 1 coefficients, and the numbers of t to n different shares in any order."""
    count = draw(st.integers(1, 64))
    needed = draw(st.integers(1, count))
    coefficients = draw(st.lists(numbers, min_size=needed - 1, max_size=needed - 1))
    if draw(st.booleans()):
        coefficients = [c >> 250 for c in coefficients]
    some = draw(st.integers(needed, count))
    chosen = draw(st.permutations(range(1, count + 1)))[:some]
    return draw(numbers), coefficients, [count, *chosen]


def lagrange_at_zero(points: list[tuple[int, int]]) -> int:
    """Another way to the same number: interpolate with exact fractions, reduce at the end."""
    total = Fraction(0)
    for i, (x, y) in enumerate(points):
        term = Fraction(y)
        for j, (other, _) in enumerate(points):
            if i != j:
                term *= Fraction(-other, x - other)
        total += term
    return total.numerator * pow(total.denominator, PRIME - 2, PRIME) % PRIME


@settings(max_examples=60, deadline=None)
@given(sharing=sharings())
def test_enough_shares_give_the_secret_as_interpolation_with_fractions_does(
    sharing: tuple[int, list[int], list[int]],
) -> None:
    secret, coefficients, (count, *chosen) = sharing
    shares = split(secret, coefficients, count)
    assert len(shares) == count and all(0 <= share < PRIME for share in shares)
    assert join({n: shares[n - 1] for n in chosen}) == secret
    assert lagrange_at_zero([(n, shares[n - 1]) for n in chosen]) == secret


@settings(max_examples=60, deadline=None)
@given(secret=numbers, other=numbers, coefficients=st.lists(numbers, min_size=1, max_size=12))
def test_one_share_too_few_fits_any_other_secret_too(
    secret: int, other: int, coefficients: list[int]
) -> None:
    """For each secret there is exactly one polynomial through t - 1 shares: they tell nothing."""
    needed = len(coefficients) + 1
    shares = split(secret, coefficients, needed)
    known = {n: shares[n - 1] for n in range(1, needed)}
    last = (other - join_at(known, needed, other)) % PRIME
    assert join({**known, needed: last}) == other


def join_at(known: dict[int, int], last: int, secret: int) -> int:
    """What is to be taken from `secret` so that the result, as share number `last`, completes `known` to it."""
    factors = dict(zip([*known, last], weights([*known, last]), strict=True))
    rest = sum(factors[n] * share for n, share in known.items())
    return secret - (secret - rest) * pow(factors[last], -1, PRIME)


@given(values=st.lists(numbers, min_size=3, max_size=3), errors=st.integers(1, PRIME - 1))
def test_a_wrong_share_gives_another_secret(values: list[int], errors: int) -> None:
    secret, *coefficients = values
    shares = split(secret, coefficients, 3)
    assert join({1: (shares[0] + errors) % PRIME, 2: shares[1], 3: shares[2]}) != secret


def test_the_modulus_is_the_largest_prime_of_256_bits() -> None:
    sympy = pytest.importorskip("sympy")
    assert sympy.prevprime(2**256) == PRIME


def test_known_shares_of_a_known_polynomial() -> None:
    assert split(7, [3, 2], 4) == [12, 21, 34, 51]
    assert join({4: 51, 1: 12, 3: 34}) == 7
