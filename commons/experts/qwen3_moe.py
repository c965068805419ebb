"""Qwen3-MoE: softmax over all experts, queries and keys normed per head, some layers dense; no shared expert."""

from __future__ import annotations

from functools import partial

from commons.experts.attention import check_heads, grouped, heads
from commons.experts.family import (
    Family,
    Routing,
    Widths,
    check_gates,
    check_layers,
    decoder_config,
    decoder_keys,
    every_layer,
)
from commons.experts.settings import Layers, SettingError, Settings, Switch, Whole

_GIVEN = ("moe_intermediate_size", "norm_topk_prob", "decoder_sparse_step", "attention_bias")


def _mixed(c: Settings) -> frozenset[int]:
    """The last of every `decoder_sparse_step` layers, without `mlp_only_layers`."""
    step = c.whole("decoder_sparse_step")
    return frozenset(range(step - 1, c.whole("num_hidden_layers"), step)) - set(c.layers("mlp_only_layers"))


def _check(c: Settings) -> None:
    check_heads(c)
    check_gates(c, normalised=c.on("norm_topk_prob"))
    if beyond := set(c.layers("mlp_only_layers")) - every_layer(c):
        raise SettingError("mlp_only_layers", f"names layer {max(beyond)}, which there is not")
    chosen_by = "mlp_only_layers" if c["mlp_only_layers"] else "decoder_sparse_step"
    check_layers(c, _mixed(c), chosen_by=chosen_by, dense_width="intermediate_size")


def _config(c: Settings, experts: int) -> dict[str, object]:
    _, groups, width = heads(c)
    return {
        **decoder_config(c),
        **{key: c[key] for key in _GIVEN},
        "num_experts": experts,
        "intermediate_size": c["intermediate_size"] or c["moe_intermediate_size"],
        "num_key_value_heads": groups,
        "head_dim": width,
        "mlp_only_layers": list(c.layers("mlp_only_layers")),
    }


QWEN3_MOE = Family(
    name="qwen3_moe",
    architecture="Qwen3MoeForCausalLM",
    experts_key="num_experts",
    keys=decoder_keys(rope_theta=1000000.0, rms_norm_eps=1e-6)
    | {
        "moe_intermediate_size": Whole(),
        "num_key_value_heads": Whole(0),
        "head_dim": Whole(0),
        "intermediate_size": Whole(0),
        "decoder_sparse_step": Whole(1),
        "mlp_only_layers": Layers(),
        "norm_topk_prob": Switch(True),
        "attention_bias": Switch(False),
    },
    check=_check,
    config=_config,
    attention=partial(grouped, norms="head"),
    widths=lambda c: Widths(c.whole("moe_intermediate_size"), dense=c.whole("intermediate_size")),
    mixed=_mixed,
    routing=lambda c: Routing("softmax", normalised=c.on("norm_topk_prob")),
)
