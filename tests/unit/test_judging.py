"""Rounds that are judged, by the real round code: what is measured, who is left out, what is rolled back, and who pays."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from commons.charter import Charter
from commons.errors import Code, Refusal
from commons.names import Digest, ExpertId, SiteId
from commons.records import Kind, canonical_json
from commons.work import ProbeNote
from governance.fsck import judge as audit
from governance.fsck_findings import Rule
from governance.tracking.items import Item, Log
from governance.tracking.training import Training
from hansa.worth import worth_of
from orchestrator.appraising import silent
from orchestrator.board import run_view
from orchestrator.judging import decide_measurement, leavable
from orchestrator.live import Beat
from orchestrator.progress import RoundState, RunState
from tests.support.consortium import SITES, charter, signer
from tests.support.rounds import RUN, Died, Stage

TEXT = "sha256:" + "ab" * 32
NORM = "model.norm.weight"
Step = Callable[[], object]


def of(**changes: Any) -> Charter:
    terms = {
        "learning__rounds": 9,
        "probe": {"text": TEXT, "bytes": 1000, "patience_s": 10},
        "rollback": {"on": True, "rise_percent": 1.0, "quarantine_rounds": 2},
        "rounds": {"quorum": 2, "grace_s": 5, "lease_s": 600},
    }
    return charter(**(terms | changes))


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


def loss_of(stage: Stage, state: str) -> float:
    """A model that is the worse the further its norm has been moved up: updates of a value above 0 do harm."""
    store = stage.desk.store
    blobs = {d: store.manifest(Digest(d))[NORM] for d in (state, stage.desk.runs.by_id[RUN].history[0].base)}
    moved, seed = (np.array(store.map(blob)) for blob in blobs.values()) if len(blobs) > 1 else (0.0, 0.0)
    return 2.0 + float(np.mean(np.asarray(moved) - np.asarray(seed)))


def states(stage: Stage, site: str, claims: Callable[[str], float] | None = None) -> int:
    """The site measures all that it is asked for; how many states that were. `claims`: what it says instead."""
    done = 0
    while (order := _asked(stage, site)) is not None:
        loss = (claims or (lambda state: loss_of(stage, state)))(order.base)
        assert isinstance(says(stage, site, order.base, loss), list)
        done += 1
    return done


def _asked(stage: Stage, site: str) -> Any:
    from orchestrator.orders import order_for

    order = order_for(stage.desk, SiteId(site), over_before=()).assignment
    return order if order is not None and order.work == "probe" else None


def says(stage: Stage, site: str, state: str, loss: float, **changes: Any) -> Any:
    note = {
        "consortium": "hanse",
        "run": RUN,
        "round": stage.desk.runs.by_id[RUN].next,
        "site": site,
        "probe": TEXT,
    }
    key, words = signer(f"{site}/{site}"), ProbeNote(**{**note, "state": state, "losses": (loss,), **changes})
    consortium = stage.desk.consortium
    known: list[int] = []

    def decide(now_ms: int) -> Any:
        found = decide_measurement(
            stage.desk, SiteId(site), consortium.members.site_key(SiteId(site)), key.sign(words.text), now_ms
        )
        known.extend([found] if isinstance(found, int) else [])
        return [] if isinstance(found, int) else found

    done = consortium.commit(decide)
    return done if isinstance(done, Refusal) else [*done, *known]


def all_measure(stage: Stage, **claims: Callable[[str], float]) -> Step:
    def measure() -> None:
        stage.passes(100)
        for site in SITES:
            states(stage, site, claims.get(site))

    return measure


def hand_in(stage: Stage, **values: float) -> list[Step]:
    """Each site trains a second; `values`: what its update adds to every weight, by default a little to the better."""
    return [
        lambda: stage.passes(2000),
        *(lambda s=s: s in _working(stage) and stage.hands_in(s, value=values.get(s, -0.01)) for s in SITES),
    ]


def _working(stage: Stage) -> list[SiteId]:
    opened = stage.desk.runs.by_id[RUN].open_round
    return opened.waiting if opened else []


def facts(stage: Stage, kind: Kind) -> list[dict[str, Any]]:
    return [dict(r.facts) for r in stage.records(kind)]


def rejected(stage: Stage, code: Code) -> list[tuple[int, str]]:
    return [(f["round"], f["site"]) for f in facts(stage, Kind.REJECTION) if f["code"] == code]


def view(stage: Stage) -> Any:
    desk = stage.desk
    return run_view(
        desk.runs.by_id[RUN], charters=desk.consortium.members.charters, ledger=stage.ledger, live=desk.live,
        noised=desk.runs.noised, journal_size=desk.consortium.size,
    )  # fmt: skip


def test_without_a_probe_nothing_is_measured_and_no_verdict_is_written(
    stage_of: Callable[..., Stage],
) -> None:
    stage = stage_of(probe={}, rollback={})
    assert stage.play(*hand_in(stage))
    assert stage.records(Kind.PROBE, Kind.VERDICT) == []


def test_the_loss_of_a_rounds_state_is_measured_by_its_sites_before_it_closes(stage: Stage) -> None:
    assert stage.play(*hand_in(stage), all_measure(stage))
    [verdict], [close] = facts(stage, Kind.VERDICT), facts(stage, Kind.CLOSE)
    assert verdict["verdict"] == "good" and verdict["state"] == close["state"]
    assert verdict["change_ppm"] == -5000 and verdict["limit_ppm"] == 40_000, "2.00 fell to 1.99"
    assert len(stage.records(Kind.PROBE)) == 2 * len(SITES), "the base and the new state"
    [closed] = view(stage).history
    assert closed.probe_loss == pytest.approx(1.99) and closed.verdict == "good"
    assert stage.play(*hand_in(stage), all_measure(stage))
    assert len(stage.records(Kind.PROBE)) == 3 * len(SITES), "the base was measured as the last round's state"
    assert audit(stage.records()) == ()


def test_without_rollback_a_worse_state_is_measured_and_taken(stage_of: Callable[..., Stage]) -> None:
    stage = stage_of(rollback={})
    assert stage.play(*hand_in(stage, cedar=3.0), all_measure(stage))
    [verdict] = facts(stage, Kind.VERDICT)
    assert verdict["verdict"] == "measured" and verdict["limit_ppm"] is None
    assert verdict["change_ppm"] > 400_000
    assert audit(stage.records()) == ()


def test_the_update_that_does_the_harm_is_left_out_and_its_site_sits_out_and_comes_back(
    stage_of: Callable[..., Stage],
) -> None:
    stage = stage_of(accounting={"charge_rejected_percent": 50}, learning__batch_size=5_000)
    assert stage.play(*hand_in(stage, cedar=3.0), all_measure(stage), all_measure(stage))
    first, second = facts(stage, Kind.VERDICT)
    assert (first["verdict"], second["verdict"]) == ("harmful", "good")
    assert set(first["without"]) == {"alder/1", "birch/1", "cedar/1"}
    assert second["state"] == first["without"]["cedar/1"] == facts(stage, Kind.CLOSE)[0]["state"]
    assert facts(stage, Kind.CLOSE)[0]["contributors"] == ["alder", "birch"]
    [why] = [f for f in facts(stage, Kind.REJECTION) if f["code"] == Code.UPDATE_HARMFUL]
    assert why["site"] == "cedar" and why["update"]
    assert "changes by +49.67 %, without it by -0.50 %: it is left out of round 1" in why["message"]
    hold = stage.hold("hold/run-1/1/cedar")
    full = stage.hold("hold/run-1/1/alder").charged_micro
    assert (hold.state, hold.accepted, hold.charged_micro) == ("settled", False, full // 2)
    for number in (2, 3):
        assert stage.play(*hand_in(stage), all_measure(stage))
        assert (number, "cedar") in rejected(stage, Code.QUARANTINED)
    assert "sits out until round 4" in view(stage).history[-1].left_out["cedar"]
    assert stage.play(*hand_in(stage), all_measure(stage))
    assert facts(stage, Kind.CLOSE)[-1]["contributors"] == list(SITES), "it is back"
    assert audit(stage.records()) == ()


def test_harm_that_nobody_did_alone_rolls_the_round_back_and_the_work_is_paid(
    stage_of: Callable[..., Stage],
) -> None:
    stage = stage_of(learning__outer={"learning_rate": 1.0, "momentum": 0.5})
    assert stage.play(*hand_in(stage), all_measure(stage))
    good, momentum = (getattr(stage.desk.runs.by_id[RUN], what) for what in ("state", "momentum"))
    worse = dict.fromkeys(SITES, 0.2)
    assert stage.play(*hand_in(stage, **worse), all_measure(stage), all_measure(stage))
    verdict, close = facts(stage, Kind.VERDICT)[-1], facts(stage, Kind.CLOSE)[-1]
    assert verdict["verdict"] == "rolled-back" and verdict["state"] != good
    assert (close["state"], close["base"], close["momentum"]) == (good, good, momentum)
    assert rejected(stage, Code.UPDATE_HARMFUL) == [], "nobody is to blame"
    assert {stage.hold(f"hold/run-1/2/{s}").accepted for s in SITES} == {True}
    assert view(stage).history[-1].verdict == "rolled-back"
    assert stage.play(*hand_in(stage), all_measure(stage)), "and the run goes on from there"
    assert facts(stage, Kind.CLOSE)[-1]["base"] == good
    assert audit(stage.records()) == ()


def test_an_update_that_the_quorum_needs_is_not_left_out(stage_of: Callable[..., Stage]) -> None:
    stage = stage_of(rounds={"quorum": 3, "grace_s": 5, "lease_s": 600})
    assert stage.play(*hand_in(stage, cedar=3.0), all_measure(stage))
    [verdict], [close] = facts(stage, Kind.VERDICT), facts(stage, Kind.CLOSE)
    assert verdict["verdict"] == "rolled-back" and close["state"] == close["base"]
    assert audit(stage.records()) == ()


def test_a_quarantine_never_stops_a_run(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    assert stage.play(*hand_in(stage, cedar=3.0), all_measure(stage), all_measure(stage))
    monkeypatch.setattr(stage.desk.live, "present", lambda: {SiteId("alder"), SiteId("cedar")})
    assert stage.play(lambda: stage.passes(6000), *hand_in(stage), all_measure(stage))
    assert facts(stage, Kind.CLOSE)[-1]["contributors"] == ["alder", "cedar"], "the quorum is two"
    assert audit(stage.records()) == ()


def test_of_two_who_do_harm_both_are_left_out_one_after_the_other(stage_of: Callable[..., Stage]) -> None:
    stage = stage_of(rounds={"quorum": 1, "grace_s": 5, "lease_s": 600})
    measure = all_measure(stage)
    assert stage.play(*hand_in(stage, birch=2.0, cedar=3.0), *[measure] * 6)
    assert rejected(stage, Code.UPDATE_HARMFUL) == [(1, "cedar"), (1, "birch")]
    assert [f["verdict"] for f in facts(stage, Kind.VERDICT)] == ["harmful", "harmful", "good"]
    assert audit(stage.records()) == ()


@pytest.mark.parametrize(
    "claims", [lambda state: 0.0, lambda state: 1e9, lambda state: float(hash(state) % 7)]
)
def test_one_liar_of_three_neither_hides_harm_nor_makes_it_up(
    stage: Stage, claims: Callable[[str], float]
) -> None:
    assert stage.play(*hand_in(stage), all_measure(stage, cedar=claims))
    assert facts(stage, Kind.VERDICT)[-1]["verdict"] == "good"
    lied = [all_measure(stage, cedar=claims)] * 2
    assert stage.play(*hand_in(stage, cedar=3.0), *lied)
    assert rejected(stage, Code.UPDATE_HARMFUL) == [(2, "cedar")]


def test_a_round_nobody_measures_closes_when_the_patience_is_over_and_says_so(stage: Stage) -> None:
    assert stage.play(*hand_in(stage), lambda: stage.passes(20_000))
    [verdict] = facts(stage, Kind.VERDICT)
    assert (verdict["verdict"], verdict["change_ppm"], verdict["limit_ppm"]) == ("unmeasured", None, None)
    assert stage.waits[-1] == 20.0, "ten seconds for each of two states"
    assert audit(stage.records()) == ()


def test_sites_that_refuse_or_are_gone_are_not_waited_for(stage: Stage) -> None:
    def others_measure() -> None:
        stage.desk.live.beat(SiteId("cedar"), Beat(run=RUN, round=1, state="refused", why="no probe here"))
        for site in ("alder", "birch"):
            states(stage, site)

    assert stage.play(*hand_in(stage), others_measure)
    assert facts(stage, Kind.VERDICT)[0]["verdict"] == "good"


def test_a_straggler_that_comes_while_the_others_measure_is_in_the_round(stage: Stage) -> None:
    script = hand_in(stage)[:-1]
    late = [lambda: stage.passes(5000), lambda: stage.hands_in("cedar"), all_measure(stage)]
    assert stage.play(*script, *late)
    assert facts(stage, Kind.CLOSE)[0]["contributors"] == list(SITES)
    assert len(facts(stage, Kind.VERDICT)) == 1
    assert audit(stage.records()) == ()


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"run": "run-7"}, Code.RUN_UNKNOWN),
        ({"round": 2}, Code.ROUND_CLOSED),
        ({"probe": "sha256:" + "cd" * 32}, Code.REQUEST_INVALID),
        ({"consortium": "other"}, Code.REQUEST_INVALID),
        ({"state": "sha256:" + "ef" * 32}, Code.STALE_BASE),
        ({"losses": (1.0,)}, Code.REQUEST_INVALID),
        ({"losses": (2.0, 2.0)}, Code.REQUEST_INVALID),
    ],
)
def test_a_measurement_nobody_asked_for_is_refused_and_a_repeat_is_the_same(
    stage: Stage, changes: Mapping[str, Any], code: Code
) -> None:
    def happens() -> None:
        order = _asked(stage, "alder")
        first = says(stage, "alder", order.base, 2.0)
        assert says(stage, "alder", order.base, 2.0) == first
        words = {"state": order.base, "loss": 2.0, **changes}
        refusal = says(stage, "alder", **words)  # type: ignore[arg-type]
        assert isinstance(refusal, Refusal) and refusal.code is code, refusal

    with pytest.raises(Died):
        stage.play(*hand_in(stage), happens)
    assert len(stage.records(Kind.PROBE)) == 1


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("append", [4, 7, 13, 20, 21])
def test_a_coordinator_that_dies_anywhere_in_a_judged_round_ends_at_the_same_bytes(
    stage_of: Callable[..., Stage], append: int, after: bool, ended: dict[str, Any]
) -> None:
    stage = stage_of()

    def script() -> list[Step]:
        return [*hand_in(stage, cedar=3.0), *[all_measure(stage)] * 3]

    with suppress(Died), stage.dying(append, after=after):
        stage.play(*script())
    stage.restart()
    while not facts(stage, Kind.CLOSE):
        with suppress(Died):
            stage.play(*script())
    [close] = facts(stage, Kind.CLOSE)
    assert {key: close[key] for key in ("state", "momentum", "contributors")} == ended
    assert [f["verdict"] for f in facts(stage, Kind.VERDICT)] == ["harmful", "good"]
    assert audit(stage.records()) == ()


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The same round in which nobody dies. Its appends: the last update is the 4th, 5 to 19 are measurements, then the
    rejection, then the close."""
    stage = Stage(tmp_path_factory.mktemp("steady"), of())
    stage.play(*hand_in(stage, cedar=3.0), *[all_measure(stage)] * 2)
    [close] = facts(stage, Kind.CLOSE)
    stage.close()
    return {key: close[key] for key in ("state", "momentum", "contributors")}


