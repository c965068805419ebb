"""Models to start a charter from: one of each family that learns on a laptop, the published sizes of Llama 4, and any
checkpoint of a family in a folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from commons.errors import HansaError
from commons.experts.published import model_of
from commons.experts.settings import SettingError
from commons.identity import read_file

_LAPTOP = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
_USUAL = {"num_experts_per_tok": 2, "max_position_embeddings": 512}
_LLAMA4 = {
    "hidden_size": 5120,
    "num_hidden_layers": 48,
    "num_attention_heads": 40,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 8192,
    "intermediate_size_mlp": 16384,
    "num_experts_per_tok": 1,
}
"""Both published sizes, text part (config.json of meta-llama/Llama-4-Scout-17B-16E and -Maverick-17B-128E)."""

MODELS: dict[str, dict[str, Any]] = {
    "glm4_moe": {"family": "glm4_moe", "config": {**_LAPTOP, "moe_intermediate_size": 128, **_USUAL}},
    "llama4_text": {
        "family": "llama4_text",
        "config": {**_LAPTOP, "intermediate_size": 128, **_USUAL, "num_experts_per_tok": 1},
    },
    "deepseek_v3": {
        "family": "deepseek_v3",
        "config": {
            **_LAPTOP,
            "q_lora_rank": 32,
            "kv_lora_rank": 32,
            "qk_nope_head_dim": 16,
            "qk_rope_head_dim": 8,
            "v_head_dim": 16,
            "moe_intermediate_size": 128,
            **_USUAL,
        },
    },
    "qwen3_moe": {"family": "qwen3_moe", "config": {**_LAPTOP, "moe_intermediate_size": 128, **_USUAL}},
    "mixtral": {"family": "mixtral", "config": {**_LAPTOP, "intermediate_size": 128, **_USUAL}},
    "olmoe": {"family": "olmoe", "config": {**_LAPTOP, "intermediate_size": 128, **_USUAL}},
    "flex_olmo": {"family": "flex_olmo", "config": {**_LAPTOP, "intermediate_size": 128, **_USUAL}},
    "llama4-scout": {"family": "llama4_text", "config": {**_LLAMA4, "max_position_embeddings": 262144}},
    "llama4-maverick": {
        "family": "llama4_text",
        "config": {
            **_LLAMA4,
            "interleave_moe_layer_step": 2,
            "use_qk_norm": False,
            "max_position_embeddings": 262144,
        },
    },
}
"""By the name that `hansa charter new --model` takes; how many experts there are follows from the sites."""
USUAL = "glm4_moe"


def of_checkpoint(folder: Path) -> tuple[dict[str, Any], int]:
    """`[model]` of a charter for the checkpoint in a Hugging Face folder, and how many experts it has. Raises HansaError."""
    file = folder / "config.json"
    data = read_file(file, "name the folder of a checkpoint, with its config.json")
    try:
        return model_of(json.loads(data))
    except SettingError as wrong:
        raise HansaError(
            f"{file} is of no model that a charter can name: {wrong.key} {wrong.what}"
        ) from wrong
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise HansaError(f"{file} cannot be read: {error}") from error
