"""What a site goes on with: its own values where nobody moved the state under them, else what all have together."""

from __future__ import annotations

import numpy as np
import pytest

from commons.learning import Learning
from workers.standing import Array, Standing

DUE = {"a"}
BASE = {name: np.full(3, value, np.float32) for name, value in (("a", 1.0), ("b", 2.0), ("c", 3.0))}
LOCAL = {name: array + np.float32(0.5) for name, array in BASE.items()}


def learning(**changes: int) -> Learning:
    words = {"rounds": 9, "inner_steps": 4, "batch_size": 1, "sequence_length": 8} | changes
    return Learning(learning_rate=0.1, **words)  # type: ignore[arg-type]


def left(**changes: int) -> Standing:
    found = Standing.left(5, LOCAL, DUE, BASE, learning(**{"fragments": 3} | changes))
    assert found is not None
    return Standing.read(found.facts(), found.local)


def state(**values: float) -> dict[str, Array]:
    return BASE | {name: np.full(3, value, np.float32) for name, value in values.items()}


@pytest.mark.parametrize(
    ("now", "goes_on"),
    [
        (state(a=1.25), {"b", "c"}),
        (state(a=1.25, b=2.5), {"c"}),
        (state(a=1.25, b=2.5, c=3.5), set()),
        (state(), set()),
        (state(b=2.5), set()),
    ],
    ids=["the round closed", "a round was missed", "all was exchanged", "taken back", "taken back further"],
)
def test_a_site_goes_on_with_what_nobody_moved(now: dict[str, Array], goes_on: set[str]) -> None:
    kept = left().goes_on(now)
    assert kept.keys() == goes_on
    assert all(np.array_equal(kept[name], LOCAL[name]) for name in kept)


def test_where_every_round_exchanges_everything_nothing_is_kept() -> None:
    assert Standing.left(5, LOCAL, BASE, BASE, learning()) is None
    assert left().local.keys() == {"b", "c"}, "what was exchanged is of no more use"


def test_steps_made_meanwhile_are_added_to_what_was_exchanged_and_what_others_moved_is_taken_whole() -> None:
    standing = left(overlap_steps=2)
    here = {name: array + np.float32(0.25) for name, array in standing.local.items()}
    taken = standing.taken_in(here, state(a=5.0, b=9.0))
    assert [float(taken[name][0]) for name in "abc"] == [5.25, 9.0, 3.75]


@pytest.mark.parametrize(
    ("number", "of", "leads"),
    [
        (6, {"overlap_steps": 2}, True),
        (7, {"overlap_steps": 2}, False),
        (6, {"fragments": 3}, False),
    ],
)
def test_only_the_very_next_round_begins_from_where_the_site_stands(
    number: int, of: dict[str, int], leads: bool
) -> None:
    assert left(overlap_steps=2).leads_to(number, learning(**of)) is leads
    assert not left().leads_to(number, learning(**of)), "it was left without what was exchanged"