def appraised(stage_of: Callable[..., Stage], **changes: Any) -> Stage:
    """The second round is appraised; alder's update is worth most, and cedar's does a little harm."""
    stage = stage_of(**({"contribution": {"every": 2}, "rollback": {}} | changes))
    assert stage.play(*hand_in(stage), all_measure(stage))
    assert stage.records(Kind.WORTH) == []
    assert stage.play(*hand_in(stage, alder=-0.04, cedar=0.01), *[all_measure(stage)] * 4)
    return stage


def test_what_each_update_and_each_expert_is_worth_is_measured_where_the_charter_says(
    stage_of: Callable[..., Stage],
) -> None:
    stage = appraised(stage_of)
    [worth], close = facts(stage, Kind.WORTH), facts(stage, Kind.CLOSE)[-1]
    assert worth["state"] == close["state"]
    # 2 - 0.01 - 0.04/3 with all three; without alder, birch, cedar: 2 - 0.01 and 0, -0.015, -0.025.
    exact = {"alder/2": 0.04 / 3, "birch/2": 0.04 / 3 - 0.015, "cedar/2": 0.04 / 3 - 0.025}
    found = {name: ppm for name, (_, ppm, _) in worth["updates"].items()}
    assert found == {n: pytest.approx(1e6 * x / (1.99 - 0.04 / 3), abs=5) for n, x in exact.items()}
    assert {name: ppm for name, (_, ppm, _) in worth["experts"].items()} == dict.fromkeys(
        stage.map.experts, 0
    )
    store, whole = stage.desk.store, Digest(close["state"])
    for expert, (state, *_) in worth["experts"].items():
        assert silent(store, whole, stage.map, ExpertId(expert)) == state
        blobs = {d: store.manifest(Digest(d)) for d in (state, whole)}
        for part in stage.map.slices:
            same = blobs[Digest(state)][part.name].digest == blobs[whole][part.name].digest
            assert same is (part.expert != expert)
    assert view(stage).history[-1].worth_ppm == found
    assert audit(stage.records()) == ()
    shown = worth_of(view(stage))
    assert [row["site"] for row in shown["updates"]] == list(SITES) and shown["rounds"] == [2]
    assert shown["share_percent"] == {"alder": 100.0, "birch": 0.0, "cedar": 0.0}
    points = {(log.run, p.key): p.value for log in mirrored(stage) for p in log.points if "worth" in p.key}
    for site in SITES:
        assert points[f"run/run-1/partner/{site}", "worth/update_percent"] == found[f"{site}/2"] / 10_000
        assert points[f"run/run-1/partner/{site}", f"worth/expert/{site}-0_percent"] == 0


