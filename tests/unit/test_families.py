"""Every family, held against what transformers builds, saves, loads and computes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM

from commons.charter import Model
from commons.errors import Refusal
from commons.experts.families import FAMILIES
from commons.experts.map import ExpertMap, Kind
from commons.experts.stored import MODEL, stacked, stored, unstacked, weights_files
from commons.learning import Learning
from commons.names import ExpertId, SiteId
from commons.states import StateStore
from orchestrator.release.layout import slices_in, write_tensors
from orchestrator.seed import load_seed
from tests.support.families import CONFIGS, EXPERTS, map_of, model_of
from tests.support.parts import put_together, take_apart
from workers.data import Corpus
from workers.routers import Router
from workers.shard import build_shard, initial_state, read_state, resident_bytes
from workers.trainer import Trainer

State = dict[str, NDArray[np.float32]]
every_family = pytest.mark.parametrize("case", CONFIGS)
TOKENS = torch.randint(0, 256, (2, 40), generator=torch.Generator().manual_seed(0))


def described(case: str) -> dict[str, Any]:
    model = model_of(case)
    return FAMILIES[model.family].hf_config(model.config, len(EXPERTS))


def random_state(case: str, expert_map: ExpertMap | None = None) -> State:
    """Weights wide enough that every part matters, with selection biases that change choices."""
    draw = np.random.default_rng(5)
    return {
        name: (array + 0.3 * draw.standard_normal(array.shape)).astype(np.float32)
        for name, array in initial_state(model_of(case), expert_map or map_of(case), seed=1).items()
    }


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        out: torch.Tensor = model.eval()(input_ids=TOKENS, use_cache=False).logits
    return out


def same(a: State, b: State) -> bool:
    return a.keys() == b.keys() and all(
        a[n].tobytes() == b[n].tobytes() and a[n].shape == b[n].shape for n in a
    )


def test_a_charter_can_name_every_family_and_no_other() -> None:
    assert set(get_args(Model.model_fields["family"].annotation)) == set(FAMILIES)
    assert {family for family, _ in CONFIGS.values()} == set(FAMILIES)


@every_family
def test_the_map_names_what_hugging_face_saves_and_a_shard_of_it_computes_the_same(
    case: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    architecture = getattr(transformers, described(case)["architectures"][0])
    published = architecture(architecture.config_class(**described(case)))
    with torch.no_grad():
        for parameter in published.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    published.save_pretrained(tmp_path)
    saved, expert_map = load_file(tmp_path / "model.safetensors"), map_of(case)
    assert {t.name: t.shape for t in stored(expert_map)} == {n: a.shape for n, a in saved.items()}
    state = unstacked(expert_map, saved)
    assert {s.name: s.shape for s in expert_map.slices} == {n: a.shape for n, a in state.items()}
    assert expert_map.parameters().total == sum(a.size for a in saved.values())
    shard = build_shard(model_of(case), expert_map, own=EXPERTS, guests=False, state=state)
    assert torch.allclose(logits(published), logits(shard), atol=1e-5, rtol=0)
    said = json.loads((tmp_path / "config.json").read_text())
    assert {k: said.get(k) for k in CONFIGS[case][1] if k in said} == json.loads(
        json.dumps({k: v for k, v in CONFIGS[case][1].items() if k in said})
    )


@every_family
def test_a_state_goes_through_a_release_and_hugging_face_and_back_bit_for_bit(
    case: str, tmp_path: Path
) -> None:
    expert_map, state = map_of(case), random_state(case)
    store = StateStore(tmp_path / "states")
    digest = store.save(state)
    write_tensors(tmp_path / MODEL, store, weights_files(expert_map)[MODEL], store.manifest(digest))
    (tmp_path / "config.json").write_text(json.dumps(described(case)))
    blobs = {name: (b.digest, b.shape) for name, b in store.manifest(digest).items()}
    assert slices_in(tmp_path / "model.safetensors", expert_map) == blobs
    assert same(load_file(tmp_path / "model.safetensors"), stacked(expert_map, state))
    released, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    shard = build_shard(model_of(case), expert_map, own=EXPERTS[:1], guests=True, state=state)
    assert torch.allclose(logits(released), logits(shard), atol=1e-5, rtol=0)
    released.save_pretrained(tmp_path / "again")
    assert same(unstacked(expert_map, load_file(tmp_path / "again" / "model.safetensors")), state)
    assert load_seed(tmp_path / "again", expert_map, StateStore(tmp_path / "elsewhere")) == digest
    assert same(read_state(shard), state)


@every_family
def test_a_shard_holds_the_trunk_and_its_own_experts_and_not_a_byte_more(case: str) -> None:
    expert_map, state = map_of(case), random_state(case)
    lean = build_shard(model_of(case), expert_map, own=EXPERTS[2:3], guests=False, state=state)
    held = {s.name for s in expert_map.slices if s.expert in (None, EXPERTS[2])}
    assert set(read_state(lean)) == held
    tables = sum(b.nbytes for n, b in lean.named_buffers() if n.endswith((".absent", "inv_freq")))
    assert resident_bytes(lean) == 4 * sum(s.size for s in expert_map.slices if s.name in held) + tables
    assert tables <= 1024
    assert torch.isfinite(logits(lean)).all()


@every_family
def test_an_absent_expert_changes_no_other_experts_gate(case: str) -> None:
    """Gates of a lean shard are those of the whole model; where they are normalised, in the same proportion."""
    model, expert_map, state = model_of(case), map_of(case), random_state(case)
    shards = [
        build_shard(model, expert_map, own=own, guests=False, state=state) for own in (EXPERTS, EXPERTS[1:3])
    ]
    hidden = torch.randn(64, 32, generator=torch.Generator().manual_seed(1))
    whole, lean = (next(m for m in shard.modules() if isinstance(m, Router)) for shard in shards)
    whole.k = len(EXPERTS)
    lean.k = 2
    _, gates, chosen = whole(hidden)
    every = torch.zeros(64, 4).scatter(1, chosen, gates)
    _, gates, chosen = lean(hidden)
    assert set(chosen.flatten().tolist()) == {1, 2}
    expected = every.gather(1, chosen)
    if whole.routing.normalised:
        expected = whole.routing.scale * expected / expected.sum(1, keepdim=True)
    assert torch.allclose(gates, expected, atol=1e-6)


@pytest.fixture
def trainer_of(tmp_path: Path) -> Callable[[str], Trainer]:
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"berlin says {i * i} is the square of {i}" for i in range(100)))

    def make(case: str) -> Trainer:
        return Trainer(
            model=model_of(case),
            expert_map=map_of(case),
            site=SiteId("berlin"),
            learning=LEARNING,
            corpus=Corpus.load(text, sequence_length=16),
            public=None,
            home=tmp_path / "home",
        )

    return make


LEARNING = Learning(
    rounds=3, inner_steps=3, batch_size=2, sequence_length=16, learning_rate=0.01, weight_decay=0.5
)


@every_family
def test_nothing_moves_but_the_trunk_the_router_and_ones_own_experts(
    case: str, trainer_of: Callable[[str], Trainer]
) -> None:
    """A round with guests, then two without: gradient, momentum and weight decay reach nothing else."""
    expert_map, base, trainer = map_of(case), random_state(case), trainer_of(case)
    foreign = {s.name for s in expert_map.slices if s.kind is Kind.EXPERT} - {
        s.name for s in expert_map.owned_by(SiteId("berlin"))
    }
    for number, routing in ((1, "joint"), (2, "lean"), (3, "lean")):
        learning = LEARNING.model_copy(update={"routing": routing})
        result = trainer.train_round(
            round_number=number, base=base, learning=learning, on_step=lambda *_: None
        )
        assert trainer._shard is not None
        held = read_state(trainer._shard)
        if routing == "joint":
            assert all(np.array_equal(held[name], base[name]) for name in foreign)
        else:
            assert not foreign & held.keys()
        for part in expert_map.shared():
            delta = result.trunk_delta[part.name]
            if part.name.endswith("e_score_correction_bias"):
                assert not delta.any()
            elif part.kind is Kind.ROUTER:
                assert delta[::2].any(), part.name
                assert routing == "joint" or not delta[1::2].any(), part.name
            else:
                assert delta.any(), part.name
        assert set(result.experts) == {s.name for s in expert_map.owned_by(SiteId("berlin"))}
        assert any(not np.array_equal(array, base[name]) for name, array in result.experts.items())
        base = {n: base[n] + result.trunk_delta.get(n, np.float32(0)) for n in base} | result.experts


@every_family
def test_an_expert_that_leaves_and_comes_back_by_its_id_has_the_same_bytes(case: str) -> None:
    expert_map, state = map_of(case), random_state(case)
    trunk, parts = take_apart(expert_map, state)
    fewer = map_of(case, EXPERTS[:1] + EXPERTS[2:])
    without = put_together(fewer, trunk, parts)
    assert set(without) == {s.name for s in fewer.slices}
    trunk_after, parts_after = take_apart(fewer, without)
    assert all(np.array_equal(trunk[n], trunk_after[n]) for n in trunk)
    assert all(same(parts[e], parts_after[e]) for e in fewer.experts)
    elsewhere = map_of(case, (EXPERTS[1], *reversed(fewer.experts)))
    moved = put_together(elsewhere, trunk_after, parts_after | {EXPERTS[1]: parts[EXPERTS[1]]})
    trunk_back, parts_back = take_apart(elsewhere, moved)
    assert same(put_together(expert_map, trunk_back, parts_back), state)
    with pytest.raises(KeyError, match="e1"):
        put_together(expert_map, trunk_after, parts_after)


@every_family
def test_the_order_of_experts_does_not_change_what_the_model_computes(case: str) -> None:
    expert_map, state = map_of(case), random_state(case)
    turned = map_of(case, tuple(reversed(EXPERTS)))
    moved = put_together(turned, *take_apart(expert_map, state))
    before = build_shard(model_of(case), expert_map, own=EXPERTS, guests=False, state=state)
    after = build_shard(model_of(case), turned, own=EXPERTS[:2], guests=True, state=moved)
    assert torch.allclose(logits(before), logits(after), atol=1e-5, rtol=0)


def test_a_stack_keeps_its_order_beyond_ten_experts() -> None:
    """Slices sort by name, where 10 comes before 2."""
    experts = tuple(ExpertId(f"e{n}") for n in range(12))
    expert_map = map_of("llama4_text", experts)
    state = {s.name: np.full(s.shape, n, np.float32) for n, s in enumerate(expert_map.slices)}
    whole = stacked(expert_map, state)["model.layers.1.feed_forward.experts.down_proj"]
    for index in range(12):
        assert np.array_equal(whole[index], state[f"model.layers.1.feed_forward.experts.{index}.down_proj"])
    assert same(unstacked(expert_map, stacked(expert_map, state)), state)


def test_an_expert_that_is_in_a_seed_twice_is_refused(tmp_path: Path) -> None:
    case = "llama4_text"
    expert_map, state = map_of(case), random_state(case)
    name = "model.layers.1.feed_forward.experts.2.down_proj"
    save_file(stacked(expert_map, state) | {name: state[name]}, tmp_path / "model.safetensors")
    refusal = load_seed(tmp_path, expert_map, StateStore(tmp_path / "states"))
    assert isinstance(refusal, Refusal) and f"{name} is there twice" in refusal.message
