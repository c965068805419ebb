"""What a charter may say of its model, the models it can start from, and the path from seed to evaluation for each family."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from commons import charter_file
from commons.charter import Charter, Model
from commons.errors import ConfigError
from commons.experts.families import FAMILIES
from commons.experts.map import ExpertMap, model_problems
from commons.experts.settings import SettingError, Value
from commons.names import ExpertId, SiteId
from commons.states import StateStore
from hansa import baselines, seeds
from hansa.models import MODELS
from hansa.released import load, released_losses
from orchestrator.seed import load_seed
from tests.support.consortium import charter
from tests.support.families import CONFIGS


def map_with(family: str, config: dict[str, Value], experts: int = 4) -> ExpertMap:
    owners = {ExpertId(f"e{n}"): SiteId("berlin") for n in range(experts)}
    return ExpertMap.from_owners(Model.model_validate({"family": family, "config": config}), owners)


BAD: list[tuple[str, dict[str, Value], str]] = [
    ("glm4_moe", {"num_local_experts": 4}, "num_local_experts is not a key of glm4_moe"),
    ("mixtral", {"num_local_experts": 4}, "num_local_experts follows from the experts the sites own"),
    ("mixtral", {"num_experts_per_tok": 1}, "num_experts_per_tok is 1 and gates are normalised"),
    ("mixtral", {"attention_bias": True}, "attention_bias is not a key"),
    ("mixtral", {"head_dim": 7}, "head_dim gives heads of 7 dimensions"),
    ("qwen3_moe", {"num_experts_per_tok": 1}, "num_experts_per_tok is 1 and gates are normalised"),
    ("qwen3_moe", {"mlp_only_layers": (0, 1)}, "mlp_only_layers leaves no layer"),
    ("qwen3_moe", {"mlp_only_layers": (2,)}, "mlp_only_layers names layer 2"),
    (
        "qwen3_moe",
        {"mlp_only_layers": (1, 0)},
        "mlp_only_layers must be indices of layers, each once and rising",
    ),
    ("qwen3_moe", {"mlp_only_layers": 1}, "mlp_only_layers must be a list"),
    ("qwen3_moe", {"mlp_only_layers": (), "decoder_sparse_step": 3}, "decoder_sparse_step leaves no layer"),
    ("llama4_text", {"moe_layers": (0, 2)}, "moe_layers names layer 2"),
    ("llama4_text", {"interleave_moe_layer_step": 3}, "interleave_moe_layer_step leaves no layer"),
    ("llama4_text", {"intermediate_size": (16,)}, "intermediate_size must be a whole number"),
    ("llama4_text", {"attn_scale": (1,)}, "attn_scale must be a number"),
    ("deepseek_v3", {"qk_rope_head_dim": 3}, "qk_rope_head_dim must be even"),
    ("deepseek_v3", {"num_experts_per_tok": 1}, "num_experts_per_tok is 1 and gates are normalised"),
    ("deepseek_v3", {"n_group": 2}, "n_group is not a key"),
    ("deepseek_v3", {"first_k_dense_replace": 2}, "first_k_dense_replace leaves no layer"),
    ("olmoe", {"num_experts_per_tok": 5}, "num_experts_per_tok is 5 but the sites own 4 experts"),
    ("flex_olmo", {"num_key_value_heads": 3}, "num_key_value_heads 3 does not divide"),
]


@pytest.mark.parametrize(("family", "change", "said"), BAD, ids=[said[:40] for _, _, said in BAD])
def test_a_bad_model_key_is_refused_by_name(family: str, change: dict[str, Value], said: str) -> None:
    with pytest.raises(SettingError, match=said):
        map_with(family, CONFIGS[family][1] | change)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_key_a_family_needs_is_missed_by_name(family: str) -> None:
    needed = [key for key, kind in FAMILIES[family].keys.items() if kind.default is None]
    assert "hidden_size" in needed
    for key in needed:
        with pytest.raises(SettingError, match=f"{key} is missing"):
            map_with(family, {k: v for k, v in CONFIGS[family][1].items() if k != key})


@pytest.mark.parametrize("family", FAMILIES)
def test_a_dense_layers_width_is_asked_for_where_there_is_one(family: str) -> None:
    config = CONFIGS[family][1]
    for key in ("intermediate_size", "intermediate_size_mlp"):
        if config.get(key) == 24:
            with pytest.raises(SettingError, match=f"{key} is missing: it is the width of the dense layers"):
                map_with(family, {k: v for k, v in config.items() if k != key})


def test_a_charter_file_names_a_bad_model_key_at_its_line(tmp_path: Path) -> None:
    path = tmp_path / "charter.toml"
    for model, learning, where, said in (
        ({"top_k": 2}, {}, "top_k", "model.config.top_k: is not a key of mixtral that a charter may set"),
        ({"vocab_size": 1000}, {}, "vocab_size", "must be 256, not 1000: tokens are bytes"),
        ({}, {"sequence_length": 129}, "sequence_length", "129 tokens do not fit the model's context of 128"),
    ):
        config = CONFIGS["mixtral"][1] | model
        of = charter(
            model={"family": "mixtral", "config": config},
            **{f"learning__{k}": v for k, v in learning.items()},
        )
        charter_file.write(of, path)
        assert charter_file.load(path) == of
        with pytest.raises(ConfigError) as error:
            charter_file.load(path, further=model_problems)
        (problem,) = error.value.problems
        assert said in problem
        line = path.read_text().splitlines()[int(problem.split(":")[1]) - 1]
        assert line.startswith(where)


@pytest.mark.parametrize("case", CONFIGS)
def test_a_charter_of_every_family_is_written_and_read_back_equal(case: str, tmp_path: Path) -> None:
    of = of_family(case)
    charter_file.write(of, tmp_path / "charter.toml")
    assert charter_file.load(tmp_path / "charter.toml", further=model_problems) == of
    assert charter_file.from_canonical(charter_file.canonical(of)) == of


def of_family(case: str) -> Charter:
    family, config = CONFIGS[case]
    return charter(model={"family": family, "config": config}, learning__rounds=1, learning__inner_steps=1)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_to_start_from_is_one_a_charter_can_have(name: str) -> None:
    of = charter(model=MODELS[name])
    assert not list(model_problems(of))
    counts = ExpertMap.from_charter(of).parameters()
    if name in FAMILIES:
        assert 40_000 < counts.trunk < 200_000 and 40_000 < counts.expert < 60_000


@pytest.mark.parametrize(
    ("name", "experts", "trunk", "expert"),
    [("llama4-scout", 16, 11.1e9, 6.04e9), ("llama4-maverick", 128, 14.2e9, 3.02e9)],
)
def test_published_sizes_have_the_published_counts(
    name: str, experts: int, trunk: float, expert: float
) -> None:
    """With the published vocabulary; active and embedding together are the 17 B of their names."""
    config = MODELS[name]["config"] | {"vocab_size": 202_048}
    counts = map_with(MODELS[name]["family"], config, experts).parameters()
    assert round(counts.trunk / 1e9, 1) == trunk / 1e9
    assert round(counts.expert / 1e9, 2) == expert / 1e9
    assert counts.total == counts.trunk + experts * counts.expert
    assert round((counts.active + 202_048 * 5120) / 1e9) == 17


@pytest.mark.parametrize("family", FAMILIES)
def test_a_seed_of_every_family_is_a_folder_that_runs_start_from_and_hugging_face_loads(
    family: str, tmp_path: Path
) -> None:
    """`hansa seed make`, `hansa run start --seed`, a baseline from the same file, and the evaluation of a release."""
    of, text = of_family(family), tmp_path / "text.txt"
    text.write_text("\n\n".join(f"the square of {i} is {i * i}" for i in range(100)))
    seed = tmp_path / "seed"
    made = seeds.write_plan(
        seed, what="seed", charter=of, texts={"public": text}, public=text, seed_model=seed,
        phase={"steps": 1, "batch_size": 2},
    )  # fmt: skip
    losses = run(made)
    seeds.finish_seed_folder(seed, of)
    assert released_losses(load(seed), {"public": text}, length=16) == pytest.approx(losses, abs=1e-5)
    store = StateStore(tmp_path / "states")
    digest = load_seed(seed, ExpertMap.from_charter(of), store)
    assert isinstance(digest, str)
    alone = seeds.write_plan(
        tmp_path / "alone",
        what="alone",
        charter=of,
        texts={"own": text},
        public=text,
        seed_model=seed,
        alone="own",
    )
    assert np.isfinite(run(alone)["own"])
    names = set(load_file(seed / "model.safetensors"))
    assert (names == set(store.manifest(digest))) == (family != "llama4_text")


def run(plan: Path) -> dict[str, float]:
    return baselines.run_plan(baselines.Plan.model_validate_json(plan.read_text()), lambda *_: None)


def test_existing_charters_of_the_carrier_keep_map_and_config() -> None:
    """A changed digest would stop every run that is under way."""
    config: dict[str, Value] = {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "moe_intermediate_size": 24,
        "num_experts_per_tok": 2,
    }  # fmt: skip
    owners = {ExpertId(f"e{n}"): SiteId(f"site{n // 2}") for n in range(4)}
    expert_map = ExpertMap.from_owners(Model(family="glm4_moe", config=config), owners)
    assert expert_map.digest == "sha256:b0193a48705a318e11186b959fc294c5873f19f66fd82eec960f5f3c77b87160"
    written = json.dumps(FAMILIES["glm4_moe"].hf_config(config, 4), indent=2)

    assert hashlib.sha256(written.encode()).hexdigest().startswith("d92d75cf0dc9f2934edc002c0d58a91d")
