"""A published checkpoint as a run's seed: a charter made from it, and what is refused as another model than it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from commons import charter_file
from commons.charter import Charter, Model
from commons.errors import HansaError, Refusal
from commons.experts.families import FAMILIES
from commons.experts.map import ExpertMap
from commons.experts.published import differences, model_of
from commons.experts.tokenizer import FILE
from commons.identity import write_file
from commons.names import ExpertId, SiteId
from commons.states import StateStore
from hansa.charters import check_charter, new_charter
from orchestrator.seed import described_otherwise, load_seed
from tests.support.checkpoints import published_olmoe
from tests.support.consortium import signer
from tests.support.families import CONFIGS
from tests.support.families import model_of as of_case
from workers.data import Corpus
from workers.encoder import Encoder
from workers.objectives import next_token_loss
from workers.shard import build_shard


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return published_olmoe(tmp_path_factory.mktemp("published"))


@pytest.fixture
def made(checkpoint: Path, tmp_path: Path) -> Charter:
    for name in ("quay", "alder", "birch"):
        write_file(tmp_path / f"{name}.pub", signer(name).vkey.encode() + b"\n")
    file = tmp_path / "charter.toml"
    members = [tmp_path / "alder.pub", tmp_path / "birch.pub"]
    new_charter(
        file, log_key=tmp_path / "quay.pub", members=members, funders=[], budget_micro=1, rounds=1, inner_steps=1,
        checkpoint=checkpoint,
    )  # fmt: skip
    return check_charter(file, tmp_path / "founding").charter


def test_a_charter_made_from_a_checkpoint_has_its_model_its_tokenizer_and_all_its_experts(
    checkpoint: Path, made: Charter, tmp_path: Path
) -> None:
    assert [len(site.experts) for site in made.sites] == [3, 2]
    assert (made.model.config["rope_theta"], made.model.config["vocab_size"]) == (500.0, 352)
    assert (made.learning.sequence_length, made.learning.learning_rate) == (64, 1e-4), (
        "the context has 64 tokens"
    )
    assert (tmp_path / FILE).read_bytes() == (checkpoint / FILE).read_bytes()
    assert charter_file.load(tmp_path / "charter.toml") == made
    assert described_otherwise(checkpoint, made, 5) is None


def test_a_run_begins_with_the_checkpoints_weights_and_computes_what_transformers_does(
    checkpoint: Path, made: Charter, tmp_path: Path
) -> None:
    store, expert_map = StateStore(tmp_path / "states"), ExpertMap.from_charter(made)
    digest = load_seed(checkpoint, expert_map, store)
    assert isinstance(digest, str)
    state, published = store.load(digest), load_file(checkpoint / "model.safetensors")
    assert {t.dtype for t in published.values()} == {torch.float16}
    assert all(np.array_equal(state[name], tensor.float().numpy()) for name, tensor in published.items())
    shard = build_shard(made.model, expert_map, own=expert_map.experts, guests=False, state=state).eval()
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"somebody says {i} and {i * i}" for i in range(40)))
    encoder = Encoder.load(checkpoint / FILE, made.model.tokenizer)
    rows = torch.from_numpy(
        Corpus.load(text, sequence_length=16, encoder=encoder).held_out_rows(length=16, limit=4)
    )
    theirs = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    with torch.inference_mode():
        assert float(next_token_loss(shard, rows)) == pytest.approx(
            float(next_token_loss(theirs, rows)), abs=1e-5
        )


OTHER: dict[str, tuple[dict[str, Any], str]] = {
    "more experts": ({"num_experts": 64}, "num_experts is 64 there and 5"),
    "another base of positions": ({"rope_parameters": {"rope_theta": 10000.0}}, "rope_theta is 10000.0 there and 500.0"),
    "the same, as older releases write it": ({"rope_parameters": None, "rope_theta": 1.0}, "rope_theta is 1.0"),
    "scaled positions": (
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 500.0}}, "rotary embeddings are scaled ('yarn')",
    ),
    "scaled, as older releases write it": ({"rope_scaling": {"type": "linear"}}, "it asks for rope_scaling"),
    "clipped attention": ({"clip_qkv": 8.0}, "it asks for clip_qkv 8.0"),
    "another family": ({"model_type": "mixtral"}, "model_type is 'mixtral' there and 'olmoe'"),
    "other layers": ({"num_hidden_layers": 16}, "num_hidden_layers is 16 there and 1"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "said"), OTHER.values(), ids=OTHER)
def test_a_checkpoint_of_another_model_is_refused_before_it_is_read(
    checkpoint: Path, made: Charter, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    published = json.loads((checkpoint / "config.json").read_bytes())
    (tmp_path / "config.json").write_text(json.dumps(published | change))
    refusal = described_otherwise(tmp_path, made, 5)
    assert refusal is not None and said in refusal.message


def test_a_checkpoint_of_other_tokens_is_refused_with_both_digests(
    checkpoint: Path, made: Charter, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / FILE).write_bytes((checkpoint / FILE).read_bytes() + b" ")
    refusal = described_otherwise(other, made, 5)
    assert refusal is not None and refusal.message.count("sha256:") == 2


HARM: dict[str, tuple[Callable[[Path], object], str]] = {
    "an index elsewhere": (
        lambda f: (f / "model.safetensors.index.json").write_text(
            '{"weight_map": {"a": "../a.safetensors"}}'
        ),
        "names '../a.safetensors', which is no file of the folder",
    ),
    "no index": (lambda f: (f / "model.safetensors.index.json").write_text("[]"), "is no index"),
    "a config that is none": (lambda f: (f / "config.json").write_text("["), "cannot be read"),
}


@pytest.mark.parametrize(("harm", "said"), HARM.values(), ids=HARM)
def test_a_folder_that_lies_about_its_files_is_refused(
    made: Charter, tmp_path: Path, harm: Callable[[Path], object], said: str
) -> None:
    harm(tmp_path)
    found = described_otherwise(tmp_path, made, 5) or load_seed(
        tmp_path, ExpertMap.from_charter(made), StateStore(tmp_path / "s")
    )
    assert isinstance(found, Refusal) and said in found.message


def test_layers_that_predict_further_tokens_are_left_out(
    checkpoint: Path, made: Charter, tmp_path: Path
) -> None:
    tensors = load_file(checkpoint / "model.safetensors")
    save_file({**tensors, "model.layers.1.eh_proj.weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    store, expert_map = StateStore(tmp_path / "states"), ExpertMap.from_charter(made)
    assert isinstance(load_seed(tmp_path, expert_map, store), Refusal), (
        "nothing says that they are not the model's"
    )
    (tmp_path / "config.json").write_bytes((checkpoint / "config.json").read_bytes())
    assert load_seed(tmp_path, expert_map, store) == load_seed(checkpoint, expert_map, store)


@pytest.mark.parametrize("case", CONFIGS)
def test_the_configuration_of_every_family_is_read_back_as_transformers_writes_it(case: str) -> None:
    model = of_case(case)
    ours = FAMILIES[model.family].hf_config(model.config, 4)
    written = json.loads(AutoConfig.for_model(**ours).to_json_string(use_diff=False))
    read, experts = model_of(written)
    assert experts == 4 and list(differences(Model.model_validate(read), 4, written)) == []
    again = FAMILIES[model.family].hf_config(read["config"], 4)
    assert {k: v for k, v in again.items() if v != ours[k]} == {}


_ALIKE = {"hidden_act": "silu", "rope_scaling": None, "tie_word_embeddings": False, "attention_bias": False}
PUBLISHED: dict[str, tuple[dict[str, Any], int]] = {
    "OLMoE-1B-7B": (
        {
            **_ALIKE, "model_type": "olmoe", "clip_qkv": None, "hidden_size": 2048, "intermediate_size": 1024,
            "max_position_embeddings": 4096, "norm_topk_prob": False, "num_attention_heads": 16, "num_experts": 64,
            "num_experts_per_tok": 8, "num_hidden_layers": 16, "num_key_value_heads": 16, "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0, "vocab_size": 50304,
        },
        6_919_161_856,
    ),
    "Mixtral-8x7B": (
        {
            **_ALIKE, "model_type": "mixtral", "hidden_size": 4096, "intermediate_size": 14336,
            "max_position_embeddings": 32768, "num_attention_heads": 32, "num_experts_per_tok": 2, "num_hidden_layers": 32,
            "num_key_value_heads": 8, "num_local_experts": 8, "rms_norm_eps": 1e-5, "rope_theta": 1e6,
            "sliding_window": None, "vocab_size": 32000,
        },
        46_702_792_704,
    ),
    "Qwen3-30B-A3B": (
        {
            **_ALIKE, "model_type": "qwen3_moe", "decoder_sparse_step": 1, "head_dim": 128, "hidden_size": 2048,
            "intermediate_size": 6144, "max_position_embeddings": 40960, "mlp_only_layers": [], "moe_intermediate_size": 768,
            "norm_topk_prob": True, "num_attention_heads": 32, "num_experts": 128, "num_experts_per_tok": 8,
            "num_hidden_layers": 48, "num_key_value_heads": 4, "rms_norm_eps": 1e-6, "rope_theta": 1e6, "vocab_size": 151936,
        },
        30_532_122_624,
    ),
}  # fmt: skip
"""What matters of config.json, and the model's parameters as published."""