def test_with_lean_routing_an_expert_is_its_owners_alone_and_only_updates_are_appraised(
    stage_of: Callable[..., Stage],
) -> None:
    stage = appraised(stage_of, learning__routing="lean")
    [worth] = facts(stage, Kind.WORTH)
    assert set(worth["updates"]) == {"alder/2", "birch/2", "cedar/2"} and worth["experts"] == {}


def test_under_secure_aggregation_nobodys_worth_can_be_asked_for_and_nobody_is_left_out() -> None:
    masked = {"mode": "secagg", "secagg": {"clip": 0.125}}
    three = {"quorum": 3, "grace_s": 5, "lease_s": 600}
    with pytest.raises(ValueError, match="nobody sees a single update"):
        of(privacy=masked, rounds=three, contribution={"every": 2})
    alone = of(privacy=masked, rounds=three)
    run = RunState(RUN, 9, Digest("sha256:0"), None, 0, 1)
    assert leavable(run, cast(RoundState, None), alone) == []


def test_an_update_that_drags_twice_is_left_out_of_an_appraised_round_though_the_loss_falls(
    stage_of: Callable[..., Stage],
) -> None:
    rollback = {"on": True, "drag_percent": 0.5, "quarantine_rounds": 2}
    stage = appraised(stage_of, rollback=rollback)
    first = facts(stage, Kind.WORTH)[-1]
    assert first["dragging"] == ["cedar/2"] and rejected(stage, Code.UPDATE_HARMFUL) == [], "once is no habit"
    assert stage.play(*hand_in(stage), all_measure(stage))
    assert stage.play(*hand_in(stage, alder=-0.04, cedar=0.01), *[all_measure(stage)] * 4)
    [out] = [f for f in facts(stage, Kind.REJECTION) if f["code"] == Code.UPDATE_HARMFUL]
    assert (out["round"], out["site"]) == (4, "cedar")
    assert (
        "on its own kind of text by -0.60 %; it was so the last time it was appraised too" in out["message"]
    )
    assert [f["verdict"] for f in facts(stage, Kind.VERDICT)] == ["good", "good", "good", "harmful", "good"]
    worth = facts(stage, Kind.WORTH)[-1]
    assert set(worth["updates"]) == {"alder/4", "birch/4"}, "the others are appraised again"
    assert facts(stage, Kind.CLOSE)[-1]["contributors"] == ["alder", "birch"]
    assert audit(stage.records()) == ()
    lie = [
        replace(r, body=canonical_json({**r.facts, "dragging": []})) if r.kind is Kind.WORTH else r
        for r in stage.records()
    ]
    assert Rule.VERDICT in {finding.rule for finding in audit(lie)}


