"""A site counts what it has sent under noise by itself, and no order makes it spend more."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from commons.charter import Charter
from commons.errors import Code, HansaError, Refusal, StoreError
from commons.privacy.accounting import epsilon_after
from commons.work import AssignmentNote
from tests.support.consortium import charter
from tests.unit.test_seal import order
from workers.spending import Spending

Z, DELTA = 2.0, 1e-6
LIMIT = epsilon_after([Z] * 3, DELTA) + 1e-9
"""Three rounds and no fourth."""


def private(**terms: Any) -> Charter:
    dp = {"noise_multiplier": Z, "delta": DELTA, "epsilon_max": LIMIT} | terms
    return charter(privacy={"mode": "dp", "dp": dp})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "privacy.json"


def spend(spending: Spending, *rounds: int, of: Charter | None = None, **changes: Any) -> None:
    for number in rounds:
        note = order(number, **changes)
        spending.count(note, of or private(), f"payload of {note.run} {number}")


def refused(spending: Spending, note: AssignmentNote, of: Charter | None = None) -> Refusal:
    answer = spending.forbids(note, of or private())
    assert answer is not None, "the order was allowed"
    return answer


def test_rounds_are_allowed_as_long_as_one_more_stays_within_the_charters_limit(file: Path) -> None:
    spending = Spending(file, None)
    for number in (1, 2, 3):
        assert spending.forbids(order(number), private()) is None
        spend(spending, number)
    why = refused(spending, order(4))
    have, would = epsilon_after([Z] * 3, DELTA), epsilon_after([Z] * 4, DELTA)
    assert why.code is Code.EXCEEDS_EPSILON
    assert f"site alder has spent epsilon {have:.3f} at delta 1e-06" in why.message
    assert f"round 4 of run run-1 would make it {would:.3f}, the charter's epsilon_max is" in why.message
    assert "the members vote for more" in why.message
    assert spending.forbids(order(4), private(epsilon_max=would + 1e-9)) is None, "they voted for more"


def test_the_count_outlives_the_process_and_is_over_all_runs(file: Path) -> None:
    spend(Spending(file, None), 1, 2)
    spend(Spending(file, None), 1, run="run-2")
    assert refused(Spending(file, None), order(1, run="run-3")).code is Code.EXCEEDS_EPSILON
    assert file.stat().st_mode & 0o777 == 0o600


def test_an_update_counts_once_however_often_it_is_sealed(file: Path) -> None:
    spending = Spending(file, None)
    spend(spending, 1, 1, 1, 2, 2, 3)
    assert len(json.loads(file.read_text())["sent"]) == 3
    assert spending.forbids(order(3), private()) is None, "the last one may be sealed and sent again"


def test_a_coordinator_that_orders_a_counted_round_anew_gets_no_second_update_for_it(file: Path) -> None:
    spending = Spending(file, None)
    spend(spending, 1, 2, 3)
    other = replace(order(3), base="sha256:" + "f" * 64)
    assert refused(spending, other).code is Code.EXCEEDS_EPSILON, "from another base it is another update"
    assert spending.forbids(order(3), private()) is None
    with pytest.raises(HansaError, match="would make it"):
        spending.count(order(3), private(), "other bytes from the same base")
    assert len(json.loads(file.read_text())["sent"]) == 3


def test_each_update_counts_with_the_noise_it_had(file: Path) -> None:
    spending = Spending(file, None)
    spend(spending, 1, of=private(noise_multiplier=4.0))
    spend(spending, 2)
    exact = epsilon_after([4.0, Z, Z], DELTA)
    assert spending.forbids(order(3), private(epsilon_max=exact + 1e-9)) is None
    assert spending.forbids(order(3), private(epsilon_max=exact - 1e-6)) is not None


def test_the_owners_own_limit_comes_before_the_charters(file: Path) -> None:
    spending = Spending(file, epsilon_after([Z] * 2, DELTA) + 1e-9)
    spend(spending, 1, 2)
    why = refused(spending, order(3))
    assert why.code is Code.POLICY_FORBIDS
    assert "[policy] epsilon_max allows" in why.message and "its operator can raise the limit" in why.message


@pytest.mark.parametrize("mode", ["none", "robust"])
def test_rounds_without_noise_touch_no_file(file: Path, mode: str) -> None:
    spending, of = Spending(file, 1e-3), charter(privacy={"mode": mode})
    assert spending.forbids(order(), of) is None
    assert spending.noising(order(), of) is None
    assert not file.exists()


def test_an_evaluation_is_no_round(file: Path) -> None:
    spending = Spending(file, None)
    spend(spending, 1, 2, 3)
    assert spending.forbids(order(3, work="evaluate", base="other"), private()) is None


def test_the_secret_is_on_disk_before_anything_is_noised_with_it(file: Path) -> None:
    first = Spending(file, None).noising(order(), private())
    assert first is not None and file.stat().st_mode & 0o777 == 0o600
    again = Spending(file, None).noising(order(), private())
    assert again == first
    spend(Spending(file, None), 1)
    assert Spending(file, None).noising(order(), private()) == first, "counting does not change it"


@pytest.mark.parametrize(
    "content",
    ["", "{", "{}", '{"secret": "00", "sent": []}', '{"secret": "xyz", "sent": []}',
     '{"secret": "' + "00" * 32 + '", "sent": [{}]}',
     '{"secret": "' + "00" * 32 + '", "sent": [{"work": "w", "payload": "p", "noise_multiplier": 0}]}'],
)  # fmt: skip
def test_a_count_that_cannot_be_read_stops_the_site_and_names_who_acts(file: Path, content: str) -> None:
    file.write_text(content)
    spending = Spending(file, None)
    for use in (
        lambda: spending.forbids(order(), private()),
        lambda: spending.noising(order(), private()),
        lambda: spending.count(order(), private(), "p"),
    ):
        with pytest.raises(StoreError, match=r"privacy.json cannot be read .* its operator restores it"):
            use()
    assert file.read_text() == content, "nothing is written over it"
