"""DeepSeek-V3: multi-head latent attention (arXiv 2412.19437), otherwise as GLM-4-MoE.

Its choice of experts in two steps, groups first, is off (`n_group` 1): groups are ranges of indices, and an expert that
comes or goes would move others into another group.
"""

from __future__ import annotations

from collections.abc import Iterator

from commons.experts.family import (
    Family,
    Mixture,
    Routing,
    Widths,
    after_dense_layers,
    check_gates,
    check_layers,
    decoder_config,
    decoder_keys,
)
from commons.experts.settings import Real, SettingError, Settings, Switch, Whole
from commons.experts.slices import Kind, Slice

_GIVEN = (
    "kv_lora_rank",
    "qk_nope_head_dim",
    "qk_rope_head_dim",
    "v_head_dim",
    "moe_intermediate_size",
    "n_shared_experts",
    "first_k_dense_replace",
    "routed_scaling_factor",
    "norm_topk_prob",
    "rope_interleave",
    "attention_bias",
)


def _check(c: Settings) -> None:
    if c.whole("qk_rope_head_dim") % 2:
        raise SettingError("qk_rope_head_dim", f"must be even, not {c['qk_rope_head_dim']}")
    check_gates(c, normalised=c.on("norm_topk_prob"))
    check_layers(c, after_dense_layers(c), chosen_by="first_k_dense_replace", dense_width="intermediate_size")


def _config(c: Settings, experts: int) -> dict[str, object]:
    return {
        **decoder_config(c),
        **{key: c[key] for key in _GIVEN},
        "n_routed_experts": experts,
        "intermediate_size": c["intermediate_size"] or c["moe_intermediate_size"],
        "num_key_value_heads": c["num_attention_heads"],
        "q_lora_rank": c["q_lora_rank"] or None,
        "n_group": 1,
        "topk_group": 1,
        "num_nextn_predict_layers": 0,
    }


def _attention(prefix: str, c: Settings) -> Iterator[Slice]:
    hidden, count = c.whole("hidden_size"), c.whole("num_attention_heads")
    queries, latent = c.whole("q_lora_rank"), c.whole("kv_lora_rank")
    nope, rope, value = c.whole("qk_nope_head_dim"), c.whole("qk_rope_head_dim"), c.whole("v_head_dim")
    shapes = {
        "kv_a_proj_with_mqa": (latent + rope, hidden),
        "kv_b_proj": (count * (nope + value), latent),
        "o_proj": (hidden, count * value),
    }
    if queries:
        shapes |= {"q_a_proj": (queries, hidden), "q_b_proj": (count * (nope + rope), queries)}
        yield Slice(f"{prefix}q_a_layernorm.weight", (queries,), Kind.TRUNK_VECTOR)
    else:
        shapes["q_proj"] = (count * (nope + rope), hidden)
    yield Slice(f"{prefix}kv_a_layernorm.weight", (latent,), Kind.TRUNK_VECTOR)
    for name, shape in shapes.items():
        yield Slice(f"{prefix}{name}.weight", shape, Kind.TRUNK_MATRIX)
        if c.on("attention_bias") and name in ("q_a_proj", "kv_a_proj_with_mqa", "o_proj"):
            yield Slice(f"{prefix}{name}.bias", shape[:1], Kind.TRUNK_VECTOR)


def _widths(c: Settings) -> Widths:
    expert = c.whole("moe_intermediate_size")
    return Widths(expert, expert * c.whole("n_shared_experts"), c.whole("intermediate_size"))


def _routing(c: Settings) -> Routing:
    return Routing("sigmoid", normalised=c.on("norm_topk_prob"), scale=c.real("routed_scaling_factor"))


DEEPSEEK_V3 = Family(
    name="deepseek_v3",
    architecture="DeepseekV3ForCausalLM",
    experts_key="n_routed_experts",
    keys=decoder_keys(rope_theta=10000.0, rms_norm_eps=1e-6)
    | {
        "moe_intermediate_size": Whole(),
        "kv_lora_rank": Whole(),
        "qk_nope_head_dim": Whole(),
        "qk_rope_head_dim": Whole(),
        "v_head_dim": Whole(),
        "q_lora_rank": Whole(0),
        "intermediate_size": Whole(0),
        "first_k_dense_replace": Whole(0, least=0),
        "n_shared_experts": Whole(1),
        "routed_scaling_factor": Real(1.0),
        "norm_topk_prob": Switch(True),
        "rope_interleave": Switch(True),
        "attention_bias": Switch(False),
    },
    check=_check,
    config=_config,
    attention=_attention,
    widths=_widths,
    mixed=after_dense_layers,
    routing=_routing,
    mixture=Mixture(biased=True, shared="shared_experts"),
)
