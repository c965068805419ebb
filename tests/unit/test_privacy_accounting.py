"""Epsilon spent is the exact figure, by whatever road one computes it."""

from __future__ import annotations

import mpmath
import pytest
from dp_accounting import dp_event, pld, rdp
from hypothesis import given, settings
from hypothesis import strategies as st

from commons.privacy.accounting import epsilon_after, gaussian_delta, gaussian_epsilon


def delta_by_many_digits(mu: float, epsilon: float) -> mpmath.mpf:
    """Balle and Wang's theorem 8 with two hundred digits."""
    with mpmath.workdps(200):
        m, e = mpmath.mpf(mu), mpmath.mpf(epsilon)
        return mpmath.ncdf(m / 2 - e / m) - mpmath.exp(e) * mpmath.ncdf(-m / 2 - e / m)


@settings(deadline=None)
@given(mu=st.floats(1e-3, 60), delta=st.floats(1e-15, 1e-2))
def test_the_closed_form_agrees_with_two_hundred_digits(mu: float, delta: float) -> None:
    epsilon = gaussian_epsilon(mu * mu, delta)
    assert delta_by_many_digits(mu, epsilon) <= delta * (1 + 1e-6)
    if epsilon > 1e-9:
        assert delta_by_many_digits(mu, epsilon * (1 - 1e-6)) > delta * (1 - 1e-3)


@pytest.mark.parametrize(
    ("z", "rounds", "delta", "epsilon"),
    [
        (1.0, 1, 1e-5, 4.3771),  # Balle and Wang's analytic mechanism at sigma = 1
        (1.0, 1, 1e-6, 4.8866),
        (10.0, 100, 1e-6, 4.8866),  # a hundred at ten are one at one
        (2.0, 4, 1e-6, 4.8866),
    ],
)
def test_known_figures(z: float, rounds: int, delta: float, epsilon: float) -> None:
    assert epsilon_after([z] * rounds, delta) == pytest.approx(epsilon, abs=1e-4)


@settings(deadline=None)
@given(
    spent=st.lists(st.floats(0.05, 100), max_size=20),
    more=st.floats(0.05, 100),
    delta=st.sampled_from([1e-9, 1e-6, 1e-3]),
)
def test_every_update_costs_and_order_does_not_matter(spent: list[float], more: float, delta: float) -> None:
    before, after = epsilon_after(spent, delta), epsilon_after([*spent, more], delta)
    assert after >= before
    assert epsilon_after([more, *reversed(spent)], delta) == after
    assert epsilon_after([*spent, more], delta / 2) >= after, "a smaller delta is a stronger promise"
    assert epsilon_after([z * 1.01 for z in [*spent, more]], delta) <= after, "more noise costs less"


def test_nothing_sent_costs_nothing() -> None:
    assert epsilon_after([], 1e-6) == 0.0
    assert epsilon_after([1e4], 1e-2) == 0.0, "below delta even without epsilon"


def test_deltas_far_out_do_not_underflow_or_overflow() -> None:
    assert 0 < gaussian_delta(1.0, 30.0) < 1e-180
    assert gaussian_epsilon(1e9, 1e-6) == pytest.approx(5e8, rel=1e-3)


@pytest.mark.parametrize(
    ("multipliers", "delta"),
    [
        ([1.0], 1e-5),
        ([2.0] * 4, 1e-6),
        ([10.0] * 30, 1e-6),
        ([4.0] * 100, 1e-7),
        ([1.5] * 5 + [3.0] * 20, 1e-6),
        ([0.7, 25.0, 2.0], 1e-9),
    ],
)
def test_dp_accounting_is_of_the_same_opinion(multipliers: list[float], delta: float) -> None:
    """Its privacy loss distributions bound epsilon from above on a grid; Renyi's bound is wider."""
    events = dp_event.ComposedDpEvent([dp_event.GaussianDpEvent(z) for z in multipliers])
    bounds = [a.compose(events).get_epsilon(delta) for a in (pld.PLDAccountant(), rdp.RdpAccountant())]
    ours = epsilon_after(multipliers, delta)
    assert bounds[0] * (1 - 1e-5) <= ours <= bounds[0] * (1 + 1e-9) <= bounds[1]
