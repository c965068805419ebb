"""What the next round shall be and when it ends, as pure functions."""

from __future__ import annotations

from dataclasses import replace

import pytest

from commons.charter import Charter, Rounds
from commons.errors import Code, Refusal
from commons.experts.map import ExpertMap
from commons.names import Digest, Micro, RoundNumber, RunId, SiteId
from commons.work import UpdateNote, UsageNote
from governance.noised import Noised
from orchestrator.charges import bound
from orchestrator.plan import (
    Verdict,
    closing,
    evaluated,
    gathering_ms,
    grace_ms,
    opening_records,
    plan_round,
    too_few,
    training,
    without_lacking,
)
from orchestrator.progress import Admitted, Rejected, RoundState, RunState
from tests.support.consortium import SITES, charter

ALL = frozenset(SiteId(s) for s in SITES)
D = Digest("sha256:" + "d" * 64)
RULES = Rounds(quorum=2, grace_s=5, lease_s=60)


def run() -> RunState:
    return RunState(RunId("run-1"), 2, D, None, opened_ms=0, charter_version=1)


def opened(**changes: object) -> RoundState:
    state = RoundState(
        number=RoundNumber(1), attempt=1, base=D, charter_version=1, charter=D, expert_map=D, quorum=2,
        opened_ms=0, lease_until_ms=60_000, holds=dict.fromkeys(sorted(ALL), Micro(5)),
        attempts=dict.fromkeys(ALL, 1),
    )  # fmt: skip
    return replace(state, **changes)  # type: ignore[arg-type]


def admitted(*sites: str) -> dict[SiteId, Admitted]:
    note = UpdateNote(
        consortium="hanse", run="run-1", round=1, site="x", base=D, manifest=D, payload=D, payload_bytes=1,
        steps=1, tokens=1, loss=1.0, held_out_loss=None,
    )  # fmt: skip
    return {SiteId(s): Admitted(0, note) for s in sites}


def planned(  # type: ignore[no-untyped-def]
    of: Charter, present: frozenset[SiteId] = ALL, state: RunState | None = None, noised: Noised | None = None
):
    expert_map, spent = ExpertMap.from_charter(of), noised or Noised()
    return plan_round(of, D, expert_map, state or run(), present, spent, now_ms=1000)


@pytest.mark.parametrize(
    ("here", "met_ms", "first", "now_ms", "wait_ms"),
    [
        (("alder",), None, True, 0, None),
        (("alder", "birch"), 0, False, 0, 0),
        (("alder", "birch"), 0, True, 5_000, 15_000),
        (("alder", "birch"), 0, True, 20_000, 0),
        (SITES, 0, True, 0, 0),
        (("alder", "strangers"), None, False, 0, None),
    ],
)
def test_the_first_round_waits_for_all_sites_until_the_grace_ends_and_later_ones_for_a_quorum(
    here: tuple[str, ...], met_ms: int | None, first: bool, now_ms: int, wait_ms: int | None
) -> None:
    present = {SiteId(s) for s in here}
    assert gathering_ms(charter(), present, met_ms=met_ms, first=first, now_ms=now_ms) == wait_ms


def test_a_plan_holds_the_price_of_the_planned_work_for_every_site_that_is_here() -> None:
    plan = planned(charter(), frozenset({SiteId("alder"), SiteId("birch")}))
    assert [(r.id, r.payer) for r in plan.requests] == [
        ("hold/run-1/1/alder", "alder"),
        ("hold/run-1/1/birch", "birch"),
    ]
    assert all(r.amount_micro == 3000 and r.expires_ms > plan.lease_until_ms for r in plan.requests)
    assert plan.left_out[SiteId("cedar")].code == Code.NOT_ASSIGNED
    assert "its operator starts it" in plan.left_out[SiteId("cedar")].message
    assert plan.enough


def timed(*rates: dict[str, object], devices: int = 1) -> Charter:
    """A charter whose device time has a price, 2000 micro a second and 10 a gflop unless `rates` say otherwise."""
    card = rates or ({"device": "cpu", "micro_per_gflop": 10, "micro_per_device_second": 2000},)
    sites = tuple(s.model_dump() | {"devices": devices} for s in charter().sites)
    return charter(rate_card={"currency": "EUR", "rates": card}, sites=sites)


