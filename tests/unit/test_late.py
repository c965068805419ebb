"""Late updates by the real round code: who stays at work, when an update counts and how much, what it costs, what ends it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from commons.charter import Charter
from commons.errors import Code, Refusal
from commons.experts.map import ExpertMap
from commons.names import RoundNumber, SiteId
from commons.notes import digest, parse
from commons.records import Kind, Record, canonical_json
from governance.fsck import Finding, judge
from governance.fsck_findings import Rule
from governance.tracking.items import Log
from governance.tracking.training import Training
from orchestrator import round as round_module
from orchestrator.board import run_view
from orchestrator.live import Beat
from orchestrator.rejecting import let_go
from tests.support.consortium import charter
from tests.support.rounds import RUN, Died, Stage

CEDAR = SiteId("cedar")
HOLD = "hold/run-1/1/cedar"
LEASE_S = 60
Step = Callable[[], object]


class LineBroke(Exception):
    """The site's upload ends here."""


def of(**changes: Any) -> Charter:
    """Two updates close a round; the third site has a round more than the others."""
    rounds = {"quorum": 2, "grace_s": 5, "lease_s": LEASE_S, "late_rounds": 1, "late_discount": 0.5}
    rates = ({"device": "cpu", "micro_per_gflop": 3000, "micro_per_device_second": 100},)
    named = {"rounds": rounds | changes.pop("rounds", {}), "rate_card": {"currency": "EUR", "rates": rates}}
    return charter(**{"learning__batch_size": 5_000, "learning__rounds": 9, **named, **changes})


WORK = ExpertMap.from_charter(of()).training_gflop(4 * 5_000 * 16)


@pytest.fixture
def stage_of(tmp_path: Path) -> Iterator[Callable[..., Stage]]:
    stages: list[Stage] = []

    def make(**changes: Any) -> Stage:
        charter = of(**changes)
        stages.append(Stage(tmp_path, charter, rounds=charter.learning.rounds))
        return stages[-1]

    yield make
    for stage in stages:
        stage.close()


@pytest.fixture
def stage(stage_of: Callable[..., Stage]) -> Stage:
    return stage_of()


def says(stage: Stage, state: str = "training", site: str = "cedar") -> None:
    """The site's heartbeat, about the order it has."""
    order = stage.order(site)
    stage.desk.live.beat(SiteId(site), Beat(run=order.run, round=order.round, state=state, why="not now"))


def closes_without_cedar(stage: Stage, *more: Step, state: str = "training") -> list[Step]:
    return [
        lambda: stage.passes(2000),
        lambda: stage.hands_in("alder"),
        lambda: stage.hands_in("birch"),
        *more,
        lambda: says(stage, state),
        lambda: stage.passes(5000),
    ]


def others(stage: Stage) -> list[Step]:
    return [lambda: stage.passes(2000), lambda: stage.hands_in("alder"), lambda: stage.hands_in("birch")]


def closes(stage: Stage) -> list[dict[str, Any]]:
    return [dict(r.facts) for r in stage.records(Kind.CLOSE)]


def rejections(stage: Stage, code: Code) -> list[tuple[int, str]]:
    found = (r.facts for r in stage.records(Kind.REJECTION))
    return [(f["round"], f["site"]) for f in found if f["code"] == code]


def state_of(stage: Stage) -> Any:
    return stage.desk.runs.by_id[RUN]


def findings(stage: Stage) -> tuple[Finding, ...]:
    return judge(stage.records())


def test_a_site_at_work_when_its_round_closes_keeps_its_order_its_lease_and_its_hold(stage: Stage) -> None:
    ordered = []
    assert stage.play(*closes_without_cedar(stage, lambda: ordered.append(stage.order("cedar"))))
    [close] = closes(stage)
    assert (close["contributors"], close["missing"]) == (["alder", "birch"], ["cedar"])
    assert close["carried"] == ["cedar"] and "late" not in close
    assert stage.order("cedar") == ordered[0]
    assert stage.hold(HOLD).state == "held"
    with suppress(Died):
        stage.play(lambda: stage.passes(1000))
    opened = state_of(stage).open_round
    assert opened.number == 2 and CEDAR not in opened.holds
    assert opened.left_out[CEDAR].message.startswith("site cedar is still at work on round 1")
    assert stage.order("cedar") == ordered[0], "also while the next round is open"
    assert findings(stage) == ()


