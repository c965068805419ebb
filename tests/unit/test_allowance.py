"""A site asks for more money in time, for as much as it needs and may have, and stops where it ends."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from commons.charter import Charter
from commons.errors import Code, Refusal, Refused, Unreachable
from commons.experts.map import ExpertMap
from commons.work import AssignmentNote
from governance.ratecard import price
from orchestrator.charges import bound, ordered_gflop
from tests.support.consortium import charter
from workers.allowance import ASK_AGAIN_S, Allowance, cost_micro
from workers.verify import Order

STEPS, PER_SECOND = 10, 1000


def of(**changes: Any) -> Charter:
    rates = (
        {"device": "cpu", "precision": "fp32", "micro_per_gflop": 3, "micro_per_device_second": PER_SECOND},
        {"device": "cpu", "precision": "bf16", "micro_per_gflop": 1},
    )  # fmt: skip
    return charter(
        learning__inner_steps=STEPS,
        learning__batch_size=6_000,
        rate_card={"currency": "EUR", "rates": rates},
        **changes,
    )


def order(hold_micro: int, charter: Charter, lease: str = "lease-1") -> Order:
    expert_map = ExpertMap.from_charter(charter)
    note = AssignmentNote(
        consortium="hanse", run="run-1", round=3, work="train", site="alder", base="sha256:" + "a" * 64,
        charter_version=1, charter="sha256:" + "b" * 64, expert_map=expert_map.digest, rounds=9, lease=lease,
        lease_until=1, hold="hold/run-1/3/alder", hold_micro=hold_micro,
    )  # fmt: skip
    return Order(note, charter, expert_map, b"", ())


@dataclass
class Coordinator:
    """Answers top-ups as it is told: None holds them."""

    answers: list[Exception | None] = field(default_factory=list)
    asked: list[tuple[int, int]] = field(default_factory=list)
    at_s: float = 100.0

    def __call__(self, order: AssignmentNote, n: int, amount_micro: int) -> None:
        assert order.hold == "hold/run-1/3/alder"
        self.asked.append((n, amount_micro))
        if self.answers and (wrong := self.answers.pop(0)):
            raise wrong

    def ticks_s(self) -> float:
        return self.at_s


def refused(message: str = "budget exceeded") -> Refused:
    return Refused(Refusal(Code.EXCEEDS_BUDGET, message))


def allowance(path: Path, to: Coordinator, limit_micro: int | None = None) -> Allowance:
    return Allowance(path / "topups.json", limit_micro, to, ticks_s=to.ticks_s)


def work_micro(charter: Charter, steps: int = STEPS) -> int:
    return cost_micro(charter, ExpertMap.from_charter(charter), "alder", steps, 0)


def test_a_site_counts_as_its_coordinator_does() -> None:
    of_all, entry = of(), of().sites[0]
    expert_map = ExpertMap.from_charter(of_all)
    gflop = ordered_gflop(of_all, expert_map, 1)
    for device_ms in (0, 1, 999, 60_000):
        due = price(of_all.rate_card, "cpu", None, gflop=gflop, device_ms=device_ms)
        assert not isinstance(due, Refusal)
        assert cost_micro(of_all, expert_map, "alder", STEPS, device_ms) == due.amount_micro
    most = bound(of_all, entry, gflop, None)
    assert not isinstance(most, Refusal) and most.amount_micro == due.amount_micro


def test_work_without_a_price_of_time_never_asks_and_never_ends_early(tmp_path: Path) -> None:
    rates = ({"device": "cpu", "micro_per_gflop": 3000},)
    free = charter(learning__inner_steps=STEPS, rate_card={"currency": "EUR", "rates": rates})
    to = Coordinator()
    round_ = allowance(tmp_path, to)
    round_.begin(order(work_micro(free), free))
    assert all(round_.suffices(step, step * 10**6) for step in range(STEPS + 1))
    assert not to.asked and not round_.exhausted


def test_a_round_at_the_expected_pace_asks_for_nothing(tmp_path: Path) -> None:
    to, charter = Coordinator(), of()
    round_ = allowance(tmp_path, to)
    round_.begin(order(work_micro(charter) + 1050, charter))
    assert all(round_.suffices(step, step * 100) for step in range(STEPS + 1))
    assert not to.asked


def test_a_slow_round_asks_once_four_fifths_are_used_for_the_rest_at_its_pace_and_a_tenth(
    tmp_path: Path,
) -> None:
    to, charter = Coordinator(), of()
    round_ = allowance(tmp_path, to)
    held = work_micro(charter) + 1000
    round_.begin(order(held, charter))
    done = [round_.suffices(step, step * 200) for step in range(STEPS + 1)]
    assert all(done)
    total = work_micro(charter) + 2000
    assert to.asked == [(1, total * 11 // 10 - held)]
    assert round_.held_micro == total * 11 // 10


def test_it_asks_again_when_it_becomes_slower_still(tmp_path: Path) -> None:
    to, charter = Coordinator(), of(rounds__lease_s=3600)
    round_ = allowance(tmp_path, to)
    round_.begin(order(work_micro(charter) + 1000, charter))
    assert all(round_.suffices(step, 50 * step * step) for step in range(STEPS + 1))
    assert [n for n, _ in to.asked] == [1, 2, 3, 4]
    assert round_.held_micro > work_micro(charter) + 4500


@pytest.mark.parametrize(
    ("answers", "limit_micro", "topups", "says"),
    [
        ([refused("budget of elm has 0.1 EUR left")], None, 4, "a top-up was refused: budget of elm has"),
        ([Unreachable("nobody there")] * 9, None, 4, "a top-up was not answered: nobody there"),
        ([], 1200, 4, "[policy] max_charge_micro_per_round allows 1200"),
        ([], None, 0, "the charter allows 0 top-ups a round"),
    ],
)
def test_without_more_money_the_round_ends_before_a_step_that_does_not_fit_and_says_why(
    tmp_path: Path, answers: list[Exception | None], limit_micro: int | None, topups: int, says: str
) -> None:
    to, charter = Coordinator(answers), of(accounting={"topups": topups})
    round_ = allowance(tmp_path, to, limit_micro)
    held = work_micro(charter) + 1000
    round_.begin(order(held, charter))
    done = [round_.suffices(step, step * 200) for step in range(STEPS)]
    last = done.index(False)
    assert done == [True] * last + [False] * (STEPS - last), "once it has ended it stays so"
    have = max(held, limit_micro or 0)
    expert_map = ExpertMap.from_charter(charter)
    costs = [cost_micro(charter, expert_map, "alder", step, step * 200) for step in (last, last + 1)]
    assert costs[0] <= have < costs[1]
    assert f"held are used up after step {last} of 10" in round_.exhausted and says in round_.exhausted


def test_an_unanswered_top_up_is_asked_again_after_a_while_as_the_same(tmp_path: Path) -> None:
    to, charter = Coordinator([Unreachable("nobody there"), None]), of()
    round_ = allowance(tmp_path, to)
    round_.begin(order(work_micro(charter) + 1480, charter))
    assert round_.suffices(6, 1215) and len(to.asked) == 1
    assert round_.suffices(6, 1230) and len(to.asked) == 1, "not at every look"
    to.at_s += ASK_AGAIN_S
    assert round_.suffices(7, 7 * 220)
    assert to.asked[1] == to.asked[0]
    assert round_.held_micro == work_micro(charter) + 1480 + to.asked[0][1]


def test_a_restarted_site_knows_what_was_held_and_asks_the_same_again(tmp_path: Path) -> None:
    to, charter = Coordinator([None, Unreachable("killed")]), of(rounds__lease_s=3600)
    first = allowance(tmp_path, to)
    begun = order(work_micro(charter) + 1000, charter)
    first.begin(begun)
    assert first.suffices(5, 1000) and first.suffices(6, 1800)
    assert [n for n, _ in to.asked] == [1, 2]
    again = allowance(tmp_path, to)
    again.begin(begun)
    assert again.held_micro == work_micro(charter) + 1000 + to.asked[0][1]
    assert again.suffices(0, 0) and again.suffices(6, 2000)
    assert to.asked[2] == to.asked[1], "whatever the pace is now"


def test_a_site_killed_while_it_asks_asks_the_same_again(tmp_path: Path) -> None:
    class Killed(BaseException):
        pass

    to, charter = Coordinator(), of()

    def dying(order: AssignmentNote, n: int, amount_micro: int) -> None:
        to(order, n, amount_micro)
        raise Killed

    first = Allowance(tmp_path / "topups.json", None, dying)
    begun = order(work_micro(charter) + 1000, charter)
    first.begin(begun)
    with pytest.raises(Killed):
        first.suffices(5, 1000)
    again = allowance(tmp_path, to)
    again.begin(begun)
    assert again.suffices(5, 1100)
    assert to.asked[1] == to.asked[0]


def test_a_refused_top_up_stays_refused_over_a_restart_until_another_lease(tmp_path: Path) -> None:
    to, charter = Coordinator([refused()]), of()
    for _ in range(2):
        round_ = allowance(tmp_path, to)
        round_.begin(order(work_micro(charter) + 1000, charter))
        assert not round_.suffices(5, 1000)
    assert len(to.asked) == 1
    round_.begin(order(work_micro(charter) + 1000, charter, lease="lease-2"))
    assert round_.suffices(5, 1000) and [n for n, _ in to.asked] == [1, 1]


def test_a_training_process_that_died_begins_the_round_with_all_that_is_held(tmp_path: Path) -> None:
    """What it had done is not charged."""
    to, charter = Coordinator([refused()]), of()
    round_ = allowance(tmp_path, to)
    round_.begin(order(work_micro(charter) + 1000, charter))
    assert not round_.suffices(5, 1000)
    assert round_.suffices(0, 0) and not round_.exhausted
    assert round_.suffices(1, 100)


@pytest.mark.parametrize("content", [b"", b"[]", b'{"lease": "lease-1"}'])
def test_a_broken_file_is_as_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "topups.json").write_bytes(content)
    round_ = allowance(tmp_path, Coordinator())
    round_.begin(order(7, of()))
    assert round_.held_micro == 7
