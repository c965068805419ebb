"""What a round costs, by the real round code: bounds, top-ups, rejected updates, attempts, deaths in between."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from commons.charter import Charter
from commons.errors import Code, Refusal
from commons.experts.map import ExpertMap
from commons.names import SiteId
from commons.records import Kind
from governance.fsck import judge
from orchestrator import round as round_module
from tests.support.consortium import SITES, budgets, charter
from tests.support.rounds import RUN, START_MS, Died, Stage

PER_GFLOP, PER_SECOND = 3000, 100
LEASE_S, LEASE_MICRO = 60, 6000
ALDER = "hold/run-1/1/alder"


def of(*, quorum: int = 2, **changes: Any) -> Charter:
    rates = (
        {"device": "cpu", "precision": "fp32", "micro_per_gflop": PER_GFLOP, "micro_per_device_second": PER_SECOND},
        {"device": "cpu", "precision": "bf16", "micro_per_gflop": 1000},
    )  # fmt: skip
    return charter(
        learning__batch_size=5_000,
        rounds={"quorum": quorum, "grace_s": 5, "lease_s": LEASE_S},
        rate_card={"currency": "EUR", "rates": rates},
        **changes,
    )


MAP = ExpertMap.from_charter(of())
WORK, HALF = (MAP.training_gflop(steps * 5_000 * 16) for steps in (4, 2))
"""Gflop of one site's round, and of half of it."""


@pytest.fixture
def stage_of(tmp_path: Path) -> Iterator[Callable[..., Stage]]:
    stages: list[Stage] = []

    def make(**changes: Any) -> Stage:
        stages.append(Stage(tmp_path, of(**changes)))
        return stages[-1]

    yield make
    for stage in stages:
        stage.close()


@pytest.fixture
def stage(stage_of: Callable[..., Stage]) -> Stage:
    return stage_of()


def all_hand_in(stage: Stage, ms: int = 10_000) -> list[Callable[[], object]]:
    return [lambda: stage.passes(ms), *(lambda s=s: stage.hands_in(s, ms=ms) for s in SITES)]


def worked(ms: int) -> int:
    """The price of a whole round that took `ms`."""
    return WORK * PER_GFLOP + ms * PER_SECOND // 1000


def test_a_first_round_holds_the_whole_lease_and_a_later_one_a_quarter_more_than_the_last(
    stage: Stage,
) -> None:
    assert stage.play(*all_hand_in(stage, ms=10_000))
    assert stage.hold(ALDER).request.amount_micro == WORK * PER_GFLOP + LEASE_MICRO
    assert stage.hold(ALDER).charged_micro == worked(10_000)
    assert stage.play(*all_hand_in(stage, ms=12_500))
    second = stage.hold("hold/run-1/2/alder")
    assert second.request.amount_micro == worked(12_500) == second.charged_micro
    assert stage.budget("alder").held_micro == 0
    assert stage.budget("alder").spent_micro == worked(10_000) + worked(12_500)


def test_work_is_charged_at_the_precision_it_was_trained_in(stage: Stage) -> None:
    steps = all_hand_in(stage)
    steps[1] = lambda: stage.hands_in("alder", precision="bf16")
    assert stage.play(*steps)
    assert stage.hold(ALDER).charged_micro == WORK * 1000
    [settle] = stage.transfers("settle", hold=ALDER)
    assert (settle["precision"], settle["gflop"], settle["device_ms"]) == ("bf16", WORK, 1000)


def test_a_round_cut_short_costs_what_was_done_of_it(stage: Stage) -> None:
    steps = all_hand_in(stage)
    steps[1] = lambda: stage.hands_in("alder", steps=2, ms=5000)
    assert stage.play(*steps)
    assert stage.hold(ALDER).charged_micro == HALF * PER_GFLOP + 500


