"""GLM-4-MoE (`Glm4MoeForCausalLM`): its config.json and its tensors, by arithmetic alone.

The carrier family: plain grouped-query attention, one shared expert, and a sigmoid router in which an
expert's gate depends on its own row only, so that experts can be added, held back or removed without
changing the others' gates. Layout after transformers 5.23, `models/glm4_moe` (per-expert tensors on disk).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from commons.charter import Model
from commons.experts.slices import Kind, Slice
from commons.names import ExpertId

VOCABULARY = 256
"""One token per byte; the token's id is the byte's value."""
END_OF_DOCUMENT = 0
"""NUL never occurs in a corpus, so it ends a document (and generation)."""

Value = bool | float
_REQUIRED = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "moe_intermediate_size",
    "num_experts_per_tok",
)
_DEFAULTS: Mapping[str, Value] = {
    "num_key_value_heads": 0,  # as many as attention heads
    "head_dim": 0,  # hidden_size / num_attention_heads
    "intermediate_size": 0,  # width of the dense layers; needed only where there are any
    "first_k_dense_replace": 0,
    "n_shared_experts": 1,
    "max_position_embeddings": 4096,
    "vocab_size": VOCABULARY,
    "routed_scaling_factor": 1.0,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "partial_rotary_factor": 0.5,
    "initializer_range": 0.02,
    "norm_topk_prob": True,
    "use_qk_norm": False,
    "attention_bias": False,
    "tie_word_embeddings": False,
}
_LARGEST = 1 << 20


def hf_config(model: Model, experts: int) -> dict[str, object]:
    """Content of the released config.json for `experts` routed experts.

    Raises ValueError naming the key of the charter's `[model.config]` that is unknown, missing or impossible.
    """
    c = _checked(model.config)
    heads = int(c["num_attention_heads"])
    if experts < max(2, int(c["num_experts_per_tok"])):
        raise ValueError(
            f"num_experts_per_tok is {c['num_experts_per_tok']} but the sites own {experts} experts"
        )
    return {
        "architectures": ["Glm4MoeForCausalLM"],
        "model_type": "glm4_moe",
        "dtype": "float32",
        "vocab_size": VOCABULARY,
        "bos_token_id": None,
        "eos_token_id": END_OF_DOCUMENT,
        "pad_token_id": None,
        "hidden_size": c["hidden_size"],
        "intermediate_size": c["intermediate_size"] or c["moe_intermediate_size"],
        "num_hidden_layers": c["num_hidden_layers"],
        "num_attention_heads": heads,
        "num_key_value_heads": c["num_key_value_heads"] or heads,
        "head_dim": c["head_dim"] or int(c["hidden_size"]) // heads,
        "hidden_act": "silu",
        "max_position_embeddings": c["max_position_embeddings"],
        "initializer_range": c["initializer_range"],
        "rms_norm_eps": c["rms_norm_eps"],
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": c["rope_theta"],
            "partial_rotary_factor": c["partial_rotary_factor"],
        },
        "tie_word_embeddings": c["tie_word_embeddings"],
        "attention_bias": c["attention_bias"],
        "attention_dropout": 0.0,
        "use_qk_norm": c["use_qk_norm"],
        "moe_intermediate_size": c["moe_intermediate_size"],
        "num_experts_per_tok": c["num_experts_per_tok"],
        "n_shared_experts": c["n_shared_experts"],
        "n_routed_experts": experts,
        "routed_scaling_factor": c["routed_scaling_factor"],
        "norm_topk_prob": c["norm_topk_prob"],
        "first_k_dense_replace": c["first_k_dense_replace"],
        "n_group": 1,
        "topk_group": 1,
        "num_nextn_predict_layers": 0,
        "use_cache": True,
    }


def slices(model: Model, experts: Sequence[ExpertId]) -> Iterator[Slice]:
    """Every tensor of the released model.safetensors; expert `experts[i]` is index i on disk."""
    c = _checked(model.config)
    hidden = int(c["hidden_size"])
    yield Slice("model.embed_tokens.weight", (VOCABULARY, hidden), Kind.TRUNK_MATRIX)
    for layer in range(int(c["num_hidden_layers"])):
        prefix = f"model.layers.{layer}."
        yield from _attention(prefix + "self_attn.", c)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield Slice(f"{prefix}{norm}.weight", (hidden,), Kind.TRUNK_VECTOR)
        if layer < int(c["first_k_dense_replace"]):
            yield from _feed_forward(prefix + "mlp.", hidden, int(c["intermediate_size"]), None)
        else:
            yield from _mixture(prefix + "mlp.", c, experts)
    yield Slice("model.norm.weight", (hidden,), Kind.TRUNK_VECTOR)
    if not c["tie_word_embeddings"]:
        yield Slice("lm_head.weight", (VOCABULARY, hidden), Kind.TRUNK_MATRIX)


def _attention(prefix: str, c: Mapping[str, Value]) -> Iterator[Slice]:
    hidden, heads = int(c["hidden_size"]), int(c["num_attention_heads"])
    width = int(c["head_dim"]) or hidden // heads
    rows = {"q_proj": heads * width}
    rows["k_proj"] = rows["v_proj"] = (int(c["num_key_value_heads"]) or heads) * width
    for name, out in rows.items():
        yield Slice(f"{prefix}{name}.weight", (out, hidden), Kind.TRUNK_MATRIX)
        if c["attention_bias"]:
            yield Slice(f"{prefix}{name}.bias", (out,), Kind.TRUNK_VECTOR)
    yield Slice(f"{prefix}o_proj.weight", (hidden, heads * width), Kind.TRUNK_MATRIX)
    if c["use_qk_norm"]:
        for name in ("q_norm", "k_norm"):
            yield Slice(f"{prefix}{name}.weight", (width,), Kind.TRUNK_VECTOR)


def _mixture(prefix: str, c: Mapping[str, Value], experts: Sequence[ExpertId]) -> Iterator[Slice]:
    hidden, width = int(c["hidden_size"]), int(c["moe_intermediate_size"])
    yield Slice(f"{prefix}gate.weight", (len(experts), hidden), Kind.ROUTER)
    yield Slice(f"{prefix}gate.e_score_correction_bias", (len(experts),), Kind.ROUTER)
    yield from _feed_forward(f"{prefix}shared_experts.", hidden, width * int(c["n_shared_experts"]), None)
    for index, expert in enumerate(experts):
        yield from _feed_forward(f"{prefix}experts.{index}.", hidden, width, expert)


def _feed_forward(prefix: str, hidden: int, width: int, expert: ExpertId | None) -> Iterator[Slice]:
    kind = Kind.TRUNK_MATRIX if expert is None else Kind.EXPERT
    yield Slice(f"{prefix}gate_proj.weight", (width, hidden), kind, expert)
    yield Slice(f"{prefix}up_proj.weight", (width, hidden), kind, expert)
    yield Slice(f"{prefix}down_proj.weight", (hidden, width), kind, expert)


def _checked(config: Mapping[str, bool | float | str]) -> dict[str, Value]:
    """The charter's keys with defaults filled in; ValueError names the offending key."""
    for key in config:
        if key == "n_routed_experts":
            raise ValueError(
                "model.config.n_routed_experts follows from the experts the sites own; remove it"
            )
        if key not in _REQUIRED and key not in _DEFAULTS:
            raise ValueError(f"model.config.{key} is not a key of glm4_moe that a charter may set")
    for key in _REQUIRED:
        if key not in config:
            raise ValueError(f"model.config.{key} is missing")
    values = dict(_DEFAULTS) | {key: _typed(key, value) for key, value in config.items()}
    _check_fit(values)
    return values


