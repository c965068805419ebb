"""Experts that come, go and change hands between two rounds, by the real round code: what stays is moved and never changed."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from commons.charter import Charter
from commons.errors import Code, Refusal
from commons.experts.map import ExpertMap
from commons.experts.remaking import Change, remade_digest, remake_state
from commons.names import Digest, ExpertId
from commons.records import Kind, Record, canonical_json
from commons.states import StateStore
from governance.fsck import _Audit, fsck, judge
from governance.fsck_findings import Findings
from orchestrator.live import Beat
from orchestrator.round import _plan_and_hold
from tests.support.consortium import SITES, charter, signer
from tests.support.parts import take_apart
from tests.support.rounds import RUN, Died, Stage


def of(**changes: Any) -> Charter:
    """Partners of unequal number of experts; momentum and a lossy way down, so that there is much to carry over."""
    sites = tuple(
        s.model_dump() | {"experts": tuple(f"{s.name}-{n}" for n in range(count))}
        for s, count in zip(charter().sites, (2, 3, 1), strict=True)
    )
    learning = {"outer": {"momentum": 0.5}, "codecs": {"down": "int8", "trunk": "int8"}, "rounds": 9}
    fields = {f"learning__{k}": v for k, v in learning.items()}
    return charter(
        **{"sites": sites, **fields, "rounds": {"quorum": 2, "grace_s": 5, "lease_s": 60}, **changes}
    )


@pytest.fixture
def stage_of(tmp_path: Path) -> Iterator[Callable[..., Stage]]:
    stages: list[Stage] = []

    def make(**changes: Any) -> Stage:
        stages.append(Stage(tmp_path / f"{len(stages)}", of(**changes)))
        return stages[-1]

    yield make
    for stage in stages:
        stage.close()


@pytest.fixture
def stage(stage_of: Callable[..., Stage]) -> Stage:
    made = stage_of()
    assert made.play(*hand_in(made))
    return made


def hand_in(stage: Stage, *sites: str) -> list[Callable[[], object]]:
    """Each its own way, so that no two experts are alike."""
    named = sites or SITES
    work = [lambda s=s, n=n: stage.hands_in(s, value=0.01 * (n + 1)) for n, s in enumerate(named)]
    return [lambda: stage.passes(1000), *work]


def remakes(stage: Stage) -> None:
    """Up to the opening of the next round, and no further."""
    with suppress(Died):
        _plan_and_hold(stage.desk, RUN, first=False, renew=False)


def parts(stage: Stage) -> tuple[dict[str, Any], dict[ExpertId, dict[str, Any]]]:
    return take_apart(ExpertMap.from_charter(stage.charter), stage.state)


def memory(stage: Stage) -> dict[str, np.ndarray]:
    momentum = stage.desk.runs.by_id[RUN].momentum
    assert momentum is not None
    return stage.desk.store.load(momentum)


def alike(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[n], other[n]) for n in one)


def test_a_retired_expert_leaves_nothing_and_all_others_are_bit_for_bit_what_they_were(stage: Stage) -> None:
    trunk, before = parts(stage)
    kept, number = (
        memory(stage),
        list(ExpertMap.from_charter(stage.charter).experts).index(ExpertId("birch-0")),
    )
    gone = {
        b.digest
        for n, b in stage.desk.store.manifest(stage.desk.runs.by_id[RUN].state).items()
        if f".experts.{number}." in n
    }
    stage.decides("expert-retire", by="birch", expert="birch-0")
    remakes(stage)
    trunk_after, after = parts(stage)
    assert stage.charter.experts == ("alder-0", "alder-1", "birch-1", "birch-2", "cedar-0")
    assert alike(trunk_after, trunk) and after.keys() == before.keys() - {"birch-0"}
    assert all(alike(after[e], before[e]) for e in after)
    for name, array in memory(stage).items():
        wanted = (
            np.delete(kept[name], number, axis=0) if "gate" in name.rpartition("mlp.")[2][:4] else kept[name]
        )
        assert np.array_equal(array, wanted), name
    assert not any(stage.desk.store.has(digest) for digest in gone), (
        "its weights are off the coordinator's disk"
    )
    assert stage.play(*hand_in(stage)) and judge(stage.records()) == ()


def test_a_transfer_changes_the_owner_and_no_byte_of_weights(stage: Stage) -> None:
    trunk, before = parts(stage)
    stage.decides("expert-transfer", by="alder", expert="alder-1", to="cedar")
    remakes(stage)
    trunk_after, after = parts(stage)
    assert stage.charter.owner("alder-1").name == "cedar"  # type: ignore[union-attr]
    assert alike(trunk_after, trunk) and all(alike(after[e], before[e]) for e in before)
    assert stage.play(*hand_in(stage)) and judge(stage.records()) == ()
    assert not alike(parts(stage)[1][ExpertId("alder-1")], before[ExpertId("alder-1")]), (
        "its new owner trains it"
    )


def test_an_expert_is_added_as_a_copy_with_its_row_or_by_the_seed_rule(stage: Stage) -> None:
    _, before = parts(stage)
    stage.decides("expert-add", by="cedar", site="cedar", expert="cedar-1", like="birch-2")
    stage.decides("expert-add", by="alder", site="alder", expert="alder-2")
    remakes(stage)
    _, after = parts(stage)
    assert all(alike(after[e], before[e]) for e in before)
    assert alike(after[ExpertId("cedar-1")], before[ExpertId("birch-2")])
    new = np.concatenate([a.reshape(-1) for a in after[ExpertId("alder-2")].values() if a.ndim > 1])
    assert 0.5 < new.std() / 0.02 < 1.1 and abs(new.mean()) < 0.002
    rows = [n for n, expert in enumerate(stage.charter.experts) if expert in ("cedar-1", "alder-2")]
    router = next(a for n, a in memory(stage).items() if n.endswith("gate.weight"))
    assert not router[rows].any() and router.any(), "nothing is remembered of what is new"
    assert stage.play(*hand_in(stage)) and judge(stage.records()) == ()


def test_votes_of_one_boundary_are_one_change_whatever_the_order_of_copies_and_retirements(
    stage: Stage,
) -> None:
    _, before = parts(stage)
    stage.decides("expert-add", by="cedar", site="cedar", expert="cedar-1", like="birch-2")
    stage.decides("expert-retire", by="birch", expert="birch-2")
    remakes(stage)
    assert len(stage.records(Kind.REMADE)) == 1
    assert alike(parts(stage)[1][ExpertId("cedar-1")], before[ExpertId("birch-2")])


def test_readers_that_a_vote_brings_begin_by_the_seed_rule_beside_what_there_is(
    stage_of: Callable[..., Stage],
) -> None:
    stage = stage_of(learning__routing="lean")
    assert stage.play(*hand_in(stage))
    trunk, before = parts(stage)
    stage.decides("readers", by="alder", width=4)
    remakes(stage)
    wanted = [s.name for s in ExpertMap.from_charter(stage.charter).slices if s.name.startswith("readers.")]
    assert len(wanted) == 3 * len(SITES)
    assert all(stage.state[name].any() == name.endswith("weight") for name in wanted)
    trunk_after, after = parts(stage)
    assert alike(trunk_after, trunk)
    assert all(np.array_equal(after[e][n], array) for e in before for n, array in before[e].items())
    assert stage.play(*hand_in(stage)) and judge(stage.records()) == ()


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("append", [1, 2, 3, 4])
def test_a_coordinator_that_dies_anywhere_at_the_boundary_makes_the_same_bytes(
    stage: Stage, stage_of: Callable[..., Stage], append: int, after: bool
) -> None:
    """Appends: outcome, execution and charter, the state re-made, the round."""
    whole = stage_of()
    assert whole.play(*hand_in(whole))
    for one in (whole, stage):
        one.decides("expert-retire", by="birch", expert="birch-1")
        one.decides("expert-add", by="cedar", site="cedar", expert="cedar-1")
    remakes(whole)
    with suppress(Died), stage.dying(append, after=after):
        remakes(stage)
    stage.restart()
    remakes(stage)
    assert [r.facts["state"] for r in stage.records(Kind.REMADE)] == [
        r.facts["state"] for r in whole.records(Kind.REMADE)
    ]
    assert stage.play(*hand_in(stage)) and whole.play(*hand_in(whole))
    assert stage.desk.runs.by_id[RUN].state == whole.desk.runs.by_id[RUN].state
    assert judge(stage.records()) == ()


def test_whoever_holds_the_old_state_recomputes_the_new_one_from_the_charters_alone(
    stage: Stage, tmp_path: Path
) -> None:
    old = stage.desk.runs.by_id[RUN].state
    auditor = StateStore(tmp_path / "auditor")
    assert auditor.save(dict(stage.state)) != old, "steps are part of a manifest"
    for blob in stage.desk.store.manifest(old).values():
        for digest in (blob.digest, *([blob.step.digest] if blob.step else [])):
            auditor.put(stage.desk.store.read(digest))
    auditor.put(stage.desk.store.read(old))
    stage.decides("expert-retire", by="birch", expert="birch-1")
    stage.decides("expert-add", by="cedar", site="cedar", expert="cedar-1")
    remakes(stage)
    [remade] = (r.facts for r in stage.records(Kind.REMADE))
    versions = stage.desk.consortium.members.charters
    shown = [versions[v] for v in range(remade["since"], remade["charter_version"] + 1)]
    change = Change.through(shown)
    assert remade_digest(auditor, Digest(remade["base"]), change) == remade["state"]
    assert not auditor.has(Digest(remade["state"])), "an audit writes nothing"
    report = fsck(stage.home / "journal.db", states=auditor)
    assert (report.clean, report.remade) == (True, 1)
    assert remake_state(auditor, Digest(remade["base"]), change) == remade["state"]


LIES: tuple[tuple[dict[str, Any], str], ...] = (
    ({"base": "sha256:" + "0" * 64}, "another state than the run's last one"),
    ({"momentum_base": ""}, "another state than the run's last one"),
    ({"momentum": ""}, "drops or invents what was remembered"),
    ({"round": 5}, "re-makes the state for round 5"),
    ({"since": 2}, "of other experts than it had"),
    ({"charter_version": 1}, "for another charter than the one in force"),
)


@pytest.mark.parametrize(("lie", "why"), LIES, ids=[why for _, why in LIES])
def test_a_lie_about_a_re_made_state_is_found(stage: Stage, lie: dict[str, Any], why: str) -> None:
    stage.decides("expert-retire", by="birch", expert="birch-1")
    remakes(stage)
    records = [
        Record(r.kind, r.at_ms, canonical_json(r.facts | lie)) if r.kind is Kind.REMADE else r
        for r in stage.records()
    ]
    assert why in " ".join(f.what for f in judge(records))
    without = [r for r in records if r.kind is not Kind.REMADE]
    assert "on a state with other experts than charter version 2" in " ".join(f.what for f in judge(without))


def test_another_state_than_the_one_that_follows_is_found_by_whoever_holds_the_old_one(
    stage: Stage, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(stage.home / "states", copy)
    stage.decides("expert-retire", by="birch", expert="birch-1")
    remakes(stage)
    other = "sha256:" + "0" * 64
    swapped = [
        Record(r.kind, r.at_ms, canonical_json(r.facts | {"state": other})) if r.kind is Kind.REMADE else r
        for r in stage.records()
    ]
    audit = _Audit(Findings(), StateStore(copy))
    for index, record in enumerate(swapped):
        audit.take(index, record)
    assert "re-makes the state as sha256:0000" in " ".join(f.what for f in audit.findings.all())


def test_an_update_under_way_for_the_old_experts_is_refused_and_its_site_goes_on_with_the_next_round(
    stage_of: Callable[..., Stage],
) -> None:
    stage = stage_of(rounds={"quorum": 2, "grace_s": 5, "lease_s": 60, "late_rounds": 2})
    cedar = stage.packed
    waiting: list[Any] = []

    def works() -> None:
        order = stage.order("cedar")
        stage.desk.live.beat("cedar", Beat(run=order.run, round=order.round, state="training"))  # type: ignore[arg-type]
        waiting.append(cedar("cedar"))

    steps = [*hand_in(stage, "alder", "birch"), works, lambda: stage.passes(5000)]
    assert stage.play(*steps)
    assert stage.desk.runs.by_id[RUN].carried == {"cedar": 1}
    stage.decides("expert-retire", by="birch", expert="birch-0")
    refused: list[object] = []
    assert stage.play(lambda: refused.append(stage.sends(waiting[0])), *hand_in(stage))
    [refusal] = refused
    assert isinstance(refusal, Refusal)
    codes = [r.facts["code"] for r in stage.records(Kind.REJECTION) if r.facts["site"] == "cedar"]
    assert codes == [Code.EXPERT_MAP_MISMATCH]
    assert stage.desk.runs.by_id[RUN].history[1].admitted.keys() == set(SITES)
    assert judge(stage.records()) == ()


def test_the_experts_of_a_site_that_leaves_stay_in_escrow_until_a_vote_gives_them_to_another(
    stage: Stage,
) -> None:
    trunk, before = parts(stage)
    stage.decides("site-remove", by="alder", site="birch")
    assert stage.play(*hand_in(stage, "alder", "cedar"))
    assert stage.charter.escrow == ("birch-0", "birch-1", "birch-2")
    _, held = parts(stage)
    assert all(alike_but_rows(held[e], before[e]) for e in map(ExpertId, stage.charter.escrow))
    assert not alike(parts(stage)[0], trunk), "the others train on"
    stage.decides("expert-transfer", by="cedar", expert="birch-1", to="cedar")
    stage.decides("expert-retire", by="alder", expert="birch-0")
    assert stage.play(*hand_in(stage, "alder", "cedar"))
    assert stage.charter.escrow == ("birch-2",)
    assert stage.charter.site("cedar").experts == ("cedar-0", "birch-1")  # type: ignore[union-attr]
    assert not alike_but_rows(parts(stage)[1][ExpertId("birch-1")], before[ExpertId("birch-1")])
    assert judge(stage.records()) == ()


def alike_but_rows(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """The router is everybody's: all sites move all its rows."""
    return all(np.array_equal(one[n], other[n]) for n in one if ".gate." not in n)


