"""How long a budget lasts: by hand, and against spending it round by round."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from governance.forecast import DAY_MS, ROUNDS_MAX, Forecast, Free, Spent, by_round, forecast

NOW = 100 * DAY_MS


def spent(*micros: int, every_ms: int = 1000) -> list[Spent]:
    return [Spent("r", n, NOW + (n - len(micros)) * every_ms, m) for n, m in enumerate(micros, 1)]


def made(charges: Sequence[Spent], *free: Free, run_rounds: int = 0) -> Forecast:
    available = sum(lot.amount_micro for lot in free if lot.in_force(NOW))
    return forecast("acme", charges, free, available_micro=available, run_rounds=run_rounds, now_ms=NOW)


def test_at_a_steady_pace_the_budget_ends_with_the_last_round_it_pays_for() -> None:
    found = made(spent(100, 100, 100), Free(450), run_rounds=4)
    assert (found.round_micro, found.round_ms, found.rounds_left) == (100, 1000, 4)
    assert found.exhausted_ms == NOW + 4000
    assert found.day_micro == 100 * 86_400
    assert found.lacking_micro == 0, "four rounds are left and four are paid for"


def test_what_the_rest_of_the_run_lacks_is_said() -> None:
    assert made(spent(100, 100), Free(450), run_rounds=7).lacking_micro == 300
    assert made(spent(100), Free(0), run_rounds=2).lacking_micro == 200


def test_the_pace_is_that_of_the_last_rounds_rounded_up() -> None:
    found = made(spent(*[10**6] * 5, *[1] * 9, 2), Free(100))
    assert found.round_micro == 2, "eleven micro in ten rounds"
    assert len(found.rounds) == 15


def test_a_pause_between_two_runs_does_not_make_rounds_seem_long() -> None:
    early = [Spent("r1", n, n, 10) for n in (1, 2)]
    assert made([*early, *spent(10, 10, 10)], Free(100)).round_ms == 1000


@pytest.mark.parametrize("charges", [[], spent(0, 0)], ids=["no charge", "charges of nothing"])
def test_who_spends_nothing_has_no_end(charges: list[Spent]) -> None:
    found = made(charges, Free(100), run_rounds=5)
    assert (found.round_micro, found.rounds_left, found.exhausted_ms, found.lacking_micro) == (
        0,
        None,
        None,
        0,
    )


def test_with_one_round_there_is_a_number_of_rounds_but_no_day() -> None:
    found = made(spent(30), Free(100))
    assert (found.rounds_left, found.exhausted_ms, found.day_micro, found.round_ms) == (3, None, 0, 0)


def test_what_expires_before_it_is_spent_is_not_counted_on() -> None:
    found = made(spent(100, 100), Free(1000, expires_ms=NOW + 2500), Free(150))
    assert found.rounds_left == 4, "at 0, 1000 and 2000 ms from the lot that expires, then one from the other"
    assert found.expiring_micro == 700


def test_a_later_grant_counts_from_its_first_day_on() -> None:
    found = made(spent(100, 100), Free(200), Free(300, not_before_ms=NOW + 1500))
    assert (found.rounds_left, found.exhausted_ms) == (5, NOW + 5000)
    late = made(spent(100, 100), Free(200), Free(300, not_before_ms=NOW + 2500))
    assert late.rounds_left == 2, "the budget is used up before it comes"


def test_days_are_those_of_utc_and_rounds_of_several_sites_are_one() -> None:
    sites = [Spent("r", 1, DAY_MS - 1, 5), Spent("r", 1, DAY_MS - 1, 6), Spent("r", 2, DAY_MS, 7)]
    rounds = by_round(sites)
    assert [(s.round, s.amount_micro) for s in rounds] == [(1, 11), (2, 7)]
    assert made(rounds).days == ((0, 11), (DAY_MS, 7))


def test_a_budget_beyond_all_counting_has_no_end() -> None:
    assert made(spent(1, 1), Free(ROUNDS_MAX)).rounds_left is None
    assert made(spent(1, 1), Free(ROUNDS_MAX - 1)).rounds_left == ROUNDS_MAX - 1


LOT = st.builds(
    lambda amount, begin, length: Free(amount, NOW + begin, NOW + begin + length if length else 0),
    st.integers(0, 900), st.integers(-3000, 9000), st.integers(0, 9000),
)  # fmt: skip


@given(
    free=st.lists(LOT, max_size=5),
    pace=st.integers(1, 300),
    every_ms=st.integers(1, 3000),
    run=st.integers(0, 30),
)
def test_jumping_from_event_to_event_is_spending_round_by_round(
    free: list[Free], pace: int, every_ms: int, run: int
) -> None:
    found = made(spent(pace, pace, every_ms=every_ms), *free, run_rounds=run)
    left, at_ms, rounds = [lot.amount_micro for lot in free], NOW, 0
    while True:
        usable = [i for i, lot in enumerate(free) if lot.in_force(at_ms)]
        if sum(left[i] for i in usable) < pace:
            break
        owed = pace
        for i in usable:
            part = min(owed, left[i])
            left[i] -= part
            owed -= part
        rounds, at_ms = rounds + 1, at_ms + every_ms
    assert (found.rounds_left, found.exhausted_ms) == (rounds, at_ms)
    assert found.lacking_micro == max(0, run - rounds) * pace