@pytest.mark.parametrize(
    ("rounds", "state"),
    [({"late_rounds": 0}, "training"), ({}, "idle"), ({}, "admitted")],
    ids=["charter-takes-none", "idle", "done"],
)
def test_a_site_that_is_not_seen_at_work_or_whose_charter_takes_no_late_updates_is_not_carried(
    stage_of: Callable[..., Stage], rounds: dict[str, Any], state: str
) -> None:
    stage = stage_of(rounds=rounds)
    assert stage.play(*closes_without_cedar(stage, state=state))
    assert "carried" not in closes(stage)[0]
    assert stage.hold(HOLD).state == "released"
    refused: list[object] = []
    with suppress(Died):
        stage.play(lambda: refused.append(stage.order("cedar").round))
    assert refused == [2], "it is planned again"


@pytest.mark.parametrize(("seconds", "carried"), [(0, ["cedar"]), (10, None)])
def test_a_coordinator_that_started_again_does_not_take_who_had_no_time_to_speak_for_gone(
    stage: Stage, seconds: int, carried: list[str] | None
) -> None:
    with suppress(Died):
        stage.play(*closes_without_cedar(stage)[:-1])
    stage.restart()
    stage.passes(seconds * 1000)
    assert stage.play(lambda: stage.passes(5000))
    assert closes(stage)[0].get("carried") == carried


def test_a_late_update_counts_once_for_less_and_its_experts_in_full(stage: Stage) -> None:
    assert stage.play(*closes_without_cedar(stage))
    indices: list[object] = []

    def comes() -> None:
        late = {"value": 0.04, "ms": 5000, "started_ms": stage.at_ms - 5000, "ended_ms": stage.at_ms}
        sent = stage.packed("cedar", **late)
        indices.extend(stage.sends(sent) for _ in range(3))

    assert stage.play(*others(stage)[:2], comes, others(stage)[2])
    first, second = closes(stage)
    assert second["late"] == {"cedar": 1} and second["contributors"] == ["alder", "birch"]
    assert len(set(indices)) == 1 and isinstance(indices[0], int), "replayed, it is the same update"
    assert second["bytes_up"] == 3 * first["bytes_up"] // 2
    base, state = (stage.desk.store.load(second[k]) for k in ("base", "state"))
    shared = (0.01 + 0.01 + 0.5 * 0.04) / 2.5
    for part in stage.map.slices:
        owner = None if part.expert is None else stage.map.owners[part.expert]
        delta = {None: shared, "cedar": 0.04}.get(owner, 0.01)
        np.testing.assert_allclose(state[part.name] - base[part.name], delta, rtol=1e-3)
    settled = stage.hold(HOLD)
    assert (settled.state, settled.charged_micro) == ("settled", WORK * 3000 + 5 * 100)
    assert settled.contributed == {"cedar": WORK * 3000 + 500}
    assert stage.play(*others(stage), lambda: stage.hands_in("cedar"))
    assert closes(stage)[2]["contributors"] == ["alder", "birch", "cedar"], "the site is planned again"
    assert "late" not in closes(stage)[2]
    assert findings(stage) == ()


def test_an_update_two_rounds_late_counts_by_the_square_of_the_discount(
    stage_of: Callable[..., Stage],
) -> None:
    stage = stage_of(rounds={"late_rounds": 2})
    assert stage.play(*closes_without_cedar(stage))
    assert stage.play(*others(stage))
    assert stage.hold(HOLD).state == "held"
    assert stage.play(*others(stage)[:2], lambda: stage.hands_in("cedar", value=0.04), others(stage)[2])
    third = closes(stage)[2]
    assert third["late"] == {"cedar": 1}
    base, state = (stage.desk.store.load(third[k]) for k in ("base", "state"))
    [name, *_] = (s.name for s in stage.map.shared())
    np.testing.assert_allclose(state[name] - base[name], (0.02 + 0.25 * 0.04) / 2.25, rtol=1e-3)
    assert findings(stage) == ()


