"""Routed experts: equal to Hugging Face's own loop in every family, and idle experts cost nothing."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.numpy import save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from commons.experts.glm4_moe import GLM4_MOE
from hansa.released import load_plain, released_losses
from tests.unit.test_trainer import MAP, MODEL
from workers import routed
from workers.data import Corpus
from workers.objectives import held_out_loss
from workers.routed import IMPLEMENTATION, combine, compute_routed_only, dispatch, products, routes, total
from workers.shard import build_shard, initial_state

EXPERTS = 6
WIDTHS: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 24,
    "moe_intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
    "num_local_experts": EXPERTS,
    "head_dim": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED: dict[str, Any] = {
    "n_routed_experts": EXPERTS, "n_shared_experts": 1, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1,
}  # fmt: skip
LATENT: dict[str, Any] = {
    "kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16, "head_dim": 8,
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "glm4_moe": GROUPED,
    "deepseek_v3": GROUPED | LATENT,
    "qwen3_moe": {"num_experts": EXPERTS, "norm_topk_prob": True},
    "qwen2_moe": {"num_experts": EXPERTS, "shared_expert_intermediate_size": 24},
    "mixtral": {},
    "olmoe": {"num_experts": EXPERTS},
    "flex_olmo": {"num_experts": EXPERTS},
    "gpt_oss": {"sliding_window": 16},
    "llama4_text": {"intermediate_size_mlp": 48, "num_experts_per_tok": 1},
    "llama4_text, top 2": {"intermediate_size_mlp": 48, "num_experts_per_tok": 2},
}


def model_of(family: str) -> Any:
    torch.manual_seed(0)
    settings = WIDTHS | FAMILIES[family]
    config = AutoConfig.for_model(family.partition(",")[0], **settings)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    return model


def loss_and_gradients(model: Any, tokens: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    model.zero_grad()
    out = model(input_ids=tokens, labels=tokens, use_cache=False)
    out.loss.backward()
    return out.logits, out.loss, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_computes_what_hugging_face_computes(family: str) -> None:
    eager = model_of(family)
    ours = copy.deepcopy(eager)
    if not family.startswith("llama4"):
        eager.set_experts_implementation("eager")
    compute_routed_only(ours)
    tokens = torch.randint(3, 64, (3, 17), generator=torch.Generator().manual_seed(1))
    expected, got = loss_and_gradients(eager, tokens), loss_and_gradients(ours, tokens)
    assert torch.allclose(got[0], expected[0], atol=1e-5 * float(expected[0].detach().abs().max()))
    assert got[1].item() == pytest.approx(expected[1].item(), rel=1e-6)
    assert got[2].keys() == expected[2].keys()
    for name, gradient in expected[2].items():
        largest = max(1.0, float(gradient.abs().max()))
        assert torch.allclose(got[2][name], gradient, atol=1e-5 * largest), name
    assert ours.state_dict().keys() == eager.state_dict().keys()


def test_it_is_really_our_function_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(routed, "products", lambda *a, **k: calls.append(1) or products(*a, **k))
    for family in ("glm4_moe", "gpt_oss"):
        model = model_of(family)
        compute_routed_only(model)
        calls.clear()
        model(input_ids=torch.zeros(1, 4, dtype=torch.long))
        assert len(calls) == 2 * sum(
            "experts" in n for n, m in model.named_modules() if hasattr(m, "is_transposed")
        )


def test_a_release_is_measured_with_routed_tokens_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = initial_state(MODEL, MAP, seed=3)
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(GLM4_MOE.hf_config(MODEL.config, len(MAP.experts))))
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"{i} squared is {i * i}" for i in range(200)))
    calls: list[int] = []
    monkeypatch.setattr(routed, "products", lambda *a, **k: calls.append(1) or products(*a, **k))
    losses = released_losses(load_plain(tmp_path), {"numbers": text}, length=16, limit=8)
    assert len(calls) == 2 * 2, "two layers, two products each"
    shard = build_shard(MODEL, MAP, own=MAP.experts, guests=False, state=state)
    rows = Corpus.load(text, sequence_length=16, name="numbers").held_out_rows(length=16, limit=8)
    assert losses == {"numbers": pytest.approx(held_out_loss(shard, rows), abs=1e-6)}


def test_a_dense_model_stays_as_it_is() -> None:
    config = AutoConfig.for_model("llama", **WIDTHS)
    model = AutoModelForCausalLM.from_config(config)
    compute_routed_only(model)
    assert model.config._experts_implementation != IMPLEMENTATION


def test_an_idle_expert_costs_no_product_and_has_no_gradient() -> None:
    rows, counts = torch.randn(5, 4), [2, 0, 3]
    apart = [torch.randn(3, 4, requires_grad=True) for _ in counts]
    products(rows, apart, counts).sum().backward()
    assert apart[1].grad is None and apart[0].grad is not None and apart[2].grad is not None
    fused = torch.full((3, 3, 4), float("nan"))
    fused[0], fused[2] = apart[0].detach(), apart[2].detach()
    fused.requires_grad_()
    out = products(rows, fused, counts)
    out.sum().backward()
    assert torch.isfinite(out).all(), "the idle expert's weights were multiplied"
    assert fused.grad is not None and not fused.grad[1].any()
    assert torch.equal(fused.grad[0], apart[0].grad)


def swiglus(counts: list[int], frozen: set[int]) -> list[list[Tensor]]:
    draw = torch.Generator().manual_seed(3)
    shapes = ((6, 4), (6, 4), (4, 6))
    return [
        [torch.randn(*s, generator=draw).requires_grad_(e not in frozen) for e in range(len(counts))]
        for s in shapes
    ]


def test_a_swiglu_has_the_bits_of_plain_autograd_over_one_expert_after_the_other() -> None:
    counts, frozen = [3, 0, 5, 1], {2}
    rows, wanted = torch.randn(9, 4), torch.randn(9, 4)
    found: list[list[Tensor | None]] = []
    for ours in (True, False):
        gate, up, down = swiglus(counts, frozen)
        given = rows.clone().requires_grad_()
        if ours:
            out = routed.swiglu(given, counts, gate=gate, up=up, down=down)
        else:
            parts = [
                F.linear(F.silu(F.linear(r, g)) * F.linear(r, u), d)
                for r, g, u, d in zip(given.split(counts), gate, up, down, strict=True)
                if len(r)
            ]
            out = torch.cat(parts)
        out.backward(wanted)
        found.append([out, given.grad, *(w.grad for w in (*gate, *up, *down))])
    for got, expected in zip(*found, strict=True):
        assert (got is None and expected is None) or torch.equal(got, expected)
    assert sum(g is None for g in found[0]) == 3 * 2, "neither the frozen nor the idle expert has gradients"


def test_gradients_of_a_swiglu_are_those_of_finite_differences() -> None:
    counts = [2, 0, 3]
    weights = [[w.detach().double().requires_grad_() for w in kind] for kind in swiglus(counts, set())]

    def whole(rows: Tensor, *_: Tensor) -> Tensor:
        gate, up, down = weights
        return routed.swiglu(rows, counts, gate=gate, up=up, down=down)

    rows = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(whole, (rows, *(kind[e] for kind in weights for e in (0, 2))))


def test_frozen_experts_pass_gradients_on_and_take_none() -> None:
    rows = torch.randn(5, 4, requires_grad=True)
    own, guest = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4)
    products(rows, [own, guest], [2, 3]).sum().backward()
    assert guest.grad is None and rows.grad is not None
    assert torch.allclose(rows.grad[2:], guest.sum(0).expand(3, 4))


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("transposed", [False, True])
def test_gradients_are_those_of_finite_differences(k: int, transposed: bool) -> None:
    draw = torch.Generator().manual_seed(k)
    chosen = torch.stack([torch.randperm(4, generator=draw)[:k] for _ in range(5)])
    where = routes(chosen, 5)
    counts = where.counts.tolist()

    def numbers(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=draw).requires_grad_()

    def whole(hidden: Tensor, gates: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        done = products(dispatch(hidden, where), weight, counts, transposed=transposed)
        return combine(done, where, gates), total(done, where, k)

    weight = numbers(5, 3, 2) if transposed else numbers(5, 2, 3)
    assert torch.autograd.gradcheck(whole, (numbers(5, 3), numbers(5, k), weight))


def test_a_grouped_product_gives_what_the_loop_gives() -> None:
    """The call that a GPU makes, on this processor: segments, offsets and layouts are the same there."""
    rows, weight, counts = torch.randn(9, 8), torch.randn(4, 16, 8), torch.tensor([2, 0, 3, 4])
    offsets = counts.cumsum(0, dtype=torch.int32)
    expected = products(rows, weight, counts.tolist())
    got = routed.grouped(rows, weight.transpose(1, 2), offsets)
    assert torch.allclose(got, expected, atol=1e-6)
    assert torch.allclose(
        routed.grouped(rows, weight.transpose(1, 2).contiguous(), offsets), expected, atol=1e-6
    )


def test_under_autocast_products_are_in_its_precision_and_weights_keep_theirs() -> None:
    rows, weight = torch.randn(4, 8), torch.randn(2, 8, 8, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        out = products(rows, weight, [1, 3])
    assert out.dtype is torch.bfloat16
    out.float().sum().backward()
    assert weight.grad is not None and weight.grad.dtype is torch.float32


def test_no_tokens_are_no_trouble() -> None:
    where = routes(torch.zeros(0, 2, dtype=torch.long), 3)
    rows = products(dispatch(torch.zeros(0, 4), where), torch.randn(3, 4, 4), where.counts.tolist())
    assert combine(rows, where, torch.zeros(0, 2)).shape == (0, 4)
