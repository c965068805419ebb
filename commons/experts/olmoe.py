"""OLMoE and FlexOlmo: softmax over all experts, gates as they are; queries and keys normed over all heads at once.

FlexOlmo (arXiv 2507.07024) norms what leaves attention and experts, OLMoE (arXiv 2409.02060) what enters them.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from commons.experts.attention import check_heads, grouped
from commons.experts.family import (
    Family,
    Routing,
    Widths,
    check_gates,
    decoder_config,
    decoder_keys,
    every_layer,
)
from commons.experts.settings import Key, Settings, Switch, Whole

_KEYS: dict[str, Key] = {
    "intermediate_size": Whole(),
    "num_key_value_heads": Whole(0),
    "norm_topk_prob": Switch(False),
    "attention_bias": Switch(False),
}


def _check(c: Settings) -> None:
    check_heads(c)
    check_gates(c, normalised=c.on("norm_topk_prob"))


def _config(c: Settings, experts: int) -> dict[str, object]:
    return {
        **decoder_config(c),
        "num_experts": experts,
        "intermediate_size": c["intermediate_size"],
        "num_key_value_heads": c["num_key_value_heads"] or c["num_attention_heads"],
        "norm_topk_prob": c["norm_topk_prob"],
        "attention_bias": c["attention_bias"],
    }


OLMOE = Family(
    name="olmoe",
    architecture="OlmoeForCausalLM",
    experts_key="num_experts",
    keys=decoder_keys(rope_theta=10000.0, rms_norm_eps=1e-5) | _KEYS,
    check=_check,
    config=_config,
    attention=partial(grouped, norms="all heads"),
    widths=lambda c: Widths(c.whole("intermediate_size")),
    mixed=every_layer,
    routing=lambda c: Routing("softmax", normalised=c.on("norm_topk_prob")),
)

FLEX_OLMO = replace(
    OLMOE,
    name="flex_olmo",
    architecture="FlexOlmoForCausalLM",
    keys=decoder_keys(rope_theta=500000.0, rms_norm_eps=1e-6) | _KEYS,
    norms=("post_attention_layernorm", "post_feedforward_layernorm"),
)
