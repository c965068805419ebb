"""What a change costs: against a count of every round by hand."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from commons import features
from commons.charter import Charter
from commons.errors import Code, Refusal
from governance.quotes import Measured, PayerQuote, Progress, Quote, quote
from tests.support.chamber import charter

NOW = 1_000
FREE = {"acme": 1_000_000, "beta": 1_000_000, "coop": 1_000_000}
TIMED = {"device": "cpu", "micro_per_gflop": 3, "micro_per_device_second": 10}


def gflop(of: Charter) -> int:
    return 4 * of.learning.inner_steps  # 40 for the 10 steps of the charter


def after(of: Charter, key: str, **params: Any) -> Charter:
    changed = features.apply(of, key, params)
    assert isinstance(changed, Charter), changed
    return changed


def quoted(before: Charter, changed: Charter, **more: Any) -> Quote:
    given: dict[str, Any] = {
        "available_micro": FREE, "measured": {}, "progress": None, "effective_round": 1, "now_ms": NOW,
    }  # fmt: skip
    found = quote(before, changed, gflop, **{**given, **more})
    assert isinstance(found, Quote), found
    return found


def of(found: Quote, payer: str) -> PayerQuote:
    return next(p for p in found.payers if p.payer == payer)


def test_twice_the_steps_cost_twice_as_much_per_round_and_run() -> None:
    base = charter()
    acme = of(quoted(base, after(base, "inner-steps", steps=20)), "acme")
    assert (acme.before.round_micro, acme.after.round_micro) == (120, 240)
    assert (acme.before.run_micro, acme.after.run_micro) == (480, 960)
    assert (acme.before.rest_micro, acme.after.rest_micro) == (480, 960), (
        "without a run, what is left is a full one"
    )


def test_a_running_run_pays_the_old_price_until_the_change_takes_effect() -> None:
    base = charter()
    found = quoted(
        base, after(base, "inner-steps", steps=20), progress=Progress("r", 2, 4), effective_round=3
    )
    acme = of(found, "acme")
    assert (found.run, found.from_round, found.last_round) == ("r", 3, 4)
    assert (acme.before.rest_micro, acme.after.rest_micro) == (3 * 120, 120 + 2 * 240)
    over = quoted(base, after(base, "inner-steps", steps=20), progress=Progress("r", 5, 4))
    assert of(over, "acme").after.rest_micro == 0, "no round of it is left"


def test_another_sponsor_pays_instead_and_who_never_pays_is_not_listed() -> None:
    base = charter()
    found = quoted(base, after(base, "sponsor", site="turin", payer="beta"))
    assert [p.payer for p in found.payers] == ["acme", "beta", "coop"]
    assert [(p.before.round_micro, p.after.round_micro) for p in found.payers] == [
        (120, 120),
        (0, 120),
        (120, 0),
    ]
    assert [p.payer for p in quoted(base, after(base, "routing", routing="lean")).payers] == ["acme", "coop"]


def test_who_lacks_budget_is_named_with_the_first_round_that_is_not_paid_for() -> None:
    base = charter()
    found = quoted(
        base, after(base, "inner-steps", steps=20),
        available_micro={"acme": 400, "coop": 480}, progress=Progress("r", 1, 4),
    )  # fmt: skip
    assert (of(found, "acme").before.lacks_from, of(found, "acme").after.lacks_from) == (4, 2)
    assert (of(found, "coop").before.lacks_from, of(found, "coop").after.lacks_from) == (None, 3)


def test_a_grant_is_counted_now_or_later_and_a_pledge_of_time_is_no_money() -> None:
    base = charter()
    now = after(base, "grant", name="spring", member="coop", amount=500)
    later = after(now, "grant", name="summer", member="coop", amount=70, not_before_ms=NOW + 1)
    pledge = after(later, "grant", name="time", member="coop", unit="device_ms:cpu", amount=9)
    found = of(quoted(base, pledge, available_micro={"coop": 0}), "coop")
    assert (found.granted_micro, found.later_micro) == (500, 70)
    assert (found.before.lacks_from, found.after.lacks_from) == (1, None), "4 rounds of 120 fit into 500"


def test_time_costs_what_it_took_last_and_its_whole_lease_where_nothing_is_known() -> None:
    base = charter()
    timed = after(base, "rates", **TIMED)
    found = quoted(base, timed, measured={"berlin": Measured(gflop=20, device_ms=6_000)})
    assert found.assumed == ("turin",)
    assert of(found, "acme").after.round_micro == 120 + 12 * 10, "12 s for 40 gflop, as 20 took 6 s"
    assert of(found, "coop").after.round_micro == 120 + 60 * 10, "the lease"


def test_a_round_is_left_out_for_lack_of_what_is_held_though_less_would_be_charged() -> None:
    base = charter(rate_card={"currency": "EUR", "rates": (TIMED,)})
    measured = {"berlin": Measured(40, 8_000), "turin": Measured(40, 8_000)}
    found = quoted(base, base, available_micro={"acme": 419, "coop": 420}, measured=measured)
    assert of(found, "acme").before.round_micro == 200
    assert of(found, "acme").before.lacks_from == 2, "219 are left, a quarter more time is held for: 220"
    assert of(found, "coop").before.lacks_from == 3


def test_a_price_that_is_no_amount_is_refused() -> None:
    base = charter()
    dear = after(base, "rates", device="cpu", micro_per_gflop=2**62)
    found = quote(
        base, dear, gflop, available_micro=FREE, measured={}, progress=None, effective_round=1, now_ms=NOW
    )
    assert isinstance(found, Refusal)
    assert found.code == Code.AMOUNT_INVALID


@given(
    price=st.tuples(st.integers(0, 5), st.integers(0, 5)),
    free=st.integers(0, 6000),
    next_round=st.integers(1, 12),
    effective=st.integers(1, 14),
)
def test_sums_and_first_lack_are_those_of_walking_round_by_round(
    price: tuple[int, int], free: int, next_round: int, effective: int
) -> None:
    def at(micro: int) -> Charter:
        return charter(rate_card={"currency": "EUR", "rates": ({"device": "cpu", "micro_per_gflop": micro},)})

    found = quoted(
        at(price[0]), at(price[1]), available_micro={"acme": free},
        progress=Progress("r", next_round, 10), effective_round=effective,
    )  # fmt: skip
    left, total, lacks = free, 0, None
    for number in range(next_round, 11):
        cost = 40 * price[number >= effective]
        if lacks is None and left < cost:
            lacks = number
        left -= cost
        total += cost
    acme = of(found, "acme").after
    assert (acme.rest_micro, acme.lacks_from) == (total, lacks)
