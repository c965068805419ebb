"""The expert map is arithmetic; these tests hold it against what Hugging Face really builds, saves and loads."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, Glm4MoeConfig, Glm4MoeForCausalLM

from commons.charter import Model
from commons.experts.families import FAMILIES
from commons.experts.map import ExpertMap, Kind
from commons.experts.settings import Value
from commons.experts.tokenizer import write_tokenizer
from commons.names import ExpertId, SiteId
from workers.shard import build_shard, initial_state, load_state, read_state, resident_bytes

SMALL: dict[str, Value] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "moe_intermediate_size": 24,
    "num_experts_per_tok": 2,
}
VARIANTS = {
    "plain": SMALL,
    "tied": SMALL | {"tie_word_embeddings": True},
    "dense first layer": SMALL | {"first_k_dense_replace": 1, "intermediate_size": 48},
    "grouped heads, biases, norms": SMALL
    | {
        "num_key_value_heads": 1,
        "attention_bias": True,
        "use_qk_norm": True,
        "head_dim": 8,
        "n_shared_experts": 2,
    },
    "gates as they are": SMALL | {"norm_topk_prob": False, "routed_scaling_factor": 2.5},
}


def model_of(config: dict[str, Value]) -> Model:
    return Model(family="glm4_moe", config=config)


def hf_config(model: Model, experts: int) -> dict[str, object]:
    return FAMILIES[model.family].hf_config(model.config, experts)


def map_of(model: Model, experts: int = 4) -> ExpertMap:
    return ExpertMap.from_owners(model, {ExpertId(f"e{i}"): SiteId(f"site{i // 2}") for i in range(experts)})


def random_state(model: Model, expert_map: ExpertMap) -> dict[str, np.ndarray]:
    """Weights wide enough that every part matters, with selection biases that change choices."""
    draw = np.random.default_rng(5)
    return {
        name: (array + 0.3 * draw.standard_normal(array.shape)).astype(np.float32)
        for name, array in initial_state(model, expert_map, seed=1).items()
    }


def logits(model: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        out: torch.Tensor = model.eval()(input_ids=tokens, use_cache=False).logits
    return out


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS.keys())
def test_the_map_names_exactly_what_hugging_face_saves(config: dict[str, Value], tmp_path: Path) -> None:
    model = model_of(config)
    Glm4MoeForCausalLM(Glm4MoeConfig(**hf_config(model, 4))).save_pretrained(tmp_path)
    saved = {name: array.shape for name, array in load_file(tmp_path / "model.safetensors").items()}
    expert_map = map_of(model)
    assert {s.name: s.shape for s in expert_map.slices} == saved
    assert [s.name for s in expert_map.slices] == sorted(saved)
    assert expert_map.parameters().total == sum(int(np.prod(shape)) for shape in saved.values())


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS.keys())
def test_a_written_state_loads_in_hugging_face_with_equal_logits(
    config: dict[str, Value], tmp_path: Path
) -> None:
    model = model_of(config)
    expert_map = map_of(model)
    state = random_state(model, expert_map)
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(hf_config(model, 4)))
    released, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    shard = build_shard(model, expert_map, own=expert_map.experts[:2], guests=True, state=state)
    tokens = torch.randint(0, 256, (3, 40), generator=torch.Generator().manual_seed(0))
    assert torch.allclose(logits(released, tokens), logits(shard, tokens), atol=1e-5, rtol=0)


def test_gradients_equal_those_of_the_hugging_face_model(tmp_path: Path) -> None:
    model = model_of(SMALL)
    expert_map = map_of(model)
    state = random_state(model, expert_map)
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(hf_config(model, 4)))
    released = AutoModelForCausalLM.from_pretrained(tmp_path)
    shard = build_shard(model, expert_map, own=expert_map.experts, guests=False, state=state)
    tokens = torch.randint(0, 256, (3, 40), generator=torch.Generator().manual_seed(0))
    for each in (released, shard):
        each(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()
    reference = dict(released.named_parameters())
    for name, parameter in shard.named_parameters():
        if ".experts." in name:
            prefix, _, index, part, _ = name.rsplit(".", 4)
            fused = reference[
                f"{prefix}.experts.{'down_proj' if part == 'down_proj' else 'gate_up_proj'}"
            ].grad
            expected = fused[int(index)]
            if part != "down_proj":
                expected = expected.chunk(2)[part == "up_proj"]
        else:
            expected = reference[name].grad
        got = torch.zeros_like(expected) if parameter.grad is None else parameter.grad
        assert torch.allclose(got, expected, atol=1e-5), name


def test_lean_equals_the_full_model_with_the_absent_experts_ruled_out() -> None:
    model = model_of(SMALL)
    expert_map = map_of(model)
    state = random_state(model, expert_map)
    lean = build_shard(model, expert_map, own=expert_map.experts[2:], guests=False, state=state)
    ruled_out = dict(state)
    for name in state:
        if name.endswith("e_score_correction_bias"):
            ruled_out[name] = state[name] + np.float32([-1e4, -1e4, 0, 0])
    full = build_shard(model, expert_map, own=expert_map.experts, guests=False, state=ruled_out)
    tokens = torch.randint(0, 256, (3, 40), generator=torch.Generator().manual_seed(0))
    assert torch.allclose(logits(lean, tokens), logits(full, tokens), atol=1e-5, rtol=0)
    kept = read_state(lean)
    assert all(np.array_equal(kept[name], state[name]) for name in kept), (
        "the mask leaks into what is exported"
    )
    assert {s.name for s in expert_map.uplink(SiteId("site1"))} == set(kept)


def test_lean_with_fewer_experts_than_a_token_wants_uses_those_it_has() -> None:
    model = model_of(SMALL)
    expert_map = map_of(model)
    state = random_state(model, expert_map)
    one = build_shard(model, expert_map, own=expert_map.experts[:1], guests=False, state=state)
    assert torch.isfinite(logits(one, torch.zeros(1, 4, dtype=torch.long))).all()


def test_a_lean_shard_is_really_smaller() -> None:
    model = model_of(SMALL)
    expert_map = map_of(model, 16)
    state = initial_state(model, expert_map, seed=0)
    lean = build_shard(model, expert_map, own=expert_map.experts[:1], guests=False, state=state)
    counts = expert_map.parameters()
    spare = 4 * 2 * (16 + 16)  # masks and rotary tables
    assert resident_bytes(lean) <= 4 * (counts.trunk + counts.expert) + spare


def test_state_goes_in_and_comes_out_bit_for_bit_and_in_place() -> None:
    model = model_of(SMALL | {"tie_word_embeddings": True})
    expert_map = map_of(model)
    shard = build_shard(
        model,
        expert_map,
        own=expert_map.experts[:2],
        guests=True,
        state=initial_state(model, expert_map, seed=0),
    )
    places = {name: p.data_ptr() for name, p in shard.named_parameters()}
    state = random_state(model, expert_map)
    load_state(shard, state)
    out = read_state(shard)
    assert out.keys() == state.keys()
    assert all(np.array_equal(out[name], state[name]) for name in state)
    assert places == {name: p.data_ptr() for name, p in shard.named_parameters()}


def test_a_state_that_lacks_a_tensor_is_refused_by_name() -> None:
    model = model_of(SMALL)
    expert_map = map_of(model)
    state = initial_state(model, expert_map, seed=0)
    del state["model.norm.weight"]
    with pytest.raises(KeyError, match=r"model\.norm\.weight"):
        build_shard(model, expert_map, own=expert_map.experts, guests=False, state=state)


def test_every_slice_is_shared_or_owned_by_exactly_one_site() -> None:
    expert_map = map_of(model_of(SMALL))
    parts = [s.name for s in expert_map.shared()]
    for site in ("site0", "site1"):
        own = expert_map.owned_by(SiteId(site))
        parts += [s.name for s in own]
        assert {s.expert for s in own} == set(expert_map.experts_of(SiteId(site)))
        assert [s.name for s in expert_map.uplink(SiteId(site))] == sorted(
            [s.name for s in own] + [s.name for s in expert_map.shared()]
        )
    assert sorted(parts) == [s.name for s in expert_map.slices]
    assert not expert_map.owned_by(SiteId("stranger"))
    owned = {Kind.EXPERT, Kind.READER, Kind.OWN, Kind.SEED}
    assert {s.kind for s in expert_map.shared()} == set(Kind) - owned


def test_the_digest_follows_model_experts_and_owners() -> None:
    model = model_of(SMALL)
    owners = {ExpertId("a"): SiteId("x"), ExpertId("b"): SiteId("y")}
    digests = {
        ExpertMap.from_owners(m, o).digest
        for m, o in (
            (model, owners),
            (model, {**owners, ExpertId("b"): SiteId("x")}),
            (model, dict(reversed(owners.items()))),
            (model_of(SMALL | {"moe_intermediate_size": 16}), owners),
        )
    }
    assert len(digests) == 4
    assert ExpertMap.from_owners(model, dict(owners)).digest in digests


def test_compute_is_counted_per_active_parameter_and_rounded_up() -> None:
    expert_map = map_of(model_of(SMALL))
    counts = expert_map.parameters()
    assert counts.active == counts.trunk + 2 * counts.expert - 256 * 32
    assert expert_map.training_gflop(0) == 0
    assert expert_map.training_gflop(1) == 1
    assert expert_map.training_gflop(10**9) == 6 * counts.active


BAD = {
    "hidden_sizes": ({"hidden_sizes": 32}, "hidden_sizes"),
    "experts are not set": ({"n_routed_experts": 8}, "n_routed_experts"),
    "no vocabulary": ({"vocab_size": 0}, "vocab_size"),
    "text for a number": ({"hidden_size": "32"}, "hidden_size"),
    "true for a number": ({"hidden_size": True}, "hidden_size"),
    "zero layers": ({"num_hidden_layers": 0}, "num_hidden_layers"),
    "huge": ({"hidden_size": 1 << 21}, "hidden_size"),
    "negative rate": ({"rope_theta": -1.0}, "rope_theta"),
    "not a bool": ({"use_qk_norm": 1}, "use_qk_norm"),
    "heads do not divide": ({"num_attention_heads": 3}, "hidden_size"),
    "groups do not divide": ({"num_key_value_heads": 4}, "num_key_value_heads"),
    "odd rotary part": ({"partial_rotary_factor": 0.2}, "partial_rotary_factor"),
    "no expert layer": ({"first_k_dense_replace": 2, "intermediate_size": 8}, "first_k_dense_replace"),
    "dense width": ({"first_k_dense_replace": 1}, "intermediate_size"),
    "more per token than there are": ({"num_experts_per_tok": 5}, "num_experts_per_tok"),
}


@pytest.mark.parametrize(("change", "key"), BAD.values(), ids=BAD.keys())
def test_a_bad_model_key_is_refused_by_name(change: dict[str, Value], key: str) -> None:
    with pytest.raises(ValueError, match=key):
        map_of(model_of(SMALL | change))


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS.keys())
def test_what_the_charter_sets_is_what_the_release_says(config: dict[str, Value]) -> None:
    assert config.items() <= hf_config(model_of(config), 4).items()


def test_a_missing_model_key_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="moe_intermediate_size"):
        map_of(model_of({k: v for k, v in SMALL.items() if k != "moe_intermediate_size"}))


def test_the_released_tokenizer_is_the_bytes_of_the_text(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    for text in (
        "plain words",
        " two  spaces\n\n\ttab",
        "héllo Ā 世界 \U0001f600",
        "".join(map(chr, range(256))),
    ):
        ids = tokenizer(text)["input_ids"]
        assert ids == list(text.encode())
        assert tokenizer.decode(ids) == text
    assert len(tokenizer) == 256


def test_the_map_needs_no_torch() -> None:
    code = "import sys, commons.experts.map, commons.experts.tokenizer; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