@pytest.mark.parametrize(("published", "parameters"), PUBLISHED.values(), ids=PUBLISHED)
def test_a_charter_of_a_published_model_has_as_many_parameters_as_it(
    published: dict[str, Any], parameters: int
) -> None:
    read, experts = model_of(published)
    model = Model.model_validate(read)
    owners = {ExpertId(f"e{n}"): SiteId("site") for n in range(experts)}
    assert ExpertMap.from_owners(model, owners).parameters().total == parameters
    assert list(differences(model, experts, published)) == []


def test_what_of_deepseek_v3_is_not_here_is_named() -> None:
    published = {
        "model_type": "deepseek_v3", "n_group": 8, "topk_group": 4, "rope_scaling": {"type": "yarn", "factor": 40},
        "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "kv_lora_rank": 12, "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 4, "v_head_dim": 6, "moe_intermediate_size": 16, "num_experts_per_tok": 2, "n_routed_experts": 16,
    }  # fmt: skip
    read, experts = model_of(published)
    found = list(differences(Model.model_validate(read), experts, published))
    assert [what.split()[0] for what in found] == ["n_group", "topk_group", "it"] and "yarn" in found[-1]


def test_a_model_with_fewer_experts_than_sites_makes_no_charter(checkpoint: Path, tmp_path: Path) -> None:
    names = ("quay", *(f"m{n}" for n in range(6)))
    for name in names:
        write_file(tmp_path / f"{name}.pub", signer(name).vkey.encode() + b"\n")
    with pytest.raises(HansaError, match="a model of 5 experts cannot be shared by 6 sites"):
        new_charter(
            tmp_path / "charter.toml", log_key=tmp_path / "quay.pub", members=[tmp_path / f"{n}.pub" for n in names[1:]],
            funders=[], budget_micro=1, rounds=1, inner_steps=1, checkpoint=checkpoint,
        )  # fmt: skip
