"""The actor's calls without Ray: what ends a round early, what a finished one tells again."""

from __future__ import annotations

import hashlib
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from commons.charter import Charter
from tests.support.consortium import charter, seed_state
from workers.actor import Bench, Failed, TrainingActor
from workers.seal import Trained

OF = charter(learning__inner_steps=3)
STATE = {name: np.asarray(array) for name, array in seed_state(OF).items()}


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"alder is number {i} of {i * i}" for i in range(200)))
    return Bench("alder", "alder", text, None, None, tmp_path / "rounds", tmp_path / "tokenizer.json", 1)


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


PROBE = b"the probe is one text that lies at every site " * 8


def probing(bench: Bench, tmp_path: Path, text: bytes = PROBE) -> Bench:
    (tmp_path / "probe.txt").write_bytes(text)
    return replace(bench, probe=tmp_path / "probe.txt")


def judged(**changes: object) -> Charter:
    named = {
        "text": f"sha256:{hashlib.sha256(PROBE).hexdigest()}",
        "bytes": len(PROBE),
        "rows": 4,
        "domains": ("a", "b"),
    }
    return charter(learning__inner_steps=3, probe=named, **changes)


def test_a_state_is_measured_on_the_charters_probe_and_training_goes_on_to_the_same_bytes(
    bench: Bench, tmp_path: Path
) -> None:
    of, steady = judged(), TrainingActor(replace(bench, home=tmp_path / "steady"))
    actor = TrainingActor(probing(bench, tmp_path))
    for one in (steady, actor):
        trained(one, 1)
    losses = actor.probe("run-1", of, STATE)
    assert losses == actor.probe("run-1", of, STATE), "measured again, the same"
    assert isinstance(losses, tuple) and len(losses) == 2, "one for each part"
    assert all(4 < loss < 50 for loss in losses), (
        "a model of random weights knows next to nothing of 256 bytes"
    )
    moved = {name: array * np.float32(1.5) for name, array in STATE.items()}
    assert actor.probe("run-1", of, moved) != losses
    expected, got = trained(steady, 2, number=2), trained(actor, 2, number=2)
    for name, delta in expected.trunk_delta.items():
        assert np.array_equal(delta, got.trunk_delta[name]), name
    for name, array in expected.experts.items():
        assert np.array_equal(array, got.experts[name]), name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (PROBE[:-1], "probe.txt is of 367 bytes, the charter's probe is sha256:"),
        (PROBE[:-1] + b"x", "its operator gets that file"),
        (None, "this site has none; its operator names it as `probe` under [site]"),
    ],
)
def test_another_text_than_the_charters_is_not_measured_on(
    bench: Bench, tmp_path: Path, text: bytes | None, message: str
) -> None:
    actor = TrainingActor(bench if text is None else probing(bench, tmp_path, text))
    failed = actor.probe("run-1", judged(), STATE)
    assert isinstance(failed, Failed) and message in failed.message
