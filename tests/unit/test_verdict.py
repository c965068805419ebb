"""A verdict follows from what more than half of the sites measured, and lays harm on nobody who did not do it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from commons.judging import Rollback
from commons.verdict import (
    CHANGE_MAX,
    EARLY,
    LEAST,
    RECENT,
    Said,
    change,
    change_of_part,
    culprit,
    dragging,
    dragging_still,
    helping_nobody,
    limit,
    remembering,
)

untimed = settings(max_examples=60, deadline=None)
SITES = st.sampled_from("abcdefghi")
LOSSES = st.dictionaries(SITES, st.floats(0, 1e9, allow_nan=False), max_size=9)
"""Of a probe of one part."""
PPM = st.integers(-CHANGE_MAX, CHANGE_MAX)
RULES = st.builds(Rollback, on=st.just(True), rise_percent=st.floats(0, 1000), sigmas=st.floats(0, 100))


@pytest.mark.parametrize(
    ("before", "after", "ppm"),
    [
        ({"a": 2.0}, {"a": 2.5}, 250_000),
        ({"a": 2.0, "b": 1.0}, {"a": 2.5, "b": 0.9}, -100_000),
        ({"a": 2.0, "b": 1.0, "c": 4.0}, {"a": 2.5, "b": 0.9, "c": 4.1}, 25_000),
        ({"a": 2.0, "b": 1.0}, {"b": 1.5, "c": 9.0}, 500_000),
        ({"a": 2.0}, {"b": 1.5}, None),
        ({}, {}, None),
        ({"a": 0.0}, {"a": 0.0}, 0),
        ({"a": 0.0}, {"a": 1e-9}, CHANGE_MAX),
        ({"a": 1e-9}, {"a": 1e9}, CHANGE_MAX),
    ],
)
def test_the_lower_median_of_those_who_measured_both_states_counts(
    before: dict[str, float], after: dict[str, float], ppm: int | None
) -> None:
    assert change(*parted(before, after)) == ppm
    assert change_of_part(*parted(before, after), None) == ppm, "there is one part"


@untimed
@given(LOSSES, LOSSES)
def test_a_rise_is_stated_only_where_more_than_half_measured_one(
    before: dict[str, float], after: dict[str, float]
) -> None:
    found = change(*parted(before, after))
    both = before.keys() & after.keys()
    assert (found is None) == (not both)
    if found is not None and found > 0:
        assert 2 * sum(after[s] > before[s] for s in both) > len(both)


@untimed
@given(
    st.dictionaries(SITES, st.tuples(st.floats(0.1, 10), st.floats(0.1, 10)), min_size=3, max_size=9),
    st.floats(0, 1e9),
    st.floats(0, 1e9),
)
def test_one_liar_moves_a_verdict_no_further_than_to_what_another_site_measured(
    honest: dict[str, tuple[float, float]], before: float, after: float
) -> None:
    liar = "z"
    told = [{s: pair[n] for s, pair in honest.items()} | {liar: (before, after)[n]} for n in (0, 1)]
    found = change(*parted(*told))
    each = [change({s: (b,)}, {s: (a,)}) for s, (b, a) in honest.items()]
    assert found in each or min(x for x in each if x is not None) <= (found or 0) <= max(
        x for x in each if x is not None
    )


@untimed
@given(st.lists(PPM, max_size=40), RULES)
def test_a_rise_within_the_charters_percent_is_never_harm(changes: list[int], rules: Rollback) -> None:
    assert limit(changes, rules) >= round(rules.rise_percent * 10_000)


def test_the_limit_is_what_recent_rounds_make_usual() -> None:
    rules = Rollback(on=True, rise_percent=0.1, sigmas=3.0)
    assert limit([5000] * (LEAST - 1), rules) == 1000 * EARLY, "of too few nobody can say what is usual"
    assert limit([5000] * LEAST, rules) == 5000, "a loss that rises steadily is no harm"
    steady = [-2000, -1000, 0, 1000, 2000]
    assert limit(steady, rules) == round(3 * 1.4826 * 1000)
    assert limit([*steady, 900_000], rules) < 10_000, "one wild round does not make harm usual"
    assert limit([9_000_000] * 3 + [0] * RECENT, rules) == 1000, "what is long ago is forgotten"


def by_name(**ppm: int) -> dict[tuple[str, int], int]:
    return {(name, 3): value for name, value in ppm.items()}


def test_the_update_without_which_the_round_is_best_did_it() -> None:
    harm = by_name(a=-9, b=-90, c=-5)
    assert culprit(100, by_name(a=90, b=-5, c=95), harm) == ("b", 3)
    assert culprit(100, by_name(b=10, a=10), harm) == ("a", 3), "of equals the first"
    assert culprit(100, by_name(a=80, b=76, c=99), harm) is None, "all did it a little"
    assert culprit(100, {}, {}) is None


def test_nobody_is_named_who_helps_a_part_of_the_probe() -> None:
    """However much better all the others would be without it."""
    without = by_name(a=90, b=-5, c=30)
    assert culprit(100, without, by_name(a=800, b=500, c=700)) is None
    assert culprit(100, without, by_name(a=800, b=500, c=-1)) == ("c", 3)
    assert helping_nobody(by_name(a=800, b=125, c=500)) == {("b", 3)}, "a quarter of the median is not much"
    assert helping_nobody(by_name(a=-8, b=-4)) == {("a", 3), ("b", 3)}
    assert helping_nobody({}) == set()


def parted(*losses: dict[str, float]) -> list[dict[str, tuple[float]]]:
    return [{site: (loss,) for site, loss in found.items()} for found in losses]


def test_of_several_parts_the_whole_is_their_sum_and_the_best_the_one_that_rose_most() -> None:
    before = {"a": (2.0, 2.0), "b": (1.0, 3.0), "c": (2.0, 2.0)}
    after = {"a": (1.8, 2.1), "b": (0.9, 3.3), "c": (1.0, 2.2)}
    assert change(before, after) == -25_000
    assert change_of_part(before, after, None) == 100_000
    assert [change_of_part(before, after, n) for n in (0, 1, 2)] == [-100_000, 100_000, None]
    assert change_of_part({}, after, None) is None


@pytest.mark.parametrize(
    ("worth", "best", "named"),
    [
        (by_name(a=-2001, b=-9000, c=500), by_name(a=-10, b=-20, c=4000), "ab"),
        (by_name(a=-2000, b=500, c=500), by_name(a=-10, b=4000, c=4000), ""),
        (by_name(a=-9000, b=500, c=500), by_name(a=1001, b=4000, c=4000), ""),
        (by_name(a=-9000, b=500, c=500), by_name(a=1000, b=4000, c=4000), "a"),
        (by_name(a=-9000, b=500), by_name(a=1, b=-7), ""),
        (by_name(a=-9000, b=-9000), by_name(a=-1, b=-1), "ab"),
        ({}, {}, ""),
    ],
)
def test_who_drags_helps_no_kind_of_text_and_holds_the_whole_up(
    worth: dict[tuple[str, int], int], best: dict[tuple[str, int], int], named: str
) -> None:
    found = dragging(worth, best, Rollback(on=True, drag_percent=0.2))
    assert found == [(name, 3) for name in named]
    assert dragging(worth, best, Rollback(on=True)) == [], "a charter that does not ask for it"


SUMMED = Rollback(on=True, drag_percent=0.2, drag_memory=0.5)


def appraisals(site: str, *said: tuple[int, int]) -> dict[str, tuple[Said, ...]]:
    """`site` and two honest ones, appraised so many times."""
    history: dict[str, tuple[Said, ...]] = {}
    for worth, own in said:
        names = [(site, 3), ("x", 3), ("y", 3)]
        worths, owns = (worth, 500, 500), (own, 4000, 4000)
        history = remembering(
            history, dict(zip(names, worths, strict=True)), dict(zip(names, owns, strict=True))
        )
    return history


@pytest.mark.parametrize(
    ("before", "now", "drags", "still"),
    [
        ([], (-1500, 0), False, False),
        ([(-1500, 0)], (-1500, 0), True, True),
        ([(-1500, 0)], (-1200, 0), False, False),
        ([(-9000, 0)], (-1, 0), True, True),
        ([(-9000, 0)], (1, 0), True, True),
        ([(-9000, -20000)], (-1, 4000), True, False),
        ([(-9000, 9000)], (-1500, -1), False, False),
        ([(-9000, 9000), (-1500, -9000)], (-1500, -1), True, True),
        ([(-9000, 0), (9000, 4000)], (-1500, 0), False, False),
    ],
)
def test_small_harm_adds_up_and_old_harm_fades_and_who_has_mended_is_not_left_out(
    before: list[Said], now: Said, drags: bool, still: bool
) -> None:
    history = appraisals("a", *before)
    worth, own = by_name(a=now[0], x=500, y=500), by_name(a=now[1], x=4000, y=4000)
    assert dragging(worth, own, SUMMED, history) == [("a", 3)] * drags
    assert dragging_still(worth, own, SUMMED, history, {"a"}) == [("a", 3)] * still
    assert dragging_still(worth, own, SUMMED, history, ()) == [], "once is no habit"


@untimed
@given(
    st.lists(
        st.dictionaries(st.tuples(SITES, st.integers(1, 2)), st.tuples(PPM, PPM), max_size=5), max_size=20
    ),
    st.floats(0.1, 10),
)
def test_without_a_memory_the_last_appraisal_counts_alone_and_no_history_grows_for_ever(
    rounds: list[dict[tuple[str, int], Said]], bears: float
) -> None:
    history: dict[str, tuple[Said, ...]] = {}
    rules = Rollback(on=True, drag_percent=bears)
    for found in rounds:
        worth, own = {n: w for n, (w, _) in found.items()}, {n: o for n, (_, o) in found.items()}
        alone = dragging(worth, own, rules)
        assert dragging(worth, own, rules, history) == alone
        assert dragging_still(worth, own, rules, history, {s for s, _ in found}) == alone
        history = remembering(history, worth, own)
    assert all(len(said) <= RECENT for said in history.values())


@untimed
@given(st.integers(1, CHANGE_MAX), st.dictionaries(st.tuples(SITES, st.integers(1, 9)), PPM, max_size=9))
def test_nobody_is_named_whose_absence_takes_back_less_than_a_quarter(
    rise: int, without: dict[tuple[str, int], int]
) -> None:
    named = culprit(rise, without, dict.fromkeys(without, -1))
    if named is None:
        assert all(4 * (rise - left) < rise for left in without.values())
    else:
        assert without[named] == min(without.values()) and 4 * without[named] <= 3 * rise
