"""Llama 4, text part: a sigmoid router whose gate multiplies the expert's input, a shared expert, layers in turn dense.

Hugging Face keeps all experts of a layer in one tensor per matrix, [experts, in, out], in memory and on disk. A slice is one
expert's entry of that stack as it lies there, neither split nor transposed: its bytes are a range of the file's.
"""

from __future__ import annotations

from commons.experts.attention import check_heads, grouped, heads
from commons.experts.family import (
    Family,
    Mixture,
    Routing,
    Widths,
    check_layers,
    decoder_config,
    decoder_keys,
)
from commons.experts.settings import Layers, Real, Settings, Switch, Whole

_GIVEN = (
    "intermediate_size",
    "interleave_moe_layer_step",
    "use_qk_norm",
    "no_rope_layer_interval",
    "attention_chunk_size",
    "attn_temperature_tuning",
    "floor_scale",
    "attn_scale",
    "attention_bias",
)


def _mixed(c: Settings) -> frozenset[int]:
    """`moe_layers`, or the last of every `interleave_moe_layer_step` layers."""
    step = c.whole("interleave_moe_layer_step")
    return frozenset(c.layers("moe_layers") or range(step - 1, c.whole("num_hidden_layers"), step))


def _check(c: Settings) -> None:
    check_heads(c)
    chosen_by = "moe_layers" if c["moe_layers"] else "interleave_moe_layer_step"
    check_layers(c, _mixed(c), chosen_by=chosen_by, dense_width="intermediate_size_mlp")


def _config(c: Settings, experts: int) -> dict[str, object]:
    _, groups, width = heads(c)
    return {
        **decoder_config(c),
        **{key: c[key] for key in _GIVEN},
        "num_local_experts": experts,
        "intermediate_size_mlp": c["intermediate_size_mlp"] or c["intermediate_size"],
        "num_key_value_heads": groups,
        "head_dim": width,
        "moe_layers": sorted(_mixed(c)),
    }


def _widths(c: Settings) -> Widths:
    width = c.whole("intermediate_size")
    return Widths(width, width, c.whole("intermediate_size_mlp"))


LLAMA4_TEXT = Family(
    name="llama4_text",
    architecture="Llama4ForCausalLM",
    experts_key="num_local_experts",
    keys=decoder_keys(rope_theta=500000.0, rms_norm_eps=1e-5)
    | {
        "intermediate_size": Whole(),
        "num_experts_per_tok": Whole(1),
        "num_key_value_heads": Whole(0),
        "head_dim": Whole(0),
        "intermediate_size_mlp": Whole(0),
        "interleave_moe_layer_step": Whole(1),
        "moe_layers": Layers(),
        "no_rope_layer_interval": Whole(4),
        "attention_chunk_size": Whole(8192),
        "floor_scale": Whole(8192),
        "attn_scale": Real(0.1),
        "attn_temperature_tuning": Switch(True),
        "use_qk_norm": Switch(True),
        "attention_bias": Switch(False),
    },
    check=_check,
    config=_config,
    attention=grouped,
    widths=_widths,
    mixed=_mixed,
    routing=lambda _: Routing("sigmoid", on_input=True),
    mixture=Mixture(
        module="feed_forward", stored="feed_forward", router="router", stacked=True, shared="shared_expert"
    ),
)
