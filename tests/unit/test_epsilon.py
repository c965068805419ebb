"""Epsilon is a budget: who has spent it sits out, by the real round code, the journal's replay and the audit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from commons.errors import Code, Refusal
from commons.names import SiteId
from commons.privacy.accounting import epsilon_after
from commons.privacy.terms import DP
from commons.records import Kind
from governance.fsck import Rule, judge
from governance.noised import Noised
from governance.tracking.items import Log
from governance.tracking.picture import Picture
from tests.support.consortium import SITES, charter
from tests.support.rounds import RUN, Stage

Z, DELTA = 2.0, 1e-6
TWO = epsilon_after([Z] * 2, DELTA) + 1e-9
"""Two rounds and no third."""
ALDER, BIRCH, CEDAR = (SiteId(name) for name in SITES)


@pytest.fixture
def stage_of(tmp_path: Path) -> Iterator[Callable[..., Stage]]:
    stages: list[Stage] = []

    def make(quorum: int = 1, mode: str = "dp", **terms: Any) -> Stage:
        dp = {"noise_multiplier": Z, "delta": DELTA, "epsilon_max": TWO} | terms
        of = charter(
            rounds={"quorum": quorum, "grace_s": 5, "lease_s": 60}, learning__rounds=9,
            privacy={"mode": mode, "dp": dp},
        )  # fmt: skip
        stages.append(Stage(tmp_path, of))
        return stages[-1]

    yield make
    for stage in stages:
        stage.close()


def hand_in(stage: Stage, *sites: str) -> list[Callable[[], object]]:
    """Those sites do, and the grace ends for the others."""
    work = [lambda s=s: stage.hands_in(s, loss=None) for s in sites]
    return [lambda: stage.passes(2000), *work, lambda: stage.passes(5000)]


def spent(stage: Stage, site: SiteId) -> float:
    return stage.desk.runs.noised.spent(site, stage.of.privacy.dp)


def test_a_site_that_has_spent_its_epsilon_sits_out_by_name_and_the_others_go_on(
    stage_of: Callable[..., Stage],
) -> None:
    stage = stage_of()
    assert stage.play(*hand_in(stage, *SITES))
    assert stage.play(*hand_in(stage, "alder", "birch"))
    assert stage.play(*hand_in(stage, "cedar"))
    third = stage.desk.runs.by_id[RUN].history[2]
    assert set(third.left_out) == {ALDER, BIRCH} and set(third.admitted) == {CEDAR}
    why = third.left_out[ALDER]
    have, would = (epsilon_after([Z] * n, DELTA) for n in (2, 3))
    assert why.code == Code.EXCEEDS_EPSILON
    assert (
        f"site alder has spent epsilon {have:.3f} at delta 1e-06, round 3 would make it {would:.3f}"
        in why.message
    )
    assert f"epsilon_max is {TWO:g}" in why.message and "once the members vote for more" in why.message
    assert judge(stage.records()) == ()


def test_a_run_ends_when_too_few_may_still_spend(stage_of: Callable[..., Stage]) -> None:
    stage = stage_of(quorum=2)
    assert stage.play(*hand_in(stage, *SITES))
    assert stage.play(*hand_in(stage, "alder", "birch"))
    assert not stage.play()
    run = stage.desk.runs.by_id[RUN]
    assert (run.finished, run.closed) == ("stopped", 2)
    assert "round 3 has 1 of the 2 sites its quorum needs: site alder has spent epsilon" in run.reason
    assert judge(stage.records()) == ()


def test_the_journal_read_again_gives_the_same_epsilon(stage_of: Callable[..., Stage]) -> None:
    stage = stage_of()
    assert stage.play(*hand_in(stage, *SITES))
    assert stage.play(*hand_in(stage, "alder"))
    before = [spent(stage, site) for site in (ALDER, BIRCH, CEDAR)]
    assert before == [epsilon_after([Z] * n, DELTA) for n in (2, 1, 1)]
    stage.restart()
    assert [spent(stage, site) for site in (ALDER, BIRCH, CEDAR)] == before


def test_an_update_that_is_rejected_has_left_its_site_all_the_same(stage_of: Callable[..., Stage]) -> None:
    stage = stage_of()

    def wrong() -> None:
        answer = stage.hands_in("alder", loss=None, device="gpu")
        assert isinstance(answer, Refusal) and answer.code is Code.USAGE_IMPLAUSIBLE

    assert stage.play(wrong, *hand_in(stage, "birch"))
    assert stage.play(*hand_in(stage, "alder", "birch"))
    assert spent(stage, ALDER) == spent(stage, BIRCH) == epsilon_after([Z] * 2, DELTA)
    assert stage.play(*hand_in(stage, "cedar"))
    assert set(stage.desk.runs.by_id[RUN].history[2].left_out) == {ALDER, BIRCH}
    assert judge(stage.records()) == ()


def test_mlflow_shows_what_a_site_has_spent_also_by_an_update_that_was_rejected(
    stage_of: Callable[..., Stage],
) -> None:
    stage = stage_of()
    wrong = lambda: stage.hands_in("alder", loss=None, device="gpu")
    assert stage.play(wrong, *hand_in(stage, "birch"))
    assert stage.play(*hand_in(stage, "alder", "birch"))
    picture = Picture()
    items = [item for index, r in enumerate(stage.records()) for item in picture.apply(index, r)]
    shown = [
        (item.run.rpartition("/")[2], point.step, point.value)
        for item in items
        if isinstance(item, Log)
        for point in item.points
        if point.key == "privacy/epsilon"
    ]
    one, two = (epsilon_after([Z] * n, DELTA) for n in (1, 2))
    expected = [("alder", 1, one), ("birch", 1, one), ("alder", 2, two), ("birch", 2, two)]
    assert sorted(shown) == sorted(expected)


def test_rounds_without_noise_spend_nothing_that_is_counted(stage_of: Callable[..., Stage]) -> None:
    stage = stage_of(mode="none")
    for _ in range(3):
        assert stage.play(*hand_in(stage, *SITES))
    assert stage.desk.runs.noised.spent(ALDER, DP()) == 0.0


def test_the_audit_finds_a_site_that_was_asked_beyond_its_epsilon(
    stage_of: Callable[..., Stage], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Noised, "forbids", lambda *_: None)
    stage = stage_of()
    for _ in range(3):
        assert stage.play(*hand_in(stage, *SITES))
    records = stage.records()
    [found] = judge(records)
    rounds = [index for index, record in enumerate(records) if record.kind is Kind.ROUND]
    would = epsilon_after([Z] * 3, DELTA)
    assert (found.rule, found.index) == (Rule.ROUND, rounds[2])
    assert f"assigns site alder, which spends epsilon {would:.3f} with it" in found.what
