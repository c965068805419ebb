"""The inner step as the charter wants it: Muon beside AdamW, bf16 beside fp32, and text the model cannot read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from commons.experts.map import Kind
from commons.learning import Learning
from commons.names import SiteId
from tests.unit.test_trainer import LEARNING, MAP, MODEL, corpora, ignore, merged, same, start, trainer_at
from workers import trainer as trainers
from workers.data import Corpus, CorpusError
from workers.durable import read_arrays, read_facts
from workers.inner import BETAS, CLIP_NORM, MUON_MOMENTUM, InnerOptimizer, computed_in
from workers.objectives import held_out_loss, next_token_loss
from workers.shard import build_shard, read_state
from workers.trainer import Trainer

__all__ = ["corpora", "trainer_at"]
MUON = LEARNING.model_copy(update={"inner_optimizer": "muon"})
BERLIN = SiteId("berlin")
MATRICES = {
    s.name
    for s in MAP.slices
    if s.kind in (Kind.TRUNK_MATRIX, Kind.EXPERT) and s.name != "model.embed_tokens.weight"
}


def test_muon_moves_the_matrices_inside_and_adamw_the_rest(
    trainer_at: Callable[..., Trainer],
) -> None:
    """Against the textbook loop, written apart from the trainer, with both optimisers by name."""
    shard = build_shard(MODEL, MAP, own=MAP.experts_of(BERLIN), guests=True, state=start())
    named = dict(shard.named_parameters())
    muon = torch.optim.Muon(
        [p for n, p in named.items() if n in MATRICES],
        momentum=MUON_MOMENTUM, adjust_lr_fn="match_rms_adamw", weight_decay=MUON.weight_decay,
    )  # fmt: skip
    rest = {n: p for n, p in named.items() if n not in MATRICES}
    decays = [n for n in rest if n == "model.embed_tokens.weight"]
    assert decays and all(n in decays or "norm" in n or n.endswith("gate.weight") for n in rest)
    adam = torch.optim.AdamW(
        [
            {"params": [rest[n] for n in decays], "weight_decay": MUON.weight_decay},
            {"params": [p for n, p in rest.items() if n not in decays], "weight_decay": 0.0},
        ],
        betas=BETAS,
        fused=True,
    )
    trainer = trainer_at("a", learning=MUON)
    for step in range(MUON.inner_steps):
        rows = trainer._source().batch(
            step, rows=MUON.batch_size, length=MUON.sequence_length, seed=MUON.seed
        )
        muon.zero_grad()
        adam.zero_grad()
        next_token_loss(shard, torch.from_numpy(rows)).backward()
        torch.nn.utils.clip_grad_norm_(named.values(), CLIP_NORM)
        for optimizer in (muon, adam):
            for group in optimizer.param_groups:
                group["lr"] = trainers.inner_rate(step, MUON)
            optimizer.step()
    got = trainer.train_round(round_number=1, base=start(), learning=MUON, on_step=ignore)
    expected = read_state(shard)
    for name, delta in (got.trunk_delta | got.experts).items():
        value = delta if name in got.experts else start()[name] + delta
        assert np.allclose(value, expected[name], atol=1e-6), name


def test_killed_under_muon_and_made_anew_gives_the_same_bits(trainer_at: Callable[..., Trainer]) -> None:
    class Killed(Exception):
        pass

    def die(step: int, loss: float) -> None:
        if step == 2:
            raise Killed

    steady, base = trainer_at("steady", learning=MUON), start()
    other = dict(start())
    for number in (1, 2, 3):
        expected = steady.train_round(round_number=number, base=base, learning=MUON, on_step=ignore)
        with pytest.raises(Killed):
            trainer_at("killed", learning=MUON).train_round(
                round_number=number, base=other, learning=MUON, on_step=die
            )
        got = trainer_at("killed", learning=MUON).train_round(
            round_number=number, base=other, learning=MUON, on_step=ignore
        )
        assert same(got, expected), f"round {number}"
        base, other = merged(base, [expected]), merged(other, [got])


@pytest.mark.parametrize("learning", [LEARNING, MUON], ids=["adamw", "muon"])
def test_an_optimiser_made_anew_goes_on_where_the_old_one_was(learning: Learning) -> None:
    def shard_from(state: dict[str, NDArray[np.float32]]) -> torch.nn.Module:
        return build_shard(MODEL, MAP, own=MAP.experts_of(BERLIN), guests=True, state=state)

    def stepped(optimizer: InnerOptimizer, shard: torch.nn.Module, seed: int) -> None:
        rows = torch.randint(0, 256, (4, 17), generator=torch.Generator().manual_seed(seed))
        optimizer.step(next_token_loss(shard, rows), 0.01)

    steady = shard_from(start())
    optimizer = InnerOptimizer(steady, MAP, learning)
    for seed in (0, 1):
        stepped(optimizer, steady, seed)
    anew = shard_from(read_state(steady))
    successor = InnerOptimizer(anew, MAP, learning)
    successor.restore({n: a.copy() for n, a in optimizer.arrays().items()}, optimizer.steps())
    stepped(optimizer, steady, 2)
    stepped(successor, anew, 2)
    assert all(
        np.array_equal(a, b)
        for a, b in zip(read_state(steady).values(), read_state(anew).values(), strict=True)
    )


def test_momentum_is_on_the_disk_for_what_moved_and_nothing_else(
    trainer_at: Callable[..., Trainer], tmp_path: Path
) -> None:
    trainer_at("a").train_round(round_number=1, base=start(), learning=MUON, on_step=ignore)
    file = tmp_path / "a" / "round-000001.safetensors"
    kept = {n.partition("/")[::2] for n in read_arrays(file)}
    own = {s.name for s in MAP.owned_by(BERLIN)}
    shared = {s.name for s in MAP.shared() if not s.name.endswith("e_score_correction_bias")}
    trained = own | shared
    assert {n for kind, n in kept if kind == "momentum"} == trained & MATRICES
    assert {n for kind, n in kept if kind == "first"} == trained - MATRICES
    assert read_facts(file)["adam_steps"].keys() == trained - MATRICES


def test_a_vote_for_muon_and_back_takes_along_what_both_know(
    trainer_at: Callable[..., Trainer], tmp_path: Path
) -> None:
    trainer, base = trainer_at("a"), start()
    for number, learning in ((1, LEARNING), (2, MUON), (3, LEARNING)):
        result = trainer.train_round(round_number=number, base=base, learning=learning, on_step=ignore)
        base = merged(base, [result])
    steps = read_facts(tmp_path / "a" / "round-000003.safetensors")["adam_steps"]
    assert steps["model.embed_tokens.weight"] == 9
    assert steps["model.layers.0.self_attn.q_proj.weight"] == 3, "its moments began anew"


def test_muon_holds_one_moment_where_adamw_holds_two(trainer_at: Callable[..., Trainer]) -> None:
    shard = build_shard(MODEL, MAP, own=MAP.experts_of(BERLIN), guests=True, state=start())
    sizes = {n: p.nbytes for n, p in shard.named_parameters()}
    inside = sum(size for n, size in sizes.items() if n in MATRICES)
    assert InnerOptimizer(shard, MAP, LEARNING).bytes() == 3 * sum(sizes.values())
    assert InnerOptimizer(shard, MAP, MUON).bytes() == 3 * sum(sizes.values()) - inside


def bf16(learning: Learning = LEARNING) -> Learning:
    return learning.model_copy(update={"precision": "bf16"})


def test_bf16_is_for_gpus_and_only_where_the_charter_wants_it() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert computed_in(LEARNING, cpu) == computed_in(LEARNING, gpu) == "fp32"
    assert computed_in(bf16(), cpu) == "fp32"
    if not torch.cuda.is_available():
        assert computed_in(bf16(), gpu) == "fp32", "no GPU, no bf16"


def test_in_bf16_products_are_rounded_and_all_that_is_kept_is_fp32(
    trainer_at: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, on this processor."""
    plain = trainer_at("a").train_round(round_number=1, base=start(), learning=LEARNING, on_step=ignore)
    monkeypatch.setattr(trainers, "computed_in", lambda learning, device: learning.precision)
    rounded = trainer_at("b").train_round(round_number=1, base=start(), learning=bf16(), on_step=ignore)
    assert (plain.usage.precision, rounded.usage.precision) == ("fp32", "bf16")
    assert rounded.loss != plain.loss and rounded.loss == pytest.approx(plain.loss, rel=2e-3)
    assert all(a.dtype == np.float32 for a in (rounded.trunk_delta | rounded.experts).values())
    again = trainer_at("c").train_round(round_number=1, base=start(), learning=bf16(), on_step=ignore)
    assert same(rounded, again)


