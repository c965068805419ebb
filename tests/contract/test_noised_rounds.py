"""A run under differential privacy: real sites over real gRPC, until their epsilon is spent."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from commons.charter import Charter
from commons.experts.map import ExpertMap, Kind
from commons.notes import parse
from commons.privacy.accounting import epsilon_after
from commons.records import Kind as Records
from commons.views import RunView
from commons.work import UpdateNote
from governance.fsck import judge
from tests.contract.test_services import eventually
from tests.support.consortium import SITES, charter, over
from tests.support.real_sites import RealStage, Site
from workers.site import SPENT
from workers.spending import Spending

Arrays = Mapping[str, np.ndarray]
Z, CLIP, DELTA = 4.0, 0.5, 1e-6
TWO = epsilon_after([Z] * 2, DELTA) + 1e-9


class NoisedStage(RealStage):
    """A coordinator and three real sites under noise."""

    def __init__(self, folder: Path, policy: str = "", **changes: Any) -> None:
        terms = {"noise_multiplier": Z, "clip_norm": CLIP, "delta": DELTA, "epsilon_max": TWO}
        terms |= changes.pop("terms", {})
        of = charter(
            privacy={"mode": "dp", "dp": terms},
            rounds={"quorum": 3, "grace_s": 1, "lease_s": 60},
            learning__rounds=3,
            **changes,
        )
        super().__init__(folder, of, policy)

    def closes(self) -> list[dict[str, Any]]:
        return [dict(r.facts) for r in self.records if r.kind is Records.CLOSE]

    def updates(self) -> list[UpdateNote]:
        return [UpdateNote.from_note(parse(r.body)) for r in self.records if r.kind is Records.UPDATE]


@pytest.fixture
def stage_of(tmp_path: Path) -> Iterator[Callable[..., NoisedStage]]:
    stages: list[NoisedStage] = []

    def make(**changes: Any) -> NoisedStage:
        stages.append(NoisedStage(tmp_path, **changes))
        return stages[-1]

    yield make
    for stage in stages:
        stage.close()


def watched(stage: NoisedStage) -> list[RunView]:
    """Every picture of the run until it is over."""
    views: list[RunView] = []
    stage.office.start_run(stage.folder / "seed")

    def look(view: RunView) -> bool:
        views.append(view)
        return over(view)

    stage.office.wait(look, 60)
    return views


@pytest.mark.parametrize("slices", ["shared", "all"])
def test_a_run_goes_on_until_epsilon_is_spent_and_nothing_that_leaves_a_site_is_without_noise(
    stage_of: Callable[..., NoisedStage], slices: str
) -> None:
    stage = stage_of(
        terms={"slices": slices}, learning__outer={"learning_rate": 1.0, "momentum": 0.0, "nesterov": False}
    )
    views = watched(stage)
    last = views[-1]
    assert (last.phase, len(stage.closes())) == ("stopped", 2)
    assert "round 3 has 0 of the 3 sites its quorum needs: site alder has spent epsilon" in last.reason
    assert [(u.loss, u.held_out_loss) for u in stage.updates()] == [(None, None)] * 6
    assert all(s.loss is None and s.held_out_loss is None for view in views for s in view.sites)
    assert all(not r.losses and not r.held_out for r in last.history)
    exact = epsilon_after([Z] * 2, DELTA)
    assert {(s.epsilon, s.epsilon_max) for s in last.sites} == {(exact, TWO)}
    assert judge(stage.records) == ()

    store, closed = stage.coordinator.desk.store, stage.closes()[1]
    base, state = store.load(closed["base"]), store.load(closed["state"])
    sent = {site.file.name: stage.sent(site, 2) for site in stage.sites}
    for part in ExpertMap.from_charter(stage.of).slices:
        owner = next((n for n in SITES if part.name in sent[n] and part.kind is Kind.EXPERT), None)
        of = [sent[owner]] if owner else list(sent.values())
        moved = np.mean([update[part.name] for update in of], axis=0)
        np.testing.assert_allclose(state[part.name], base[part.name] + moved, rtol=1e-5, atol=1e-5)
        covered = slices == "all" or owner is None
        if part.size > 500:
            wanted = Z * CLIP / np.sqrt(len(of)) if covered else 0.0
            assert np.std(moved) == pytest.approx(wanted, rel=0.15, abs=1e-5)


def test_a_site_goes_no_further_than_its_own_count_whatever_the_coordinator_orders(
    stage_of: Callable[..., NoisedStage], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("governance.noised.Noised.forbids", lambda *_: None)
    stage = stage_of()
    stage.office.start_run(stage.folder / "seed")
    eventually(lambda: any("would make it" in s.why for s in stage.office.run().sites), 60)
    eventually(lambda: all(s.state == "refused" for s in stage.office.run().sites), 60)
    for site, shown in zip(stage.sites, stage.office.run().sites, strict=True):
        assert f"step 14 privacy: site {site.file.name} has spent epsilon" in shown.why
        assert site.trainer.rounds == [1, 2], "it did not even train"
    assert len(stage.updates()) == 6


def test_an_owners_limit_keeps_one_site_from_a_round_that_the_charter_allows(
    stage_of: Callable[..., NoisedStage],
) -> None:
    one = epsilon_after([Z], DELTA) + 1e-9
    stage = stage_of(policy=f"[policy]\nepsilon_max = {one!r}\n")
    stage.office.start_run(stage.folder / "seed")
    eventually(lambda: any("[policy] epsilon_max allows" in s.why for s in stage.office.run().sites), 60)
    alder = stage.office.run().sites[0]
    assert (alder.site, alder.state) == ("alder", "refused")
    eventually(lambda: len(stage.updates()) == 5, 60)
    assert stage.sites[0].trainer.rounds == [1]


def test_a_site_started_again_sends_the_same_bytes_and_they_count_once(
    stage_of: Callable[..., NoisedStage], monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = stage_of()
    first = stage.sites[0]
    killed = threading.Event()
    real = Spending.count

    def count_and_die(self: Spending, order: Any, of: Charter, payload: str) -> None:
        real(self, order, of, payload)
        if order.site == "alder" and not killed.is_set():
            killed.set()
            first.stop.set()
            raise OSError("killed")  # counted, and not yet sealed

    monkeypatch.setattr(Spending, "count", count_and_die)
    stage.office.start_run(stage.folder / "seed")
    assert killed.wait(30)
    first.close()
    stage.sites[0] = Site(first.file).start()
    stage.office.wait(over, 60)
    assert len(stage.closes()) == 2
    kept = (first.file.home / SPENT).read_text()
    assert kept.count("payload") == 2, "the first round, sealed twice, counts once"
    assert judge(stage.records) == ()
