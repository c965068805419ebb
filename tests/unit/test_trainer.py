"""The trainer's promises: only one's own moves, a killed site loses nothing, and apart equals together where it must."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file

from commons.charter import Model
from commons.clock import SystemClock
from commons.experts.map import ExpertMap, Kind
from commons.learning import Learning
from commons.names import ExpertId, SiteId
from hansa import baselines
from workers.data import Corpus
from workers.durable import read_arrays, read_facts, write_durably
from workers.gauge import Gauge
from workers.inner import BETAS, CLIP_NORM
from workers.objectives import next_token_loss
from workers.rounds import RoundResult
from workers.shard import build_shard, initial_state, read_state
from workers.trainer import Trainer, TrainingError, inner_rate

State = dict[str, NDArray[np.float32]]
MODEL = Model(
    family="glm4_moe",
    config={
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "moe_intermediate_size": 16,
        "num_experts_per_tok": 2,
        "tie_word_embeddings": True,
    },
)
OWNERS = {ExpertId(f"e{i}"): SiteId("berlin" if i < 2 else "oslo") for i in range(4)}
MAP = ExpertMap.from_owners(MODEL, OWNERS)
LEARNING = Learning(
    rounds=4,
    inner_steps=3,
    batch_size=4,
    sequence_length=16,
    learning_rate=0.01,
    warmup_steps=2,
    public_share=0.25,
)


def ignore(step: int, loss: float) -> None:
    """Nobody listens."""


@pytest.fixture
def corpora(tmp_path: Path) -> Callable[[str], Corpus]:
    def make(name: str) -> Corpus:
        path = tmp_path / f"{name}.txt"
        path.write_text(
            "\n\n".join(f"{name} says {i * i} times that {name} is number {i}" for i in range(200))
        )
        return Corpus.load(path, sequence_length=LEARNING.sequence_length)

    return make


@pytest.fixture
def trainer_at(tmp_path: Path, corpora: Callable[[str], Corpus]) -> Callable[..., Trainer]:
    def make(
        home: str, site: str = "berlin", learning: Learning = LEARNING, expert_map: ExpertMap = MAP
    ) -> Trainer:
        return Trainer(
            model=MODEL,
            expert_map=expert_map,
            site=SiteId(site),
            learning=learning,
            corpus=corpora(site),
            public=corpora("public"),
            home=tmp_path / home,
        )

    return make


def merged(base: State, results: list[RoundResult]) -> State:
    """Plain averaging of the trunk; experts from their owners."""
    after = dict(base)
    for name in results[0].trunk_delta:
        after[name] = base[name] + np.mean([r.trunk_delta[name] for r in results], axis=0, dtype=np.float32)
    for result in results:
        after |= result.experts
    return after


def same(a: RoundResult, b: RoundResult) -> bool:
    def flat(r: RoundResult) -> dict[str, object]:
        arrays = {f"delta {n}": x.tobytes() for n, x in r.trunk_delta.items()}
        arrays |= {f"expert {n}": x.tobytes() for n, x in r.experts.items()}
        skipped = ("trunk_delta", "experts", "usage")  # time is no promise of the trainer
        return {**arrays, **{k: v for k, v in vars(r).items() if k not in skipped}}

    return flat(a) == flat(b)


def start() -> State:
    return initial_state(MODEL, MAP, seed=3)


@pytest.mark.parametrize("routing", ["joint", "lean"])
def test_a_round_moves_the_trunk_and_ones_own_experts_and_nothing_else(
    trainer_at: Callable[..., Trainer], routing: str
) -> None:
    base = start()
    learning = LEARNING.model_copy(update={"routing": routing})
    before = {name: array.copy() for name, array in base.items()}
    result = trainer_at("a").train_round(round_number=1, base=base, learning=learning, on_step=ignore)
    assert all(np.array_equal(base[name], before[name]) for name in base), "the caller's base was written to"
    assert set(result.experts) == {s.name for s in MAP.owned_by(SiteId("berlin"))}
    assert set(result.trunk_delta) == {s.name for s in MAP.shared()}
    for part in MAP.shared():
        moved = bool(np.any(result.trunk_delta[part.name]))
        assert moved is not part.name.endswith("e_score_correction_bias"), part.name
    assert any(not np.array_equal(a, base[n]) for n, a in result.experts.items())


def test_lean_training_leaves_the_router_rows_of_absent_experts_alone(
    trainer_at: Callable[..., Trainer],
) -> None:
    learning = LEARNING.model_copy(update={"routing": "lean"})
    result = trainer_at("a").train_round(round_number=1, base=start(), learning=learning, on_step=ignore)
    for name in (s.name for s in MAP.slices if s.kind is Kind.ROUTER and len(s.shape) == 2):
        assert not np.any(result.trunk_delta[name][2:]) and np.any(result.trunk_delta[name][:2])


def test_guests_have_no_gradient_and_no_optimiser_state(trainer_at: Callable[..., Trainer]) -> None:
    shard = build_shard(MODEL, MAP, own=MAP.experts_of(SiteId("berlin")), guests=True, state=start())
    guests = {s.name for s in MAP.owned_by(SiteId("oslo"))}
    assert not guests & set(dict(shard.named_parameters()))
    assert guests <= set(dict(shard.named_buffers()))
    assert not any(dict(shard.named_buffers())[name].requires_grad for name in guests)


def test_a_guest_that_moves_is_noticed(trainer_at: Callable[..., Trainer]) -> None:
    trainer = trainer_at("a")

    def meddle(step: int, loss: float) -> None:
        assert trainer._shard is not None
        with torch.no_grad():
            dict(trainer._shard.named_buffers())["model.layers.0.mlp.experts.3.up_proj.weight"][0, 0] += 1e-6

    with pytest.raises(AssertionError, match=r"berlin moved .*experts\.3\.up_proj"):
        trainer.train_round(round_number=1, base=start(), learning=LEARNING, on_step=meddle)


def test_killed_and_made_anew_gives_the_same_bits(trainer_at: Callable[..., Trainer]) -> None:

    class Killed(Exception):
        pass

    def die(step: int, loss: float) -> None:
        if step == 2:
            raise Killed

    steady, base = trainer_at("steady"), start()
    other = dict(start())
    for number in (1, 2, 3):
        expected = steady.train_round(round_number=number, base=base, learning=LEARNING, on_step=ignore)
        victim = trainer_at("killed")
        with pytest.raises(Killed):
            victim.train_round(round_number=number, base=other, learning=LEARNING, on_step=die)
        survivor = victim if number == 2 else trainer_at("killed")
        got = survivor.train_round(round_number=number, base=other, learning=LEARNING, on_step=ignore)
        assert same(got, expected), f"round {number}"
        base, other = merged(base, [expected]), merged(other, [got])


def test_asked_again_a_finished_round_is_answered_without_training(
    trainer_at: Callable[..., Trainer],
) -> None:
    base = start()
    first = trainer_at("a").train_round(round_number=1, base=base, learning=LEARNING, on_step=ignore)

    def never(step: int, loss: float) -> None:
        raise AssertionError("it trained again")

    again = trainer_at("a").train_round(round_number=1, base=base, learning=LEARNING, on_step=never)
    assert same(first, again) and again.usage == first.usage, "it has the usage of the time it was trained"


@pytest.mark.parametrize("fresh", [False, True])
def test_experts_that_leave_under_noise_start_from_the_base_and_all_others_from_where_they_were(
    trainer_at: Callable[..., Trainer], fresh: bool
) -> None:
    base = start()
    first = trainer_at("a").train_round(round_number=1, base=base, learning=LEARNING, on_step=ignore)
    noised = {n: a + np.float32(0.25) for n, a in first.experts.items()}
    arrived, moved = merged(base, [first]) | noised, {}
    for experts in ("kept", "base"):
        trainer = trainer_at(experts)
        trainer.train_round(round_number=1, base=base, learning=LEARNING, on_step=ignore, experts=experts)
        trainer = trainer_at(experts) if fresh else trainer
        second = trainer.train_round(
            round_number=2, base=arrived, learning=LEARNING, on_step=ignore, experts=experts
        )
        moved[experts] = {n: float(np.mean(a - first.experts[n])) for n, a in second.experts.items()}
    for name in noised:
        assert abs(moved["kept"][name]) < 0.05, "the noise never reached it"
        assert abs(moved["base"][name] - 0.25) < 0.05, "it is here what it is for all others"


def stop_after(last: int) -> Callable[[int, float], bool]:
    return lambda step, loss: step == last


def test_a_round_cut_short_is_the_beginning_of_the_whole_one(trainer_at: Callable[..., Trainer]) -> None:
    base, one = start(), LEARNING.model_copy(update={"inner_steps": 1, "rounds": 12})
    short = trainer_at("a").train_round(round_number=1, base=base, learning=LEARNING, on_step=stop_after(1))
    alone = trainer_at("b").train_round(round_number=1, base=base, learning=one, on_step=ignore)
    assert same(short, alone)
    assert (short.steps, short.tokens, short.gflop) == (1, 4 * 16, MAP.training_gflop(4 * 16))


def test_a_round_cut_short_is_final_once_it_is_on_disk(trainer_at: Callable[..., Trainer]) -> None:
    """Killed before, it starts over; after, a successor that has more money gives the same bytes."""

    class Killed(Exception):
        pass

    def die(step: int, loss: float) -> None:
        raise Killed

    base = start()
    short = trainer_at("steady").train_round(
        round_number=1, base=base, learning=LEARNING, on_step=stop_after(2)
    )
    with pytest.raises(Killed):
        trainer_at("a").train_round(round_number=1, base=base, learning=LEARNING, on_step=die)
    again = trainer_at("a").train_round(round_number=1, base=base, learning=LEARNING, on_step=stop_after(2))
    assert same(again, short)
    asked = trainer_at("a").train_round(round_number=1, base=base, learning=LEARNING, on_step=ignore)
    assert same(asked, short) and asked.usage == again.usage


def test_a_round_finished_before_rounds_were_measured_is_trained_again(
    trainer_at: Callable[..., Trainer], tmp_path: Path
) -> None:
    base, file = start(), tmp_path / "a" / "round-000001.safetensors"
    first = trainer_at("a").train_round(round_number=1, base=base, learning=LEARNING, on_step=ignore)
    facts = read_facts(file)
    del facts["result"]["usage"]
    write_durably(file, read_arrays(file), facts)
    again = trainer_at("a").train_round(round_number=1, base=base, learning=LEARNING, on_step=ignore)
    assert same(again, first) and again.usage.started_ms >= first.usage.ended_ms


def test_the_round_after_a_short_one_does_not_depend_on_restarts(trainer_at: Callable[..., Trainer]) -> None:
    base, seen = start(), list[RoundResult]()
    for home, fresh in (("steady", False), ("restarted", True)):
        trainer = trainer_at(home)
        first = trainer.train_round(round_number=1, base=base, learning=LEARNING, on_step=stop_after(2))
        trainer = trainer_at(home) if fresh else trainer
        after = merged(base, [first])
        seen.append(trainer.train_round(round_number=2, base=after, learning=LEARNING, on_step=ignore))
    assert same(*seen) and seen[0].steps == 3


def test_a_round_is_measured_by_the_gauge_it_is_given(trainer_at: Callable[..., Trainer]) -> None:
    gauge = Gauge(SystemClock(), "cpu/acme/berlin", not_before_ms=10**15)
    result = trainer_at("a").train_round(
        round_number=1, base=start(), learning=LEARNING, on_step=ignore, gauge=gauge
    )
    usage = result.usage
    assert (usage.device_ids, usage.precision, usage.started_ms) == (("cpu/acme/berlin",), "fp32", 10**15)
    assert usage.ended_ms - usage.started_ms == usage.device_ms > 0


def test_a_finished_round_asked_from_another_base_is_trained_from_the_round_before(
    trainer_at: Callable[..., Trainer],
) -> None:
    steady, moved, base = trainer_at("steady"), trainer_at("moved"), start()
    for trainer in (steady, moved):
        first = trainer.train_round(round_number=1, base=base, learning=LEARNING, on_step=ignore)
    base = merged(base, [first])
    nudged = {n: a * np.float32(1.01) for n, a in base.items()}
    moved.train_round(round_number=2, base=nudged, learning=LEARNING, on_step=ignore)
    got = moved.train_round(round_number=2, base=base, learning=LEARNING, on_step=ignore)
    assert same(got, steady.train_round(round_number=2, base=base, learning=LEARNING, on_step=ignore))


def test_a_torn_file_is_never_read(trainer_at: Callable[..., Trainer], tmp_path: Path) -> None:
    expected = trainer_at("a").train_round(round_number=1, base=start(), learning=LEARNING, on_step=ignore)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / ".round-000001.safetensors.17.part").write_bytes(b"half a file")
    got = trainer_at("b").train_round(round_number=1, base=start(), learning=LEARNING, on_step=ignore)
    assert same(got, expected)


def test_only_two_rounds_stay_on_disk(trainer_at: Callable[..., Trainer], tmp_path: Path) -> None:
    trainer, base = trainer_at("a"), start()
    for number in (1, 2, 3, 4):
        result = trainer.train_round(round_number=number, base=base, learning=LEARNING, on_step=ignore)
        base = merged(base, [result])
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == [
        f"round-00000{i}.safetensors" for i in (3, 4)
    ]


def test_one_site_in_rounds_equals_plain_training(trainer_at: Callable[..., Trainer]) -> None:
    """One owner of everything, averaged with nobody: the federation must vanish."""
    alone = ExpertMap.from_owners(MODEL, dict.fromkeys(OWNERS, SiteId("berlin")))
    learning = LEARNING.model_copy(update={"public_share": 0.0})
    trainer, base = trainer_at("a", expert_map=alone, learning=learning), start()
    for number in range(1, learning.rounds + 1):
        result = trainer.train_round(round_number=number, base=base, learning=learning, on_step=ignore)
        base = merged(base, [result])
    plain = plain_training(trainer_at("b")._corpus, learning, alone)
    for name, array in plain.items():
        assert np.allclose(base[name], array, atol=2e-6), name


def plain_training(corpus: object, learning: Learning, expert_map: ExpertMap) -> State:
    """The textbook loop, written apart from the trainer."""
    assert isinstance(corpus, Corpus)
    shard = build_shard(MODEL, expert_map, own=expert_map.experts, guests=False, state=start())
    matrices = {s.name for s in expert_map.slices if s.kind in (Kind.TRUNK_MATRIX, Kind.EXPERT)}
    named = dict(shard.named_parameters())
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for n, p in named.items() if n in matrices], "weight_decay": learning.weight_decay},
            {"params": [p for n, p in named.items() if n not in matrices], "weight_decay": 0.0},
        ],
        betas=BETAS,
    )
    for step in range(learning.rounds * learning.inner_steps):
        for group in optimizer.param_groups:
            group["lr"] = inner_rate(step, learning)
        rows = corpus.batch(
            step, rows=learning.batch_size, length=learning.sequence_length, seed=learning.seed
        )
        optimizer.zero_grad()
        next_token_loss(shard, torch.from_numpy(rows)).backward()
        torch.nn.utils.clip_grad_norm_(named.values(), CLIP_NORM)
        optimizer.step()
    return read_state(shard)


def test_own_experts_continue_from_the_site_not_from_the_base(trainer_at: Callable[..., Trainer]) -> None:
    """A lossy codec on the way up must not come back down to the owner."""
    trainer, base = trainer_at("a"), start()
    first = trainer.train_round(round_number=1, base=base, learning=LEARNING, on_step=ignore)
    exact = merged(base, [first])
    lossy = {n: a + np.float32(0.5) if n in first.experts else a for n, a in exact.items()}
    from_lossy = trainer.train_round(round_number=2, base=lossy, learning=LEARNING, on_step=ignore)
    other = trainer_at("b")
    other.train_round(round_number=1, base=base, learning=LEARNING, on_step=ignore)
    from_exact = other.train_round(round_number=2, base=exact, learning=LEARNING, on_step=ignore)
    assert all(np.array_equal(from_lossy.experts[n], from_exact.experts[n]) for n in first.experts)
    assert from_lossy.held_out_loss != from_exact.held_out_loss, "the base itself is what is evaluated"


def test_routing_may_change_between_rounds(trainer_at: Callable[..., Trainer]) -> None:
    lean = LEARNING.model_copy(update={"routing": "lean"})
    base = start()
    trainer, fresh = trainer_at("a"), trainer_at("b")
    for t in (trainer, fresh):
        first = t.train_round(round_number=1, base=base, learning=LEARNING, on_step=ignore)
    base = merged(base, [first])
    got = trainer.train_round(round_number=2, base=base, learning=lean, on_step=ignore)
    assert same(got, trainer_at("b").train_round(round_number=2, base=base, learning=lean, on_step=ignore))
    assert [layer[2:] for layer in got.routed] == [(0, 0)] * 2
    assert got.peak_model_bytes < first.peak_model_bytes


def test_what_a_round_reports_adds_up(trainer_at: Callable[..., Trainer]) -> None:
    seen: list[tuple[int, float]] = []
    result = trainer_at("a").train_round(
        round_number=1, base=start(), learning=LEARNING, on_step=lambda step, loss: seen.append((step, loss))
    )
    assert [step for step, _ in seen] == [1, 2, 3] and result.steps == 3
    assert result.loss == pytest.approx(float(np.mean([loss for _, loss in seen])))
    assert result.tokens == 3 * 4 * 16
    assert [sum(layer) for layer in result.routed] == [result.tokens * 2] * 2, "two experts a token"
    assert result.gflop == MAP.training_gflop(result.tokens) >= 1
    assert result.held_out_loss == pytest.approx(
        trainer_at("b").evaluate(start(), trainer_at("b")._corpus, limit=32), abs=1e-6
    )


def test_two_sites_learn_together(trainer_at: Callable[..., Trainer]) -> None:
    learning = LEARNING.model_copy(update={"rounds": 8, "inner_steps": 6})
    sites = {name: trainer_at(name, site=name, learning=learning) for name in ("berlin", "oslo")}
    base, losses = start(), []
    for number in range(1, learning.rounds + 1):
        results = [
            t.train_round(round_number=number, base=base, learning=learning, on_step=ignore)
            for t in sites.values()
        ]
        losses.append(np.mean([r.held_out_loss for r in results]))
        base = merged(base, results)
    assert losses[-1] < 0.75 * losses[0]


def test_a_loss_that_is_not_finite_ends_the_round_and_leaves_no_file(
    trainer_at: Callable[..., Trainer], tmp_path: Path
) -> None:
    base = start() | {"model.norm.weight": np.full(32, np.nan, np.float32)}
    with pytest.raises(TrainingError, match="site berlin: the loss is nan at inner step 1 of round 1"):
        trainer_at("a").train_round(round_number=1, base=base, learning=LEARNING, on_step=ignore)
    assert not list((tmp_path / "a").glob("*"))


def test_a_missing_public_text_or_tensor_is_refused_by_name(
    trainer_at: Callable[..., Trainer], corpora: Callable[[str], Corpus], tmp_path: Path
) -> None:
    with pytest.raises(TrainingError, match="site berlin was given none"):
        Trainer(
            model=MODEL, expert_map=MAP, site=SiteId("berlin"), learning=LEARNING, corpus=corpora("berlin"),
            public=None, home=tmp_path,
        )  # fmt: skip
    trainer, base = trainer_at("a"), start()
    trainer.train_round(round_number=1, base=base, learning=LEARNING, on_step=ignore)
    del base["model.layers.1.mlp.experts.3.up_proj.weight"]
    with pytest.raises(KeyError, match=r"experts\.3\.up_proj"):
        trainer.train_round(round_number=2, base=base, learning=LEARNING, on_step=ignore)


def test_the_rate_warms_up_and_ends_at_its_floor() -> None:
    rates = [inner_rate(step, LEARNING) for step in range(12)]
    assert rates[0] == pytest.approx(0.005) and rates[1] == rates[2] == pytest.approx(0.01)
    assert all(a >= b for a, b in pairwise(rates[1:]))
    assert inner_rate(12, LEARNING) == pytest.approx(0.001) == inner_rate(99, LEARNING)


def test_baselines_run_as_planned_and_central_beats_a_partner_alone(
    tmp_path: Path, corpora: Callable[[str], Corpus]
) -> None:
    for name in ("berlin", "oslo", "public"):
        corpora(name)
    losses: dict[str, dict[str, float]] = {}
    for what in ("seed", "alone", "central"):
        plan = baselines.Plan(
            what=what,
            model=MODEL,
            learning=LEARNING.model_copy(update={"rounds": 10, "inner_steps": 8}),
            phase=baselines.SeedPhase(steps=10, batch_size=4),
            owners={str(e): str(s) for e, s in OWNERS.items()},
            texts={name: str(tmp_path / f"{name}.txt") for name in ("berlin", "oslo")},
            alone="berlin" if what == "alone" else None,
            public=str(tmp_path / "public.txt"),
            seed_file=str(tmp_path / "seed.safetensors"),
            result=str(tmp_path / f"{what}.json"),
            home=str(tmp_path / "homes" / what),
        )
        losses[what] = baselines.run_plan(plan, ignore)
        assert json.loads((tmp_path / f"{what}.json").read_text())["losses"] == losses[what]
    assert losses["central"]["oslo"] < losses["alone"]["oslo"] < losses["seed"]["oslo"]
    assert set(load_file(tmp_path / "seed.safetensors")) == {s.name for s in MAP.slices}
