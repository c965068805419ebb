"""What work costs: whole micro, rounded up once, with what rounding added."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from commons.accounting import Rate, RateCard
from commons.amounts import AMOUNT_LIMIT, PICO_PER_MICRO
from commons.errors import Code, Refusal
from governance.ratecard import Price, price, rate_card_digest
from tests.support.chamber import charter

HOUR_MS = 3_600_000


def card(*rates: dict[str, Any]) -> RateCard:
    return RateCard(
        currency="EUR", rates=tuple(Rate(**{"device": "cpu", "micro_per_gflop": 0, **r}) for r in rates)
    )


WORK = card(
    {"precision": "fp32", "micro_per_gflop": 3},
    {"precision": "bf16", "micro_per_pflop": 1_500},
    {"precision": "any", "micro_per_gflop": 2, "micro_per_device_second": 7},
    {"device": "h100", "micro_per_pflop": 1_999_999, "micro_per_device_second": 1_000_000},
)


@pytest.mark.parametrize(
    ("device", "precision", "gflop", "device_ms", "wanted"),
    [
        ("cpu", "fp32", 7, 10**9, Price(21, 0)),
        ("cpu", "bf16", 10**6, 0, Price(1_500, 0)),
        ("cpu", "bf16", 1, 0, Price(1, 998_500)),
        ("cpu", "bf16", 667, 0, Price(2, 999_500)),
        ("cpu", "fp8", 3, 0, Price(6, 0)),
        ("cpu", "any", 3, 1, Price(7, 993_000)),
        ("cpu", None, 5, 0, Price(15, 0)),
        ("cpu", None, 1, 10**6, Price(7_002, 0)),
        ("h100", "bf16", 0, HOUR_MS, Price(3_600_000_000, 0)),
        ("h100", "bf16", 1, 1, Price(1_002, 1)),
        ("cpu", "fp32", 0, 0, Price(0, 0)),
    ],
)
def test_work_and_time_add_up_at_the_rate_of_device_and_precision(
    device: str, precision: str | None, gflop: int, device_ms: int, wanted: Price
) -> None:
    assert price(WORK, device, precision, gflop=gflop, device_ms=device_ms) == wanted


@pytest.mark.parametrize(
    ("device", "precision", "gflop", "device_ms", "code"),
    [
        ("a100", "fp32", 1, 0, Code.RATE_UNKNOWN),
        ("a100", None, 1, 0, Code.RATE_UNKNOWN),
        ("cpu", "fp32", -1, 0, Code.AMOUNT_INVALID),
        ("cpu", "any", 0, -1, Code.AMOUNT_INVALID),
        ("cpu", "fp32", 2**62, 0, Code.AMOUNT_INVALID),
        ("h100", "fp32", 0, 2**63, Code.AMOUNT_INVALID),
    ],
)
def test_work_without_a_price_is_refused(
    device: str, precision: str | None, gflop: int, device_ms: int, code: Code
) -> None:
    refused = price(WORK, device, precision, gflop=gflop, device_ms=device_ms)
    assert isinstance(refused, Refusal)
    assert refused.code is code


def test_a_device_whose_only_rate_is_for_another_precision_says_what_there_is() -> None:
    refused = price(card({"precision": "bf16"}), "cpu", "fp32", gflop=1)
    assert isinstance(refused, Refusal)
    assert "cpu at fp32" in refused.message and "cpu bf16" in refused.message


def test_the_largest_amount_is_a_price_and_one_micro_more_is_none() -> None:
    assert price(card({"micro_per_gflop": 1}), "cpu", "any", gflop=AMOUNT_LIMIT - 1) == Price(
        AMOUNT_LIMIT - 1, 0
    )
    assert isinstance(price(card({"micro_per_gflop": 1}), "cpu", "any", gflop=AMOUNT_LIMIT), Refusal)


prices = st.integers(0, 10**9)
amounts = st.integers(0, 10**9)


@given(prices, prices, prices, amounts, amounts)
def test_a_price_is_never_below_the_exact_one_and_less_than_a_micro_above_it(
    per_gflop: int, per_pflop: int, per_second: int, gflop: int, device_ms: int
) -> None:
    rate = {"micro_per_gflop": per_gflop, "micro_per_pflop": per_pflop, "micro_per_device_second": per_second}
    found = price(card(rate), "cpu", "any", gflop=gflop, device_ms=device_ms)
    assert isinstance(found, Price)
    pflop, seconds = Fraction(gflop, 10**6), Fraction(device_ms, 1000)
    exact = gflop * per_gflop + pflop * per_pflop + seconds * per_second
    assert exact <= found.amount_micro < exact + 1
    assert found.amount_micro - exact == Fraction(found.rounded_pico, PICO_PER_MICRO)


@given(st.sampled_from(["fp32", "bf16", "any", "fp8"]), amounts, amounts)
def test_the_bound_without_a_precision_is_at_least_the_price_at_each(
    precision: str, gflop: int, device_ms: int
) -> None:
    bound = price(WORK, "cpu", None, gflop=gflop, device_ms=device_ms)
    found = price(WORK, "cpu", precision, gflop=gflop, device_ms=device_ms)
    assert isinstance(bound, Price) and isinstance(found, Price)
    assert found.amount_micro <= bound.amount_micro


def test_a_card_is_known_by_its_digest_and_rates_that_came_later_change_none() -> None:
    plain = charter().rate_card
    assert rate_card_digest(plain) == rate_card_digest(charter().rate_card)
    spelled = {
        "device": "cpu",
        "precision": "any",
        "micro_per_gflop": 3,
        "peak_gflops": 0,
        "micro_per_pflop": 0,
    }
    assert rate_card_digest(card(spelled)) == rate_card_digest(plain)
    assert rate_card_digest(card(spelled | {"micro_per_pflop": 1})) != rate_card_digest(plain)
