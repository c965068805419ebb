"""The actor's calls without Ray: what ends a round early, what a finished one tells again."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from tests.support.consortium import charter, seed_state
from workers.actor import Bench, Failed, TrainingActor
from workers.seal import Trained

OF = charter(learning__inner_steps=3)
STATE = {name: np.asarray(array) for name, array in seed_state(OF).items()}


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"alder is number {i} of {i * i}" for i in range(200)))
    return Bench("alder", "alder", text, None, None, tmp_path / "rounds", 1)


def trained(actor: TrainingActor, call: int, number: int = 1, *, not_before_ms: int = 0) -> Trained:
    result = actor.train(call, "run-1", number, OF, STATE, not_before_ms)
    assert isinstance(result, Trained), result
    return result


def test_a_round_is_measured_on_the_sites_own_processor(bench: Bench) -> None:
    actor = TrainingActor(bench)
    usage = trained(actor, 1, not_before_ms=10**15).usage
    assert usage.device_ids == ("cpu/alder/alder",) and usage.precision == "fp32"
    assert usage.started_ms == 10**15 and usage.ended_ms == 10**15 + usage.device_ms
    progress = actor.progress()
    assert (progress.step, progress.steps) == (3, 3)
    assert 0 < progress.device_ms <= usage.device_ms


def test_told_to_finish_it_hands_over_what_is_trained_after_the_step_it_is_in(bench: Bench) -> None:
    actor = TrainingActor(bench)
    actor.finish(1)
    short = trained(actor, 1)
    assert (short.steps, short.tokens) == (1, 2 * 16)
    assert trained(TrainingActor(bench), 1).usage == short.usage, "another process tells the same"
    assert trained(actor, 2, number=2).steps == 3, "only that call is meant"


def test_told_to_abandon_it_keeps_nothing(bench: Bench) -> None:
    actor = TrainingActor(bench)
    actor.abandon(1)
    assert actor.train(1, "run-1", 1, OF, STATE, 0) == Failed("abandoned")
    assert trained(actor, 2).steps == 3


def test_a_call_that_comes_while_another_trains_waits_for_its_end(bench: Bench) -> None:
    actor, results = TrainingActor(bench), list[Trained]()
    calls = [threading.Thread(target=lambda n=n: results.append(trained(actor, n, number=n))) for n in (1, 2)]
    for call in calls:
        call.start()
    for call in calls:
        call.join(60)
    assert [r.steps for r in results] == [3, 3]
    one, two = sorted((r.usage for r in results), key=lambda u: u.started_ms)
    assert one.ended_ms <= two.started_ms + 1, "measured one after the other"