def test_an_update_that_drags_too_little_to_be_seen_in_one_round_is_left_out_for_the_sum(
    stage_of: Callable[..., Stage],
) -> None:
    """Three rounds in each of which the state would be 0.6 % better without cedar's update, which helps nobody."""
    rollback = {"on": True, "drag_percent": 1.0, "drag_memory": 0.9, "quarantine_rounds": 2}
    stage = stage_of(rollback=rollback, contribution={"every": 1})
    for number in (1, 2, 3):
        if number == 3:
            stage.restart()
        assert rejected(stage, Code.UPDATE_HARMFUL) == []
        assert stage.play(*hand_in(stage, alder=-0.04, cedar=0.01), *[all_measure(stage)] * 4)
    assert [f.get("dragging", []) for f in facts(stage, Kind.WORTH)] == [[], ["cedar/2"], []]
    [out] = [f for f in facts(stage, Kind.REJECTION) if f["code"] == Code.UPDATE_HARMFUL]
    assert (out["round"], out["site"]) == (3, "cedar") and "summed over its appraisals too" in out["message"]
    assert audit(stage.records()) == ()
    silent_ones = [
        replace(r, body=canonical_json({**r.facts, "dragging": []})) if r.kind is Kind.WORTH else r
        for r in stage.records()
    ]
    assert Rule.VERDICT in {finding.rule for finding in audit(silent_ones)}