def test_a_site_that_leaves_and_opts_out_takes_its_experts_with_it(stage: Stage) -> None:
    stage.decides("site-remove", by="birch", site="birch", experts="drop")
    remakes(stage)
    assert (stage.charter.escrow, stage.charter.retired) == ((), ("birch-0", "birch-1", "birch-2"))
    assert set(parts(stage)[1]) == {"alder-0", "alder-1", "cedar-0"}
    assert stage.play(*hand_in(stage, "alder", "cedar")) and judge(stage.records()) == ()


def test_a_new_members_site_is_in_the_next_round_and_starts_from_the_trunk_as_it_is_then(
    stage: Stage,
) -> None:
    trunk, before = parts(stage)
    stage.decides("member-admit", name="dune", key=signer("dune").vkey, budget_micro=1_000_000)
    remakes_nothing = stage.play(*hand_in(stage))
    assert remakes_nothing and stage.records(Kind.REMADE) == []
    trunk, before = parts(stage)
    site = of().sites[0].model_dump(mode="json") | {
        "name": "dune", "partner": "dune", "payer": "dune", "domain": "dune-text", "experts": ["dune-0", "dune-1"],
    }  # fmt: skip
    stage.decides("site-add", by="dune", **site, like=["alder-0", "birch-0"], quorum=3)
    remakes(stage)
    stage.enrol("dune", "dune")
    stage.comes("dune")
    trunk_after, after = parts(stage)
    assert alike(trunk_after, trunk) and all(alike(after[e], before[e]) for e in before)
    assert alike(after[ExpertId("dune-1")], before[ExpertId("birch-0")])
    assert stage.play(*hand_in(stage))
    assert stage.play(*hand_in(stage, *SITES, "dune"))
    assert "dune" in stage.desk.runs.by_id[RUN].history[-1].admitted
    assert stage.desk.runs.by_id[RUN].history[-1].quorum == 3
    assert judge(stage.records()) == ()