def used(device_ms: int, gflop: int = 4) -> UsageNote:
    return UsageNote(
        consortium="hanse", run="run-1", round=1, site="alder", lease="l", device="cpu", device_ids="cpu/alder/alder",
        precision="fp32", started_ms=1, ended_ms=1, device_ms=device_ms, steps=1, tokens=1, gflop=gflop,
        energy_j=None, update=D,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("last", "devices", "seconds"),
    [
        (None, 1, 60),
        (None, 3, 180),
        (used(8_000), 1, 10),
        (used(8_000), 3, 10),
        (used(8_000, gflop=8), 1, 5),
        (used(4_000, gflop=2), 1, 10),
        (used(48_000), 1, 60),
        (used(48_001), 1, 60),
        (used(10**9), 3, 180),
        (used(0), 1, 0),
    ],
)
def test_time_is_held_a_quarter_above_the_last_rounds_per_gflop_up_to_the_whole_lease(
    last: UsageNote | None, devices: int, seconds: int
) -> None:
    of = timed(devices=devices)
    held = bound(of, of.sites[0], 4, last)
    assert not isinstance(held, Refusal) and held.amount_micro == 4 * 10 + seconds * 2000


def test_work_is_held_at_the_precision_that_costs_most_with_its_time() -> None:
    slow = {"device": "cpu", "precision": "fp32", "micro_per_gflop": 10, "micro_per_device_second": 2000}
    quick = {"device": "cpu", "precision": "bf16", "micro_per_gflop": 9000}
    of = timed(slow, quick)
    for last, micro in ((None, 40 + 60 * 2000), (used(8_000), 36_000)):
        held = bound(of, of.sites[0], 4, last)
        assert not isinstance(held, Refusal) and held.amount_micro == micro


def test_a_plan_looks_at_what_the_site_took_the_last_time_it_worked_in_this_run() -> None:
    of, state, alder = timed(), run(), SiteId("alder")
    gflop = ExpertMap.from_charter(of).training_gflop(4 * 2 * 16)
    worked = Admitted(0, admitted("alder")[alder].update, used(8_000, gflop=gflop))
    state.history += [opened(admitted={alder: worked}, closed_ms=9), opened(number=2, closed_ms=10)]
    held = {r.site: r.amount_micro for r in planned(of, state=state).requests}
    assert held == {
        "alder": 10 * gflop + 20_000,
        "birch": 10 * gflop + 120_000,
        "cedar": 10 * gflop + 120_000,
    }


def test_sites_of_a_payer_who_lacks_budget_are_left_out_with_what_is_lacking() -> None:
    of = charter()
    refusal = Refusal(Code.EXCEEDS_BUDGET, "", {"lacking": {"birch": {"needs": 3000, "available": 1}}})
    plan = without_lacking(planned(of), refusal, "EUR")
    assert [r.site for r in plan.requests] == ["alder", "cedar"]
    why = plan.left_out[SiteId("birch")]
    assert why.code == Code.EXCEEDS_BUDGET
    assert "birch has 0.000001 EUR left" in why.message and "0.003000" in why.message
    kinds = [r.kind for r in opening_records(plan, 5)]
    assert kinds == ["round", "rejection"]
    both = Refusal(Code.EXCEEDS_BUDGET, "", {"lacking": {"alder": {"needs": 3000, "available": 1}}})
    ended = without_lacking(plan, both, "EUR")
    assert not ended.enough and "alder" in too_few(ended) and "birch" in too_few(ended)


def test_a_further_attempt_holds_anew_under_new_ids_and_keeps_what_was_admitted() -> None:
    state = run()
    state.history.append(opened(admitted=admitted("alder")))
    plan = planned(charter(), state=state)
    assert (plan.number, plan.attempt, plan.admitted) == (1, 2, 1)
    assert [r.id for r in plan.requests] == ["hold/run-1/1/birch/2", "hold/run-1/1/cedar/2"]