def test_the_router_is_never_rounded() -> None:
    shard = build_shard(MODEL, MAP, own=MAP.experts, guests=False, state=start())
    router = shard.model.layers[0].mlp.gate
    hidden = torch.randn(7, 32, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        rounded = router(hidden)
    assert all(torch.equal(a, b) for a, b in zip(rounded, router(hidden), strict=True))


def test_sequences_beyond_the_context_are_refused(trainer_at: Callable[..., Trainer]) -> None:
    long = LEARNING.model_copy(update={"sequence_length": 4097})
    trainer = trainer_at("a")
    trainer._corpus = _numbers(1)
    trainer._public = None
    with pytest.raises(CorpusError, match=r"4097 tokens long and the model's context is 4096"):
        trainer.train_round(round_number=1, base=start(), learning=long, on_step=ignore)


@pytest.mark.parametrize(("token", "named"), [(256, "token 256"), (-1, "token -1")])
def test_tokens_the_model_does_not_know_are_refused(
    trainer_at: Callable[..., Trainer], token: int, named: str
) -> None:
    learning = LEARNING.model_copy(update={"public_share": 0.0})
    trainer = trainer_at("a", learning=learning)
    good = trainer._corpus
    trainer._corpus = _numbers(token)
    with pytest.raises(CorpusError, match=f"{named} and the model's vocabulary is 0 to 255; encode the text"):
        trainer.train_round(round_number=1, base=start(), learning=learning, on_step=ignore)
    shard = build_shard(MODEL, MAP, own=MAP.experts, guests=False, state=start())
    with pytest.raises(CorpusError, match=named):
        held_out_loss(shard, _numbers(token).held_out_rows(length=16, limit=2))
    trainer._corpus = good
    trainer.train_round(round_number=1, base=start(), learning=learning, on_step=ignore)


def _numbers(token: int) -> Corpus:
    """A text of one token, over and over."""
    text = np.full(20_000, token, np.int64)
    return Corpus("numbers", text, text, 2, 1, len(text), "sha256:0")  # type: ignore[arg-type]