def _typed(key: str, value: bool | float | str) -> Value:
    default = _DEFAULTS.get(key, 0)
    if isinstance(default, bool):
        if isinstance(value, bool):
            return value
        raise _wrong(key, "true or false", value)
    if isinstance(value, bool | str):
        raise _wrong(key, "a number", value)
    if isinstance(default, float):
        if 0 < value < float("inf"):
            return float(value)
        raise _wrong(key, "above 0", value)
    lowest = 0 if key == "first_k_dense_replace" else 1
    if isinstance(value, int) and lowest <= value <= _LARGEST:
        return value
    raise _wrong(key, f"a whole number from {lowest} to {_LARGEST}", value)


def _wrong(key: str, expected: str, value: object) -> ValueError:
    return ValueError(f"model.config.{key} must be {expected}, not {value!r}")


def _check_fit(c: Mapping[str, Value]) -> None:
    hidden, heads = int(c["hidden_size"]), int(c["num_attention_heads"])
    groups = int(c["num_key_value_heads"]) or heads
    width = int(c["head_dim"]) or hidden // heads
    if c["vocab_size"] != VOCABULARY:
        raise ValueError(f"model.config.vocab_size must be {VOCABULARY}: tokens are bytes")
    if not c["head_dim"] and hidden % heads:
        raise ValueError(f"model.config.hidden_size {hidden} is no multiple of num_attention_heads {heads}")
    if heads % groups:
        raise ValueError(
            f"model.config.num_key_value_heads {groups} does not divide num_attention_heads {heads}"
        )
    if c["partial_rotary_factor"] > 1 or int(width * c["partial_rotary_factor"]) % 2:
        raise ValueError(
            f"model.config.partial_rotary_factor must turn an even part of {width} head dimensions"
        )
    if not 0 <= c["first_k_dense_replace"] < c["num_hidden_layers"]:
        raise ValueError("model.config.first_k_dense_replace leaves no layer with experts")
    if c["first_k_dense_replace"] and not c["intermediate_size"]:
        raise ValueError("model.config.intermediate_size is missing: it is the width of the dense layers")
