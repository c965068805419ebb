"""GLM-4-MoE, the carrier family: plain grouped-query attention, a shared expert, and a sigmoid router in which an
expert's gate depends on its own row only, so that experts can be added, held back or removed without changing the
others' gates.
"""

from __future__ import annotations

from collections.abc import Iterator

from commons.experts.attention import check_heads, grouped, heads
from commons.experts.family import (
    Family,
    Mixture,
    Routing,
    Widths,
    after_dense_layers,
    check_layers,
    decoder_keys,
)
from commons.experts.settings import Real, Settings, Switch, Whole
from commons.experts.slices import Slice


def _check(c: Settings) -> None:
    check_heads(c, rotary_share=c.real("partial_rotary_factor"))
    check_layers(c, after_dense_layers(c), chosen_by="first_k_dense_replace", dense_width="intermediate_size")


def _config(c: Settings, experts: int) -> dict[str, object]:
    count, groups, width = heads(c)
    return {
        "hidden_size": c["hidden_size"],
        "intermediate_size": c["intermediate_size"] or c["moe_intermediate_size"],
        "num_hidden_layers": c["num_hidden_layers"],
        "num_attention_heads": count,
        "num_key_value_heads": groups,
        "head_dim": width,
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


def _attention(prefix: str, c: Settings) -> Iterator[Slice]:
    norms = "head" if c.on("use_qk_norm") else "none"
    return grouped(prefix, c, norms=norms, biases=("q_proj", "k_proj", "v_proj"))  # type: ignore[arg-type]


def _widths(c: Settings) -> Widths:
    expert = c.whole("moe_intermediate_size")
    return Widths(expert, expert * c.whole("n_shared_experts"), c.whole("intermediate_size"))


def _routing(c: Settings) -> Routing:
    return Routing("sigmoid", normalised=c.on("norm_topk_prob"), scale=c.real("routed_scaling_factor"))


GLM4_MOE = Family(
    name="glm4_moe",
    architecture="Glm4MoeForCausalLM",
    experts_key="n_routed_experts",
    keys=decoder_keys(rope_theta=10000.0, rms_norm_eps=1e-5)
    | {
        "moe_intermediate_size": Whole(),
        "num_key_value_heads": Whole(0),
        "head_dim": Whole(0),
        "intermediate_size": Whole(0),
        "first_k_dense_replace": Whole(0, least=0),
        "n_shared_experts": Whole(1),
        "routed_scaling_factor": Real(1.0),
        "partial_rotary_factor": Real(0.5),
        "norm_topk_prob": Switch(True),
        "use_qk_norm": Switch(False),
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