def test_an_update_that_did_not_come_in_time_is_let_go_with_its_hold_and_its_site_joins_the_next_round(
    stage: Stage,
) -> None:
    assert stage.play(*closes_without_cedar(stage))
    sent: list[Any] = []
    assert stage.play(*others(stage)[:2], lambda: sent.append(stage.packed("cedar")), others(stage)[2])
    assert rejections(stage, Code.ROUND_CLOSED) == [(1, "cedar")]
    assert stage.hold(HOLD).state == "released"
    refusal = stage.sends(sent[0])
    assert isinstance(refusal, Refusal) and refusal.code is Code.ROUND_CLOSED
    assert stage.play(*others(stage), lambda: stage.hands_in("cedar"))
    assert closes(stage)[2]["contributors"] == ["alder", "birch", "cedar"]
    assert findings(stage) == ()


def test_no_site_stays_at_work_where_no_round_can_take_its_update(stage_of: Callable[..., Stage]) -> None:
    last = stage_of(learning__rounds=1)
    assert last.play(*closes_without_cedar(last))
    assert "carried" not in closes(last)[0] and last.hold(HOLD).state == "released"


def test_no_site_stays_at_work_when_the_lease_ended_the_round(stage_of: Callable[..., Stage]) -> None:
    stage = stage_of(rounds={"grace_s": 2 * LEASE_S})
    begins = others(stage)
    assert stage.play(
        *begins, lambda: stage.passes(LEASE_S * 1000 - 3000), lambda: says(stage), lambda: stage.passes(1000)
    )
    assert closes(stage)[0]["missing"] == ["cedar"] and "carried" not in closes(stage)[0]
    assert stage.hold(HOLD).state == "released"


def test_no_site_stays_at_work_beyond_the_last_round(stage_of: Callable[..., Stage]) -> None:
    stage = stage_of(learning__rounds=2)
    assert stage.play(*closes_without_cedar(stage))
    assert stage.play(*others(stage))
    assert stage.hold(HOLD).state == "released"
    assert stage.order("cedar").work == "evaluate"
    assert findings(stage) == ()


@pytest.mark.parametrize(
    ("happens", "code"),
    [
        (lambda stage: stage.passes(LEASE_S * 1000), Code.LEASE_EXPIRED),
        (lambda stage: says(stage, "refused"), Code.POLICY_FORBIDS),
    ],
    ids=["lease", "refusal"],
)
def test_a_lease_that_ends_and_a_site_that_refuses_end_it_at_once(
    stage: Stage, happens: Callable[[Stage], object], code: Code
) -> None:
    assert stage.play(*closes_without_cedar(stage))
    sent: list[Any] = []
    with suppress(Died):
        stage.play(
            lambda: sent.append(stage.packed("cedar")), lambda: happens(stage), lambda: stage.passes(1)
        )
    assert rejections(stage, code) == [(1, "cedar")]
    assert stage.hold(HOLD).state in ("released", "expired")
    assert isinstance(refusal := stage.sends(sent[0]), Refusal)
    assert refusal.code is Code.ROUND_CLOSED
    assert findings(stage) == ()


def test_the_lease_of_a_late_update_is_looked_at_when_it_comes(stage: Stage) -> None:
    assert stage.play(*closes_without_cedar(stage))
    refused: list[object] = []

    def comes() -> None:
        sent = stage.packed("cedar")
        stage.at_ms += LEASE_S * 1000
        refused.append(stage.sends(sent))

    with suppress(Died):
        stage.play(comes)
    [refusal] = refused
    assert isinstance(refusal, Refusal) and refusal.code is Code.LEASE_EXPIRED