def test_a_site_that_helps_its_own_kind_of_text_is_not_left_out_however_much_the_others_would_gain(
    stage_of: Callable[..., Stage],
) -> None:
    """Cedar's update makes the two other parts worse and its own better."""
    probe = {"text": TEXT, "bytes": 1000, "patience_s": 10, "domains": tuple(f"{s}-text" for s in SITES)}
    rollback = {"on": True, "drag_percent": 0.5, "quarantine_rounds": 2}
    stage = stage_of(probe=probe, rollback=rollback, contribution={"every": 1}, learning__rounds=4)

    def parts(state: str) -> tuple[float, ...]:
        moved = loss_of(stage, state) - 2.0
        return 2.0 + moved, 2.0 + moved, 2.0 - moved

    def measure() -> None:
        for site in SITES:
            while (order := _asked(stage, site)) is not None:
                assert isinstance(says(stage, site, order.base, 0.0, losses=parts(order.base)), list)

    for number in (1, 2, 3):
        assert stage.play(*hand_in(stage, alder=-0.01, birch=-0.01, cedar=0.11), *[measure] * 3), number
    worth = [f["updates"]["cedar/1"][1:] for f in facts(stage, Kind.WORTH) if "cedar/1" in f["updates"]]
    assert worth[0][0] < -5000 and worth[0][1] > 5000, "worse for the whole, and better for its own"
    assert rejected(stage, Code.UPDATE_HARMFUL) == []
    assert audit(stage.records()) == ()