def test_what_is_above_the_hold_is_not_charged(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    assert stage.play(*all_hand_in(stage, ms=10_000))
    assert stage.play(*all_hand_in(stage, ms=40_000))
    second = stage.hold("hold/run-1/2/alder")
    assert second.charged_micro == second.request.amount_micro == worked(12_500)
    assert f"the usage costs {worked(40_000)} micro, {worked(12_500)} are held and charged" in caplog.text


def test_a_top_up_pays_for_a_slow_round_and_one_that_is_not_needed_comes_back(stage: Stage) -> None:
    assert stage.play(*all_hand_in(stage, ms=10_000))
    asked = [stage_asks(stage, 1, 1000), stage_asks(stage, 2, 1000), stage_asks(stage, 3, 500)]
    assert stage.play(*asked, *all_hand_in(stage, ms=25_000))
    base, *tops = (stage.hold("hold/run-1/2/alder" + t) for t in ("", "/top1", "/top2", "/top3"))
    assert base.charged_micro == worked(12_500)
    assert [(t.state, t.charged_micro) for t in tops] == [
        ("settled", 1000),
        ("settled", 250),
        ("released", 0),
    ]
    assert base.contributed == {"alder": worked(25_000)}
    assert stage.budget("alder").held_micro == 0


def stage_asks(stage: Stage, n: int, amount_micro: int) -> Callable[[], object]:
    def ask() -> None:
        assert stage.asks("alder", n, amount_micro) is None
        assert stage.asks("alder", n, amount_micro) is None, "asked twice"

    return ask


@pytest.mark.parametrize(
    ("n", "amount_micro", "changes", "code"),
    [
        (0, 10, {}, Code.EXCEEDS_HOLD),
        (5, 10, {}, Code.EXCEEDS_HOLD),
        (2, 0, {}, Code.AMOUNT_INVALID),
        (2, 2**63, {}, Code.EXCEEDS_HOLD),
        (2, LEASE_MICRO, {}, Code.EXCEEDS_HOLD),
        (1, 99, {}, Code.EXISTS_WITH_DIFFERENT_FIELDS),
        (2, 10, {"run": "run-7"}, Code.RUN_UNKNOWN),
        (2, 10, {"round": 3}, Code.ROUND_CLOSED),
        (2, 10, {"round": 1, "lease": "lease/run-1/1/alder/1"}, Code.ROUND_CLOSED),
        (2, 10, {"lease": "lease/run-1/2/alder/2"}, Code.LEASE_EXPIRED),
        (2, 10, {"lease": "lease/run-1/2/birch/1"}, Code.LEASE_EXPIRED),
    ],
)
def test_a_top_up_out_of_order_is_refused_and_nothing_more_is_held(
    stage: Stage, n: int, amount_micro: int, changes: dict[str, Any], code: Code
) -> None:
    assert stage.play(*all_hand_in(stage))

    def ask() -> None:
        assert stage.asks("alder", 1, 100) is None
        held = stage.budget("alder").held_micro
        refusal = stage.asks("alder", n, amount_micro, **changes)
        assert refusal is not None and refusal.code is code, refusal
        assert stage.budget("alder").held_micro == held

    with pytest.raises(Died):
        stage.play(ask)


def test_a_site_that_has_handed_in_asks_for_no_more(stage: Stage) -> None:
    def ask() -> None:
        more = {"round": 1, "lease": "lease/run-1/1/alder/1"}
        refusal = stage.asks("alder", 1, 1, **more)
        assert refusal is not None and refusal.code is Code.NOT_ASSIGNED

    with pytest.raises(Died):
        stage.play(*all_hand_in(stage)[:2], ask)


def test_a_top_up_beyond_the_budget_fails_for_ever_and_another_may_be_smaller(
    stage_of: Callable[..., Stage],
) -> None:
    left = 2000
    stage = stage_of(members=budgets(alder=worked(10_000) + worked(12_500) + left))
    assert stage.play(*all_hand_in(stage, ms=10_000))

    def ask() -> None:
        assert stage.budget("alder").available_micro == left
        for expected in (Code.EXCEEDS_BUDGET, Code.ID_ALREADY_FAILED):
            refusal = stage.asks("alder", 1, left + 1)
            assert refusal is not None and refusal.code is expected
        assert stage.asks("alder", 2, left) is None

    with suppress(Died):
        stage.play(ask)
    assert [r.facts["id"] for r in stage.records(Kind.REFUSED)] == ["hold/run-1/2/alder/top1"]
    assert stage.hold("hold/run-1/2/alder/top2").state == "held"


def test_a_further_attempt_gives_back_the_hold_and_its_top_ups_and_the_work_is_charged_once(
    stage: Stage,
) -> None:
    assert stage.play(*all_hand_in(stage, ms=10_000))
    worked_at: list[int] = []

    def restated() -> object:
        """The work of the first attempt, too late for it, under the lease of the second."""
        return stage.hands_in(
            "alder", started_ms=worked_at[0], ended_ms=worked_at[0] + 11_000, device_ms=11_000
        )

    assert stage.play(
        lambda: worked_at.append(stage.at_ms),
        stage_asks(stage, 1, 1000),
        lambda: stage.hands_in("birch", ms=0),
        lambda: stage.passes((LEASE_S + 1) * 1000),
        restated,
        lambda: stage.passes(60_000),
    )
    first, second = stage.hold("hold/run-1/2/alder"), stage.hold("hold/run-1/2/alder/2")
    assert (first.state, stage.hold("hold/run-1/2/alder/top1").state) == ("released", "released")
    assert (second.state, second.charged_micro) == ("settled", worked(11_000))
    assert stage.hold("hold/run-1/2/birch").state == "settled", "what was admitted is paid from its own hold"
    assert stage.budget("alder").spent_micro == worked(10_000) + worked(11_000)


def rejected(stage: Stage, **changes: Any) -> Callable[[], object]:
    """Alder hands in values that are not finite: a right usage of a wrong update, but for `changes`."""

    def hand_in() -> None:
        refusal = stage.hands_in("alder", value=float("nan"), ms=1000, **changes)
        assert isinstance(refusal, Refusal), "it was admitted"

    return hand_in


@pytest.fixture
def nan_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lying site's encoder does not look."""
    monkeypatch.setattr("tests.support.rounds.encode", lambda codec, array: array.tobytes())


@pytest.mark.usefixtures("nan_is_sent")
@pytest.mark.parametrize(
    ("percent", "changes", "charged"),
    [
        (0, {}, None),
        (50, {}, worked(1000) * 50 // 100),
        (100, {}, worked(1000)),
        (50, {"device_ms": 1001}, None),
        (50, {"gflop": WORK + 1}, None),
        (50, {"started_ms": 0}, None),
        (50, {"precision": "fp8"}, None),
    ],
)
def test_a_rejected_update_costs_the_share_of_its_price_that_the_charter_says(
    stage_of: Callable[..., Stage], percent: int, changes: dict[str, Any], charged: int | None
) -> None:
    stage = stage_of(accounting={"charge_rejected_percent": percent})
    steps = all_hand_in(stage)
    steps[1] = rejected(stage, **changes)
    assert stage.play(*steps)
    hold = stage.hold(ALDER)
    kinds = [r.kind for r in stage.records(Kind.USAGE, Kind.REJECTION)]
    if charged is None:
        assert (hold.state, hold.charged_micro) == ("released", 0)
        assert kinds == [Kind.REJECTION, Kind.USAGE, Kind.USAGE]
    else:
        assert (hold.state, hold.charged_micro, hold.accepted) == ("settled", charged, False)
        assert kinds == [Kind.USAGE, Kind.REJECTION, Kind.USAGE, Kind.USAGE]
        [settle] = stage.transfers("settle", hold=ALDER)
        assert (settle["percent"], settle["accepted"]) == (percent, False)
    assert stage.transfers("contribution", site="alder") == []
    assert stage.budget("alder").held_micro == 0


@pytest.mark.usefixtures("nan_is_sent")
def test_a_rejected_update_is_charged_once_however_often_its_round_is_tried(
    stage_of: Callable[..., Stage],
) -> None:
    stage = stage_of(accounting={"charge_rejected_percent": 50})
    began: list[int] = []

    def again() -> None:
        """The same work under the new lease: its time is paid."""
        refusal = stage.hands_in("alder", started_ms=began[0] - 1000, ended_ms=began[0], device_ms=1000)
        assert isinstance(refusal, Refusal) and refusal.code is Code.USAGE_OVERLAP, refusal
        assert "site alder claimed it" in refusal.message

    with pytest.raises(Died):
        stage.play(
            lambda: stage.passes(1000),
            lambda: began.append(stage.at_ms),
            rejected(stage),
            lambda: stage.passes((LEASE_S + 1) * 1000),
            again,
        )
    assert stage.hold(ALDER).charged_micro == worked(1000) // 2
    assert stage.hold(f"{ALDER}/2").state == "held"
    assert stage.budget("alder").spent_micro == worked(1000) // 2


@pytest.mark.usefixtures("nan_is_sent")
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("append", range(1, 9))
def test_a_coordinator_that_dies_anywhere_in_a_round_charges_the_same(
    stage_of: Callable[..., Stage], append: int, after: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """A top-up, a rejected update, an attempt that ends without a quorum, and one that closes."""
    stage = stage_of(accounting={"charge_rejected_percent": 50})
    assert stage.play(*all_hand_in(stage, ms=10_000))
    begins_ms = stage.at_ms

    def at(second: int, step: Callable[[], object]) -> Callable[[], object]:
        """A step of the script, tried until it is done: by a site, who hears of a lost coordinator."""

        def happen() -> None:
            stage.at_ms = max(stage.at_ms, begins_ms + second * 1000)
            with suppress(AssertionError):  # it has no order any more: it was done before
                step()

        return happen

    script = [
        at(1, lambda: stage.asks("birch", 1, 1000)),
        at(10, rejected(stage, started_ms=begins_ms, ended_ms=begins_ms + 1000)),
        at(20, lambda: stage.hands_in("birch", ms=15_000, started_ms=begins_ms, ended_ms=begins_ms + 15_000)),
        at(61, lambda: None),
        at(70, lambda: stage.hands_in("cedar", ms=0, device_ms=0)),
        at(140, lambda: None),
    ]
    with pytest.raises(Died), stage.dying(append, after=after):
        stage.play(*script)
    stage.restart()
    while len(stage.records(Kind.CLOSE)) < 2:
        with suppress(Died):
            stage.play(*script)
    assert stage.hold("hold/run-1/2/alder").charged_micro == worked(1000) // 2
    assert stage.hold("hold/run-1/2/birch").charged_micro == worked(12_500)
    assert stage.hold("hold/run-1/2/birch/top1").charged_micro == worked(15_000) - worked(12_500)
    assert stage.hold("hold/run-1/2/cedar/2").charged_micro == WORK * PER_GFLOP
    assert {name: stage.budget(name).spent_micro for name in SITES} == {
        "alder": worked(10_000) + worked(1000) // 2,
        "birch": worked(10_000) + worked(15_000),
        "cedar": worked(10_000) + WORK * PER_GFLOP,
    }
    assert not stage.ledger.open and all(b.held_micro == 0 for b in stage.ledger.budgets())
    assert stage.desk.consortium.journal.verify() == []
    assert not [r for r in caplog.records if r.levelname == "ERROR"]


def test_of_two_sites_that_claim_one_device_the_first_to_be_admitted_has_it(stage: Stage) -> None:
    answers: list[object] = []

    def both() -> None:
        first = {"device_ids": "GPU-1", "ms": 500}
        stage.passes(1000)
        answers.append(
            stage.hands_in("birch", device_ids="GPU-1", meanwhile=lambda: stage.hands_in("alder", **first))
        )

    assert stage.play(both, lambda: stage.hands_in("cedar"))
    [refusal] = answers
    assert isinstance(refusal, Refusal) and refusal.code is Code.USAGE_OVERLAP
    [rejection] = stage.records(Kind.REJECTION)
    assert rejection.facts["site"] == "birch" and "site alder claimed it" in rejection.facts["message"]
    assert stage.hold("hold/run-1/1/birch").state == "released"


def test_what_expired_is_booked_before_a_round_holds_anew(stage_of: Callable[..., Stage]) -> None:
    spring = {"name": "spring", "member": "alder", "amount": 10**6, "expires_ms": START_MS + 30_000}
    stage = stage_of(grants=(spring,), members=budgets(alder=1000))
    steps = all_hand_in(stage, ms=10_000)
    assert stage.play(*steps)
    assert stage.hold(ALDER).charged_micro == worked(10_000), "paid by the grant"
    stage.passes(30_000)
    with suppress(Died):
        stage.play()
    [lost] = stage.transfers("breakage")
    assert (lost["grant"], lost["amount_micro"]) == ("grant/spring", 10**6 - worked(10_000))
    opened = stage.desk.runs.by_id[RUN].open_round
    assert opened is not None and "alder has 0.001000 EUR left" in opened.left_out[SiteId("alder")].message


def test_an_update_admitted_while_others_are_combined_is_combined_too(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, in_state = round_module.combine, []

    def combine(*args: Any, **named: Any) -> Any:
        in_state.append(sorted(c.site for c in named["contributions"]))
        if len(in_state) == 1:
            assert isinstance(stage.hands_in("cedar", ms=1000), int), "its lease still holds"
        return real(*args, **named)

    monkeypatch.setattr(round_module, "combine", combine)
    late = [lambda: stage.passes(1000), lambda: stage.hands_in("alder"), lambda: stage.hands_in("birch")]
    assert stage.play(*late, lambda: stage.passes(5_000))
    assert in_state == [["alder", "birch"], ["alder", "birch", "cedar"]]
    (closed,) = stage.records(Kind.CLOSE)
    assert closed.facts["contributors"] == in_state[1], "who is charged is in the state"


def rejection_at(stage: Stage) -> int:
    kinds = [record.kind for record in stage.desk.consortium.journal.records()]
    return kinds.index(Kind.REJECTION)


@pytest.mark.parametrize("percent", [0, 50])
def test_an_update_out_of_all_proportion_is_rejected_before_it_is_combined(
    stage_of: Callable[..., Stage], percent: int
) -> None:
    stage = stage_of(accounting={"charge_rejected_percent": percent})
    assert stage.play(
        lambda: stage.passes(10_000),
        lambda: stage.hands_in("alder", ms=10_000, value=0.01),
        lambda: stage.hands_in("birch", ms=10_000, value=0.02),
        lambda: stage.hands_in("cedar", ms=10_000, value=1e5),
    )
    [rejection] = stage.records(Kind.REJECTION)
    assert (rejection.facts["site"], rejection.facts["code"]) == ("cedar", "update_norm")
    [close] = stage.records(Kind.CLOSE)
    assert close.facts["contributors"] == ["alder", "birch"]
    state = stage.desk.store.load(close.facts["state"])
    base = stage.desk.store.load(close.facts["base"])
    assert max(float(np.abs(state[n] - base[n]).max()) for n in state) < 0.03
    assert stage.hold("hold/run-1/1/cedar").charged_micro == worked(10_000) * percent // 100
    found = judge(list(stage.desk.consortium.journal.records()))
    assert not [f for f in found if f.index >= rejection_at(stage)], found


def test_a_round_that_falls_below_its_quorum_by_a_rejection_is_tried_again(
    stage_of: Callable[..., Stage],
) -> None:
    stage = stage_of(quorum=3)
    with pytest.raises(Died):
        stage.play(
            lambda: stage.passes(1000),
            lambda: stage.hands_in("alder", ms=1000),
            lambda: stage.hands_in("birch", ms=1000),
            lambda: stage.hands_in("cedar", ms=1000, value=1e6),
            lambda: stage.passes((LEASE_S + 1) * 1000),
        )
    assert stage.records(Kind.CLOSE) == []
    assert [r.facts["site"] for r in stage.records(Kind.REJECTION)] == ["cedar"]
    assert stage.hold("hold/run-1/1/cedar/2").state == "held"


def in_fragments(stage: Stage) -> list[dict[str, Any]]:
    """Four rounds, taken up again by a new coordinator when one dies; the records of their ends."""

    def hand_in(site: str, value: float) -> None:
        with suppress(AssertionError):  # it has no order any more: it was done before
            stage.hands_in(site, value=value)

    while (number := len(stage.records(Kind.CLOSE)) + 1) <= 4:
        values = zip(SITES, (0.01, 0.02, 0.06), strict=True)
        script = [lambda s=s, v=v * number: hand_in(s, v) for s, v in values]
        try:
            stage.play(lambda: stage.passes(2000), *script)
        except Died:
            stage.restart()
    return [dict(r.facts) for r in stage.records(Kind.CLOSE)]


@pytest.mark.parametrize("append", [7, 11, 16])
def test_a_coordinator_that_dies_anywhere_combines_fragments_to_the_same_bytes(
    tmp_path: Path, append: int
) -> None:
    outer = {"learning_rate": 0.7, "momentum": 0.9, "nesterov": True}
    parts, ends = of(quorum=3, learning__rounds=4, learning__fragments=2, learning__outer=outer), []
    for name in ("steady", "killed"):
        (tmp_path / name).mkdir()
        stage = Stage(tmp_path / name, parts, rounds=4)
        first = stage.desk
        with stage.dying(append if name == "killed" else 0, after=append % 2 == 0):
            ends.append(in_fragments(stage))
        assert (stage.desk is first) is (name == "steady"), "it died"
        assert judge(list(stage.desk.consortium.journal.records())) == ()
        stage.close()
    steady, killed = ends
    assert [(e["state"], e["momentum"]) for e in killed] == [(e["state"], e["momentum"]) for e in steady]
    assert all(0.4 < e["bytes_up"] / steady[-1]["bytes_up"] < 0.6 for e in steady[:-1])