@pytest.mark.parametrize(
    ("in_force", "words"),
    [
        ({"rounds": {"late_rounds": 0}}, "would be 1 round late, the charter takes 0"),
        ({"privacy": {"mode": "dp"}}, "under other terms of privacy"),
        ({"learning__strategy": "diloco"}, "under another strategy"),
        ({"learning__balance_rate": 0.1}, "under another strategy or weighting"),
    ],
    ids=["fewer-rounds", "privacy", "strategy", "weighting"],
)
def test_a_vote_that_ends_what_it_was_begun_under_ends_it_for_what_comes_right_after(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, in_force: dict[str, Any], words: str
) -> None:
    assert stage.play(*closes_without_cedar(stage))
    monkeypatch.setattr("orchestrator.desk.Desk.charter_of_next", lambda *_: of(**in_force))
    refusal = stage.hands_in("cedar", ms=0)
    assert isinstance(refusal, Refusal) and refusal.code is Code.ROUND_CLOSED
    assert words in refusal.message
    let_go(stage.desk, RUN)
    assert rejections(stage, Code.ROUND_CLOSED) == [(1, "cedar")]
    assert stage.hold(HOLD).state == "released"


def test_a_round_without_a_quorum_but_for_a_site_at_work_waits_for_it_or_for_the_end_of_its_lease(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert stage.play(*closes_without_cedar(stage))
    monkeypatch.setattr(stage.desk.live, "present", lambda: {SiteId("alder"), CEDAR})
    stage.waits.clear()
    left_s = LEASE_S - 7
    assert stage.play(
        lambda: stage.hands_in("cedar", ms=0),
        lambda: stage.passes(5000),
        lambda: stage.hands_in("alder"),
        lambda: stage.hands_in("cedar", ms=0),
    )
    assert stage.waits[0] == left_s
    second = closes(stage)[1]
    assert (second["contributors"], second["late"]) == (["alder", "cedar"], {"cedar": 1})
    assert findings(stage) == ()


def test_an_update_that_comes_while_the_others_are_combined_is_combined_with_them(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert stage.play(*closes_without_cedar(stage))
    real, combined = round_module.combine, []

    def combine(*args: Any, **named: Any) -> Any:
        combined.append([(c.site, c.late) for c in named["contributions"]])
        if len(combined) == 1:
            assert isinstance(stage.hands_in("cedar"), int)
        return real(*args, **named)

    monkeypatch.setattr(round_module, "combine", combine)
    assert stage.play(*others(stage))
    assert combined == [[("alder", 0), ("birch", 0)], [("alder", 0), ("birch", 0), ("cedar", 1)]]
    assert closes(stage)[1]["late"] == {"cedar": 1}


def test_what_a_site_at_work_began_with_and_sent_so_far_stays_while_rounds_go_by(
    stage_of: Callable[..., Stage],
) -> None:
    stage = stage_of(rounds={"late_rounds": 8, "lease_s": 600})
    begun: list[Any] = []

    def breaks_off() -> None:
        begun.append(stage.packed("cedar"))
        with suppress(LineBroke):
            stage.sends(begun[0], meanwhile=line_breaks)

    def line_breaks() -> None:
        raise LineBroke

    assert stage.play(*others(stage), lambda: stage.hands_in("cedar"))
    assert stage.play(*closes_without_cedar(stage, breaks_off))
    key = digest(parse(begun[0][0].update).text.encode())
    [there] = stage.desk.spool.positions(RUN, 2, CEDAR, key, 1)
    for _ in range(5):
        assert stage.play(*others(stage))
    assert stage.desk.spool.positions(RUN, 2, CEDAR, key, 1) == (there,) and there > 0
    assert stage.desk.store.load(stage.order("cedar").base)
    assert stage.play(lambda: stage.sends(begun[0]), *others(stage))
    assert closes(stage)[7]["late"] == {"cedar": 2}
    assert not list((stage.home / "spool" / RUN).glob("*")), "then it goes"
    assert findings(stage) == ()


@pytest.mark.parametrize("percent", [0, 50])
def test_a_late_update_that_is_wrong_is_rejected_and_costs_what_a_rejected_one_costs(
    stage_of: Callable[..., Stage], monkeypatch: pytest.MonkeyPatch, percent: int
) -> None:
    stage = stage_of(accounting={"charge_rejected_percent": percent})
    assert stage.play(*closes_without_cedar(stage))

    def comes() -> None:
        with monkeypatch.context() as lying:
            lying.setattr("tests.support.rounds.encode", lambda codec, array: array.tobytes())
            assert isinstance(stage.hands_in("cedar", value=float("nan"), ms=1000), Refusal)

    assert stage.play(comes, *others(stage))
    assert rejections(stage, Code.UPDATE_NOT_FINITE) == [(1, "cedar")]
    assert "late" not in closes(stage)[1]
    assert stage.hold(HOLD).charged_micro == (WORK * 3000 + 100) * percent // 100
    assert stage.budget("cedar").held_micro == 0
    assert findings(stage) == ()


def test_a_late_update_out_of_all_proportion_is_rejected_before_it_is_combined(stage: Stage) -> None:
    assert stage.play(*closes_without_cedar(stage))
    assert stage.play(lambda: stage.hands_in("cedar", value=1e5), *others(stage))
    assert rejections(stage, Code.UPDATE_NORM) == [(1, "cedar")]
    assert "late" not in closes(stage)[1]
    assert stage.hold(HOLD).charged_micro == 0
    assert findings(stage) == ()


def test_an_update_that_comes_between_two_rounds_counts_in_the_next_which_takes_its_site_in(
    stage: Stage,
) -> None:
    """Of both updates the later one says what became of the site's experts: it began where the earlier one ended."""
    assert stage.play(*closes_without_cedar(stage))
    assert isinstance(stage.hands_in("cedar", value=0.04, ms=0), int)
    assert state_of(stage).open_round is None and state_of(stage).late == {CEDAR: RoundNumber(1)}
    assert stage.play(*others(stage), lambda: stage.hands_in("cedar", value=0.05))
    second = closes(stage)[1]
    assert second["contributors"] == ["alder", "birch", "cedar"] and second["late"] == {"cedar": 1}
    base, state = (stage.desk.store.load(second[k]) for k in ("base", "state"))
    for part in stage.map.slices:
        owner = None if part.expert is None else stage.map.owners[part.expert]
        shared = (0.01 + 0.01 + 0.5 * 0.04 + 0.05) / 3.5
        delta = {None: shared, "cedar": 0.05}.get(owner, 0.01)
        np.testing.assert_allclose(state[part.name] - base[part.name], delta, rtol=1e-3)
    assert stage.hold(HOLD).state == stage.hold("hold/run-1/2/cedar").state == "settled"
    assert findings(stage) == ()


def test_late_updates_are_none_of_the_quorum(stage: Stage) -> None:
    assert stage.play(*closes_without_cedar(stage))
    with suppress(Died):
        stage.play(
            lambda: stage.hands_in("cedar"), lambda: stage.hands_in("alder"), lambda: stage.passes(20_000)
        )
    assert len(closes(stage)) == 1


def test_what_comes_late_stays_when_the_round_that_takes_it_is_tried_again(stage: Stage) -> None:
    assert stage.play(*closes_without_cedar(stage))
    assert stage.play(
        lambda: stage.hands_in("cedar"),
        lambda: stage.hands_in("alder"),
        lambda: stage.passes((LEASE_S + 1) * 1000),
        lambda: stage.hands_in("birch", ms=0),
        lambda: stage.hands_in("cedar", ms=0),
    )
    second = closes(stage)[1]
    assert second["contributors"] == ["alder", "birch", "cedar"] and second["late"] == {"cedar": 1}
    assert findings(stage) == ()


def test_a_site_at_work_on_a_closed_round_tops_up_its_hold_and_is_charged_from_it(stage: Stage) -> None:
    """Its hold is a quarter above what its last round took."""
    assert stage.play(*others(stage), lambda: stage.passes(2000), lambda: stage.hands_in("cedar", ms=4000))
    assert stage.play(*closes_without_cedar(stage))
    asked: list[object] = []
    assert stage.play(
        lambda: stage.passes(2000),
        lambda: asked.append(stage.asks("cedar", 1, 10**9)),
        lambda: asked.extend(stage.asks("cedar", 1, 300) for _ in range(3)),
        lambda: stage.hands_in("cedar", ms=7000),
        *others(stage),
    )
    assert isinstance(asked[0], Refusal) and asked[0].code is Code.EXCEEDS_HOLD
    assert asked[1:] == [None] * 3
    base, top = stage.hold("hold/run-1/2/cedar"), stage.hold("hold/run-1/2/cedar/top1")
    assert base.request.amount_micro == base.charged_micro == WORK * 3000 + 500
    assert (top.state, top.charged_micro) == ("settled", 200)
    assert findings(stage) == ()


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("append", range(1, 10))
def test_a_coordinator_that_dies_anywhere_between_close_and_admission_goes_on_the_same(
    stage_of: Callable[..., Stage], append: int, after: bool
) -> None:
    stage = stage_of()

    def until(number: int, script: Callable[[], list[Step]]) -> None:
        """The script again and again, as sites do who hear of a lost coordinator, until the round is closed."""
        while len(closes(stage)) < number:
            with suppress(Died):
                stage.play(*(lambda s=step: tried(s) for step in script()))

    def tried(step: Step) -> None:
        with suppress(AssertionError):  # it has no order any more: it was done before
            step()

    stage.play(*closes_without_cedar(stage))
    late = [lambda: stage.hands_in("cedar", value=0.04, ms=0)]
    with suppress(Died), stage.dying(append, after=after):
        stage.play(*(lambda s=step: tried(s) for step in [*others(stage)[:2], *late, others(stage)[2]]))
        stage.play(*(lambda s=step: tried(s) for step in [*others(stage), *late]))
    stage.restart()
    until(3, lambda: [*late, *others(stage)])
    taken = [c["late"] for c in closes(stage) if "late" in c]
    assert taken == [{"cedar": 1}]
    assert [s["hold"] for s in stage.transfers("settle", hold=HOLD)] == [HOLD]
    assert findings(stage) == ()
    again = state_of(stage)
    stage.restart()
    assert state_of(stage) == again


def test_votes_wait_while_a_late_update_waits_for_its_round(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    executed: list[int] = []
    monkeypatch.setattr(
        stage.desk.consortium.proposals,
        "decide_execute",
        lambda charter, number, now_ms, *, run: executed.append(number) or [],
    )
    assert stage.play(*closes_without_cedar(stage))
    assert isinstance(stage.hands_in("cedar", ms=0), int)
    executed.clear()
    round_module.carry_out_votes(stage.desk, RUN)
    assert executed == []


def test_the_run_view_shows_who_is_still_at_work_and_what_came_late(stage: Stage) -> None:
    assert stage.play(*closes_without_cedar(stage))
    desk = stage.desk

    def view() -> Any:
        return run_view(
            state_of(stage),
            charters=desk.consortium.members.charters,
            ledger=stage.ledger,
            live=desk.live,
            noised=desk.runs.noised,
            journal_size=0,
        )

    shown: list[Any] = []
    assert stage.play(
        lambda: shown.append(view()),
        lambda: stage.hands_in("cedar"),
        lambda: shown.append(view()),
        *others(stage),
    )
    [cedar] = [s for s in shown[0].sites if s.site == "cedar"]
    assert (cedar.state, cedar.why) == (
        "training",
        "round 1 closed without it; its update counts in round 2, late by 1 round, weight 0.5",
    )
    assert shown[0].history[0].carried == ("cedar",)
    assert shown[1].history[1].late == {"cedar": "late by 1 round, weight 0.5"}
    assert view().history[1].late == {"cedar": "late by 1 round, weight 0.5"}
    assert view().history[1].bytes_up == closes(stage)[1]["bytes_up"]


def test_the_mirror_shows_what_a_round_took_late_and_what_the_late_work_cost_under_its_own_round(
    stage: Stage,
) -> None:
    assert stage.play(*closes_without_cedar(stage))
    assert stage.play(lambda: stage.hands_in("cedar", ms=1000), *others(stage))
    training = Training()
    items = [item for index, record in enumerate(stage.records()) for item in training.apply(index, record)]
    points = [p for item in items if isinstance(item, Log) and item.run == f"run/{RUN}" for p in item.points]
    assert [(p.step, p.value) for p in points if p.key == "round/late"] == [(2, 1)]
    cost = WORK * 3000 + 100
    assert [(p.step, p.value) for p in points if p.key == "charge/micro"] == [(1, 3 * cost), (2, 2 * cost)]


Lie = Callable[[list[Record]], list[Record]]


def _with(kind: Kind, nth: int, **facts: Any) -> Lie:
    def lie(records: list[Record]) -> list[Record]:
        at = [i for i, r in enumerate(records) if r.kind is kind][nth]
        records[at] = replace(records[at], body=canonical_json(records[at].facts | facts))
        return records

    return lie


def _takes_it_again(records: list[Record]) -> list[Record]:
    return _with(Kind.CLOSE, 2, late={"cedar": 1})(records)


def _admits_it_again(records: list[Record]) -> list[Record]:
    update = next(i for i, r in enumerate(records) if r.kind is Kind.UPDATE and b"site cedar\n" in r.body)
    close = [i for i, r in enumerate(records) if r.kind is Kind.CLOSE][1]
    again = [replace(r, at_ms=records[close].at_ms) for r in records[update : update + 2]]
    return records[:close] + again + records[close:]


def _charges_it_again(records: list[Record]) -> list[Record]:
    settle = next(
        i for i, r in enumerate(records)
        if r.kind is Kind.TRANSFER and r.facts["type"] == "settle" and r.facts["hold"] == HOLD
    )  # fmt: skip
    return [*records[: settle + 1], *records[settle:]]


def _forgets_its_hold(records: list[Record]) -> list[Record]:
    ends = (Kind.TRANSFER,)
    return [r for r in records if not (r.kind in ends and r.facts.get("hold") == HOLD)]


@pytest.mark.parametrize(
    ("lie", "rule", "words"),
    [
        (_with(Kind.CLOSE, 1, late={}), Rule.ROUND, "takes late updates none into round 2, admitted were cedar of round 1"),
        (_takes_it_again, Rule.ROUND, "takes late updates cedar of round 1 into round 3, admitted were none"),
        (_admits_it_again, Rule.UPDATE, "a second update of site cedar"),
        (_charges_it_again, Rule.ENDING, "a hold ends once"),
        (_forgets_its_hold, Rule.ENDING, "still held"),
        (_with(Kind.CLOSE, 0, carried=["alder"]), Rule.ROUND, "keeps alder at work on round 1, which may not be"),
        (_with(Kind.CLOSE, 0, carried=[]), Rule.UPDATE, "which is not open"),
        (
            _with(Kind.ROUND, 1, holds={"alder": 1, "birch": 1, "cedar": 1}),
            Rule.ROUND,
            "assigns site cedar, which is still at work on round 1",
        ),
    ],
    ids=["left-out", "twice", "admitted-twice", "charged-twice", "hold", "not-missing", "not-carried", "assigned"],
)  # fmt: skip
def test_the_audit_names_what_breaks_the_rules_of_late_updates(
    stage: Stage, lie: Lie, rule: Rule, words: str
) -> None:
    assert stage.play(*closes_without_cedar(stage))
    assert stage.play(lambda: stage.hands_in("cedar"), *others(stage))
    assert stage.play(*others(stage), lambda: stage.hands_in("cedar"))
    assert findings(stage) == ()
    found = judge(lie(stage.records()))
    assert any(f.rule is rule and words in f.what for f in found), found


def test_the_audit_names_an_update_that_is_taken_too_late(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.desk.too_late", lambda *_: None)
    assert stage.play(*closes_without_cedar(stage))
    assert stage.play(*others(stage))
    assert stage.play(lambda: stage.hands_in("cedar"), *others(stage))
    found = {f.rule: f.what for f in findings(stage)}
    assert "for an update of site cedar for round 1, which counts no more" in found[Rule.ROUND]
    assert "into round 3, which is too late" in found[Rule.UPDATE]
    assert "hold/run-1/1/cedar is still held" in found[Rule.ENDING]