def test_an_order_asked_for_again_has_the_same_words() -> None:
    of = charter()
    one, two = (training(of, run(), opened(), SiteId("alder")) for _ in range(2))
    assert one == two and one.text == two.text
    assert (one.hold, one.lease, one.hold_micro) == ("hold/run-1/1/alder", "lease/run-1/1/alder/1", 5)


@pytest.mark.parametrize(
    ("changes", "now_ms", "verdict", "wait_ms"),
    [
        ({}, 0, Verdict.WAIT, 60_000),
        ({"admitted": admitted(*SITES), "quorum_ms": 10}, 20, Verdict.CLOSE, 0),
        ({"admitted": admitted("alder", "birch"), "quorum_ms": 10}, 20, Verdict.WAIT, 4_990),
        ({"admitted": admitted("alder", "birch"), "quorum_ms": 10}, 5_010, Verdict.CLOSE, 0),
        ({"admitted": admitted("alder", "birch"), "quorum_ms": 58_000}, 60_000, Verdict.CLOSE, 0),
        ({"admitted": admitted("alder")}, 60_000, Verdict.RENEW, 0),
        (
            {"admitted": admitted("alder", "birch"), "quorum_ms": 10,
             "rejected": {SiteId("cedar"): Rejected("policy_forbids", "no")}}, 20, Verdict.CLOSE, 0,
        ),
        ({"rejected": dict.fromkeys(ALL, Rejected("policy_forbids", "no")), "last_ms": 1}, 2, Verdict.WAIT, 29_999),
        ({"rejected": dict.fromkeys(ALL, Rejected("policy_forbids", "no")), "last_ms": 1}, 30_001, Verdict.RENEW, 0),
    ],
)  # fmt: skip
def test_a_round_closes_when_all_are_settled_or_quorum_and_grace_are_over(
    changes: dict[str, object], now_ms: int, verdict: Verdict, wait_ms: int
) -> None:
    answer = closing(opened(**changes), RULES, now_ms)
    assert (answer.verdict, answer.wait_ms) == (verdict, wait_ms)


@pytest.mark.parametrize(
    ("needed_ms", "working", "wait_ms"),
    [
        ((10_000, 20_000, 30_000), "dogwood", 10_000),
        ((100, 200, 300), "dogwood", 1_000),
        ((200_000, 400_000, 600_000), "dogwood", 60_000),
        ((10_000, 20_000, 30_000), "", 1_000),
        ((10_000, 20_000, 30_000), "alder", 1_000),
    ],
    ids=["half the median", "at least", "at most", "nobody is seen at work", "only one that is admitted"],
)
def test_adaptive_grace_is_a_share_of_what_the_others_needed_for_those_seen_at_work(
    needed_ms: tuple[int, ...], working: str, wait_ms: int
) -> None:
    rules = Rounds(quorum=3, grace_s=60, lease_s=9000, grace="adaptive", grace_percent=50, grace_least_s=1)
    names = ("alder", "birch", "cedar")
    done = {
        site: replace(one, at_ms=at)
        for (site, one), at in zip(admitted(*names).items(), needed_ms, strict=True)
    }
    state = opened(admitted=done, quorum_ms=max(needed_ms), lease_until_ms=10**9)
    state.holds[SiteId("dogwood")] = Micro(1)
    assert grace_ms(state, rules, {SiteId(working)}) == wait_ms
    answer = closing(state, rules, max(needed_ms) + 500, {SiteId(working)})
    assert (answer.verdict, answer.wait_ms) == (Verdict.WAIT, wait_ms - 500)
    assert closing(state, rules, max(needed_ms) + wait_ms, {SiteId(working)}).verdict is Verdict.CLOSE


def test_a_run_is_finished_without_sites_that_stay_away_or_refuse() -> None:
    of = charter()
    state = run()
    assert evaluated(of, state, ALL, (), 0).verdict is Verdict.WAIT
    assert evaluated(of, state, (), (), 0).wait_ms == 20_000
    assert evaluated(of, state, (), (), 20_000).verdict is Verdict.CLOSE
    assert evaluated(of, state, ALL, ALL, 0).verdict is Verdict.CLOSE
    assert evaluated(of, state, ALL, (), 60_000).verdict is Verdict.CLOSE