@pytest.mark.parametrize("kind", [Kind.VERDICT, Kind.WORTH, Kind.REJECTION, Kind.CLOSE])
def test_an_auditor_finds_a_verdict_that_does_not_follow_from_the_measurements(
    stage_of: Callable[..., Stage], kind: Kind
) -> None:
    stage = appraised(stage_of, rollback={"on": True})
    assert stage.play(*hand_in(stage, cedar=3.0), *[all_measure(stage)] * 2)
    records, lies = stage.records(), 0
    for index, record in enumerate(records):
        if record.kind is not kind or (
            kind is Kind.REJECTION and record.facts["code"] != Code.UPDATE_HARMFUL
        ):
            continue
        for told in told_otherwise(kind, record.facts):
            changed = [*records]
            changed[index] = replace(record, body=canonical_json(told))
            assert Rule.VERDICT in {finding.rule for finding in audit(changed)}, told
            lies += 1
    assert lies >= 1


def told_otherwise(kind: Kind, said: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    match kind:
        case Kind.VERDICT:
            yield {**said, "change_ppm": said["change_ppm"] - 1}
            yield {**said, "limit_ppm": said["limit_ppm"] + 1}
            yield {**said, "verdict": "good" if said["verdict"] != "good" else "rolled-back"}
            if "without" in said:
                yield {**said, "without": {}}
        case Kind.WORTH:
            state, ppm, best = said["updates"]["alder/2"]
            yield {**said, "updates": {**said["updates"], "alder/2": [state, ppm + 1, best]}}
            yield {**said, "updates": {**said["updates"], "alder/2": [state, ppm, best + 1]}}
            yield {**said, "updates": {"dogwood/2": [state, ppm, best]}}
        case Kind.REJECTION:
            yield {**said, "site": "birch"}
        case _:
            yield {**said, "state": said["base"]}


def mirrored(stage: Stage) -> list[Log]:
    mirror, items = Training(), list[Item]()
    for index, record in enumerate(stage.records()):
        items += mirror.apply(index, record)
    return [item for item in items if isinstance(item, Log)]


def test_the_mirror_has_the_curve_of_states_that_were_taken(stage: Stage) -> None:
    assert stage.play(*hand_in(stage, cedar=3.0), *[all_measure(stage)] * 2)
    logs = mirrored(stage)
    curve = [(p.step, round(p.value, 4)) for log in logs for p in log.points if p.key == "probe/loss"]
    assert curve == [(0, 2.0), (1, 1.99)]
    tags = [log.tags["hansa.verdict.1"] for log in logs if "hansa.verdict.1" in log.tags]
    assert tags == [
        "harmful: +49.67 % on the probe, harm above +4.00 %",
        "good: -0.50 % on the probe, harm above +4.00 %",
    ]
