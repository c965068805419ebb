"""Tiny models of every family, each with what is peculiar to it: dense layers, grouped heads, biases, norms.

Experts are 16 wide in a model of 32, so that Llama 4's gate and up projection together are square: whoever goes by shapes
would not notice them turned.
"""

from __future__ import annotations

from commons.charter import Model
from commons.experts.map import ExpertMap
from commons.experts.settings import Value
from commons.names import ExpertId, SiteId

_SMALL: dict[str, Value] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 128,
}
_LATENT: dict[str, Value] = {
    "kv_lora_rank": 12,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 6,
    "moe_intermediate_size": 16,
}
CONFIGS: dict[str, tuple[str, dict[str, Value]]] = {
    "glm4_moe": (
        "glm4_moe",
        {
            **_SMALL, "moe_intermediate_size": 16, "first_k_dense_replace": 1, "intermediate_size": 24,
            "num_key_value_heads": 2, "attention_bias": True, "use_qk_norm": True,
        },
    ),
    "llama4_text": (
        "llama4_text",
        {
            **_SMALL, "intermediate_size": 16, "num_experts_per_tok": 1, "interleave_moe_layer_step": 2,
            "intermediate_size_mlp": 24, "num_key_value_heads": 2, "attention_bias": True,
            "no_rope_layer_interval": 2, "attention_chunk_size": 16,
        },
    ),
    "llama4_text, two experts a token, tied": (
        "llama4_text",
        {
            **_SMALL, "intermediate_size": 16, "moe_layers": (0,), "intermediate_size_mlp": 24, "head_dim": 6,
            "use_qk_norm": False, "tie_word_embeddings": True,
        },
    ),
    "deepseek_v3": (
        "deepseek_v3",
        {**_SMALL, **_LATENT, "q_lora_rank": 10, "first_k_dense_replace": 1, "intermediate_size": 24, "attention_bias": True},
    ),
    "deepseek_v3, queries whole, tied": (
        "deepseek_v3",
        {**_SMALL, **_LATENT, "tie_word_embeddings": True, "routed_scaling_factor": 2.5, "rope_interleave": False},
    ),
    "qwen3_moe": (
        "qwen3_moe",
        {
            **_SMALL, "moe_intermediate_size": 16, "mlp_only_layers": (1,), "intermediate_size": 24,
            "num_key_value_heads": 2, "head_dim": 6, "attention_bias": True,
        },
    ),
    "qwen3_moe, gates as they are, tied": (
        "qwen3_moe",
        {
            **_SMALL, "moe_intermediate_size": 16, "decoder_sparse_step": 2, "intermediate_size": 24,
            "norm_topk_prob": False, "tie_word_embeddings": True,
        },
    ),
    "mixtral": ("mixtral", {**_SMALL, "intermediate_size": 16, "num_key_value_heads": 2, "head_dim": 6, "sliding_window": 16}),
    "olmoe": ("olmoe", {**_SMALL, "intermediate_size": 16, "num_key_value_heads": 2, "attention_bias": True}),
    "flex_olmo": ("flex_olmo", {**_SMALL, "intermediate_size": 16, "tie_word_embeddings": True}),
}  # fmt: skip
EXPERTS = tuple(ExpertId(f"e{n}") for n in range(4))


def model_of(case: str) -> Model:
    family, config = CONFIGS[case]
    return Model.model_validate({"family": family, "config": config})


def map_of(case: str, experts: tuple[ExpertId, ...] = EXPERTS) -> ExpertMap:
    """Owned by two sites, berlin and oslo, in turn."""
    owners = {e: SiteId("berlin" if n % 2 == 0 else "oslo") for n, e in enumerate(experts)}
    return ExpertMap.from_owners(model_of(case), owners)
