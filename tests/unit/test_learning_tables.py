"""What the learning benchmark says of recorded runs: missed, met and not measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.learning_parts import rows
from benchmarks.learning_parts.plan import VARIANTS
from benchmarks.learning_parts.schedule import OURS, RANKED, T1, UNREAD
from benchmarks.learning_parts.tables import Runs, table


def record(folder: Path, variant: str, seed: int, loss: float, *, up: int = 100, start: str = "seed") -> None:
    domains = {"code": loss, "medical": loss + 0.2}
    side = {
        "losses": domains,
        "oracle": domains,
        "own": domains,
        "soup": domains,
        "ensemble": domains,
    }
    if variant == UNREAD:
        side |= {"posterior": domains, "committed": domains, "losses": {d: x + 1 for d, x in domains.items()}}
    found = {
        "variant": {
            "name": variant, "holds": "own" if variant in (OURS, UNREAD) else "all", "reader": 8 if variant == OURS else 0, "start": start, "data": "alone" if variant == "alone" else "apart", "inner_steps": 30,
            "trunk_every": 1, "experts_every": 3, "trunk_codec": "int4", "expert_codec": "fp32",
        },
        "seed": seed, "test": side, "validation": side, "bytes_up_per_site": up, "bytes_per_step_ddp_bf16": 1000,
        "curve": [[10, loss + 1, loss], [20, loss, loss]],
    }  # fmt: skip
    (folder / f"t1-{variant}-{seed}.json").write_text(json.dumps(found))


@pytest.fixture
def t1(tmp_path: Path) -> Runs:
    for seed in (0, 1):
        record(tmp_path, "central", seed, 1.4 + seed)
        record(tmp_path, OURS, seed, 1.46 + seed, up=10)
        record(tmp_path, UNREAD, seed, 1.47 + seed)
        record(tmp_path, "spes", seed, 1.6 + seed)
        record(tmp_path, "alone", seed, 2.0 + seed)
    return Runs(tmp_path, "t1", side="test")


def test_gaps_are_taken_between_runs_of_one_seed(t1: Runs) -> None:
    gap = t1.gap(OURS)
    assert gap is not None
    assert gap.values == pytest.approx((100 * 0.06 / 1.5, 100 * 0.06 / 2.5))
    assert t1.gap(OURS, "central-scratch") is None


def test_an_improvement_is_the_share_of_what_central_gains_over_the_seed(tmp_path: Path) -> None:
    for variant, loss in (("central", 1.4), ("untrained", 2.4), ("flexolmo", 1.6)):
        record(tmp_path, variant, 0, loss)
    runs = Runs(tmp_path, "t1", side="test")
    share = runs.improvement("flexolmo")
    assert share is not None and share.mean == pytest.approx(80)
    assert runs.improvement("flexolmo-read") is None
    [found] = [row for row in rows._sovereign(runs) if row[1] != rows.NOT_RUN]
    assert found[1:] == (80.0, "%", ">= 96 %", False)


def test_figures_say_what_was_met_and_what_was_not_measured(t1: Runs) -> None:
    found = {title: (value, met) for title, value, _, _, met in rows.figures(t1)}
    assert found["gap to central, 4 sites, from a seed"] == ("3.2 ± 1.1 (2 seeds)", True)
    assert found["gap to central, 8 sites, from a seed"] == (rows.NOT_RUN, False)
    assert found["routing loss: by readers, above oracle-routed"] == (0.0, True)
    assert found["the same by the learned router"][1] is False
    assert found["bytes up against SPES's, H = 10, fp32"] == (10.0, True)
    assert found["worst domain against its owner's alone model"][1] is True


def test_the_table_has_the_best_first_and_the_soup_beside_alone(t1: Runs) -> None:
    lines = (table(t1, start="seed", title="T1") or "").splitlines()
    names = [line.split(" | ")[0].removeprefix("| ") for line in lines[4:]]
    best = ["central", f"{OURS}, experts by readers", f"{UNREAD}, experts by posterior", "spes"]
    assert names[:4] == best and "soup of the four" in names
    assert table(t1, start="scratch", title="T1") is None


def test_every_run_of_the_plan_is_a_variant() -> None:
    assert set(T1) | set(RANKED) | {OURS} <= set(VARIANTS)
