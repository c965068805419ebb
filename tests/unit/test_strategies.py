"""Training under each strategy, and from one to another between rounds: what moves, what stays, what a killed site repeats."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from commons.exchange import Exchange
from commons.experts.map import ExpertMap, Kind
from commons.learning import Learning, Outer, Since, Warm
from commons.names import ExpertId, SiteId
from tests.unit.test_trainer import LEARNING, MAP, MODEL, State, ignore, same, start
from workers.data import Corpus, Rows
from workers.durable import read_arrays, read_facts
from workers.trainer import RoundResult, Trainer

BERLIN, OSLO = SiteId("berlin"), SiteId("oslo")
Make = Callable[..., Trainer]
JOINT = LEARNING.model_copy(update={"public_share": 0.0, "rounds": 6})
SOVEREIGN = JOINT.model_copy(update={"strategy": "sovereign", "routing": "lean"})
DILOCO = JOINT.model_copy(update={"strategy": "diloco"})
ALL = {s.name for s in MAP.slices}
TRUNK = {s.name for s in MAP.shared() if s.kind is not Kind.ROUTER}


@pytest.fixture
def trainer_at(tmp_path: Path) -> Make:
    def make(home: str, site: SiteId = BERLIN, expert_map: ExpertMap = MAP) -> Trainer:
        text = tmp_path / f"{site}.txt"
        text.write_text("\n\n".join(f"{site} says {i * i} is {i} times {i}" for i in range(200)))
        return Trainer(
            model=MODEL, expert_map=expert_map, site=site, learning=JOINT, public=None, home=tmp_path / home,
            corpus=Corpus.load(text, sequence_length=JOINT.sequence_length),
        )  # fmt: skip

    return make


def train(trainer: Trainer, number: int, base: State, learning: Learning, **more: Any) -> RoundResult:
    return trainer.train_round(round_number=number, base=base, learning=learning, on_step=ignore, **more)


def after(base: State, *results: RoundResult) -> State:
    """Everything moved by what was sent, in the mean."""
    moved = dict(base)
    for name in base:
        deltas = [
            r.trunk_delta.get(name, r.experts[name] - base[name] if name in r.experts else None)
            for r in results
        ]
        sent = [d for d in deltas if d is not None]
        if sent:
            moved[name] = base[name] + np.mean(sent, axis=0, dtype=np.float32)
    return moved


def test_under_sovereign_a_site_trains_its_own_experts_and_rows_alone(trainer_at: Make) -> None:
    base = start()
    result = train(trainer_at("a"), 1, base, SOVEREIGN)
    assert set(result.trunk_delta) == {s.name for s in MAP.shared()} - TRUNK
    assert set(result.experts) == {s.name for s in MAP.owned_by(BERLIN)}
    assert all(not np.array_equal(array, base[name]) for name, array in result.experts.items())
    for name, delta in result.trunk_delta.items():
        mine = [MAP.index(e) for e in MAP.experts_of(BERLIN)]
        assert not np.delete(delta, mine, axis=0).any(), "a stranger's row"
        assert name.endswith("bias") or delta[mine].any()
    assert result.gflop == Exchange(MAP, SOVEREIGN, 1).gflop(3)


def test_under_sovereign_what_a_site_learns_does_not_depend_on_who_else_is_there(trainer_at: Make) -> None:
    base = start()
    alone = ExpertMap.from_owners(MODEL, {ExpertId(e): s for e, s in MAP.owners.items() if s == BERLIN})
    smaller = {
        s.name: base[s.name][: s.shape[0]] if s.kind is Kind.ROUTER else base[s.name] for s in alone.slices
    }
    with_all, by_itself = (
        train(trainer_at("a"), 1, base, SOVEREIGN),
        train(trainer_at("b", expert_map=alone), 1, smaller, SOVEREIGN),
    )
    for name, array in by_itself.experts.items():
        assert np.array_equal(array, with_all.experts[name]), name


def test_under_diloco_a_site_trains_copies_of_all_experts_and_each_round_begins_from_the_base(
    trainer_at: Make,
) -> None:
    base, trainer = start(), trainer_at("a")
    first = train(trainer, 1, base, DILOCO)
    assert set(first.experts) | set(first.trunk_delta) == ALL
    assert all(not np.array_equal(array, base[name]) for name, array in first.experts.items())
    again = train(trainer_at("a"), 2, base, DILOCO)
    kept = train(trainer, 2, after(base, first), DILOCO)
    name = next(iter(first.experts))
    assert np.abs(again.experts[name] - base[name]).max() < np.abs(kept.experts[name] - base[name]).max()


def test_between_strategies_moments_of_what_rests_are_left_alone(trainer_at: Make, tmp_path: Path) -> None:
    base, trainer = start(), trainer_at("a")
    results = [train(trainer, 1, base, DILOCO), train(trainer, 2, base, SOVEREIGN)]
    before, later = (read_arrays(tmp_path / "a" / f"round-{n:06d}.safetensors") for n in (1, 2))
    own = {s.name for s in MAP.owned_by(BERLIN)} | (ALL - TRUNK - {s.name for s in MAP.slices if s.expert})
    for key in (k for k in before if k.startswith(("first/", "second/"))):
        rests = key.partition("/")[2] not in own
        assert np.array_equal(before[key], later[key]) is rests, key
    counts = read_facts(tmp_path / "a" / "round-000002.safetensors")["adam_steps"]
    assert all(3 < counts[n] <= 6 for n in own if n in counts)
    assert all(counts[n] <= 3 for n in counts if n not in own)
    assert results[1].peak_model_bytes < results[0].peak_model_bytes


def test_a_site_that_is_killed_between_strategies_repeats_to_the_same_bytes(trainer_at: Make) -> None:
    base = start()
    plan = (JOINT, DILOCO, SOVEREIGN, JOINT)
    trainers = {site: trainer_at(f"whole-{site}", site) for site in (BERLIN, OSLO)}
    for number, learning in enumerate(plan, start=1):
        results = []
        for site, trainer in trainers.items():
            result = train(trainer, number, base, learning)
            for _ in range(2):  # a process for each round, killed before and after it was written
                assert same(result, train(trainer_at(f"killed-{site}", site), number, base, learning))
            results.append(result)
        base = after(base, *results)


def test_own_experts_come_back_from_copies_as_everybody_left_them(trainer_at: Make) -> None:
    base = start()
    first = [train(trainer_at(site, site), 1, base, DILOCO) for site in (BERLIN, OSLO)]
    base = after(base, *first)
    still = JOINT.model_copy(update={"learning_rate": 1e-12, "weight_decay": 0.0})
    result = train(trainer_at(BERLIN, BERLIN), 2, base, still)
    for name, array in result.experts.items():
        np.testing.assert_allclose(array, base[name], atol=1e-7)
        assert not np.allclose(first[0].experts[name], base[name], atol=1e-4)


def test_a_branch_goes_on_from_what_it_has_not_sent_until_the_last_round_sends_it_all(
    trainer_at: Make,
) -> None:
    base = start()
    branch = JOINT.model_copy(update={"strategy": "branch_mix", "rounds": 3})
    results = []
    for number in (1, 2, 3):
        results.append(train(trainer_at("killed"), number, base, branch))
        assert same(results[-1], train(trainer_at("killed"), number, base, branch))
    whole = JOINT.model_copy(update={"rounds": 1, "inner_steps": 9})
    at_once = train(trainer_at("whole"), 1, base, whole)
    for name, delta in results[-1].trunk_delta.items():
        np.testing.assert_allclose(delta, at_once.trunk_delta[name], atol=2e-5)
    for name, array in results[-1].experts.items():
        np.testing.assert_allclose(array, at_once.experts[name], atol=2e-5)
    assert Exchange(MAP, branch, 2).uplink(BERLIN) == () != Exchange(MAP, branch, 3).uplink(BERLIN)
    for number, learning in (
        (1, branch),
        (2, branch),
        (3, branch.model_copy(update={"strategy": "expert_diloco"})),
    ):
        voted = train(trainer_at("voted"), number, base, learning)
    assert same(voted, results[-1]), "a vote for another strategy takes along what was not sent"


def test_experts_that_are_damped_begin_every_round_as_the_base_has_them(trainer_at: Make) -> None:
    base = start()
    damped = JOINT.model_copy(update={"expert_outer": Outer(learning_rate=0.5)})
    train(trainer_at("a"), 1, base, damped)
    still = damped.model_copy(update={"learning_rate": 1e-12, "weight_decay": 0.0})
    for name, array in train(trainer_at("a"), 2, base, still).experts.items():
        np.testing.assert_allclose(array, base[name], atol=1e-7)


OVERLAP = JOINT.model_copy(update={"routing": "lean", "overlap_steps": 1})


@pytest.mark.parametrize("learning", [SOVEREIGN, JOINT, OVERLAP], ids=["sovereign", "joint", "overlap"])
def test_what_was_left_out_of_a_state_its_owner_does_not_go_on_from(
    trainer_at: Make, learning: Learning
) -> None:
    base = start()
    sent = train(trainer_at("a"), 1, base, learning)
    still = learning.model_copy(update={"learning_rate": 1e-12, "weight_decay": 0.0})
    others = base | {n: base[n] + d / 2 for n, d in sent.trunk_delta.items()}
    for number in (2, 4):  # left out at once; or after a round in quarantine
        for name, array in train(trainer_at("a"), number, others, still).experts.items():
            np.testing.assert_allclose(array, base[name], atol=1e-7)
    other = trainer_at("b")
    train(other, 1, base, learning)
    arrived = train(other, 2, after(base, sent), still)
    for name, array in arrived.experts.items():
        np.testing.assert_allclose(array, sent.experts[name], atol=1e-7)


def test_after_a_vote_on_the_length_of_rounds_no_text_is_read_twice_or_left_out(trainer_at: Make) -> None:
    class Listening(Corpus):
        def batch(self, step: int, *, rows: int, length: int, seed: int) -> Rows:
            read.append(step)
            return super().batch(step, rows=rows, length=length, seed=seed)

    read: list[int] = []
    base, trainer = start(), trainer_at("a")
    trainer._corpus = Listening(**vars(trainer._corpus))  # type: ignore[arg-type]
    warm = JOINT.model_copy(update={"warm": Warm(rounds=1, inner_steps=1)})
    voted = warm.model_copy(update={"inner_steps": 2, "since": Since(run="run-1", round=3, step=4)})
    for number, learning in enumerate((warm, warm, voted, voted), start=1):
        train(trainer, number, base, learning)
    assert read == list(range(8))
