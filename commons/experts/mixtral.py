"""Mixtral: softmax over all experts, the gates of those chosen normalised; no shared expert, no dense layers.

On disk its block and matrices have other names than in transformers.
"""

from __future__ import annotations

from commons.experts.attention import check_heads, grouped, heads
from commons.experts.family import (
    Family,
    Mixture,
    Routing,
    Widths,
    check_gates,
    decoder_config,
    decoder_keys,
    every_layer,
)
from commons.experts.settings import Settings, Whole


def _check(c: Settings) -> None:
    check_heads(c)
    check_gates(c, normalised=True)


def _config(c: Settings, experts: int) -> dict[str, object]:
    _, groups, width = heads(c)
    return {
        **decoder_config(c),
        "num_local_experts": experts,
        "intermediate_size": c["intermediate_size"],
        "num_key_value_heads": groups,
        "head_dim": width,
        "sliding_window": c["sliding_window"] or None,
    }


MIXTRAL = Family(
    name="mixtral",
    architecture="MixtralForCausalLM",
    experts_key="num_local_experts",
    keys=decoder_keys(rope_theta=1000000.0, rms_norm_eps=1e-5)
    | {
        "intermediate_size": Whole(),
        "num_key_value_heads": Whole(0),
        "head_dim": Whole(0),
        "sliding_window": Whole(0),
    },
    check=_check,
    config=_config,
    attention=grouped,
    widths=lambda c: Widths(c.whole("intermediate_size")),
    mixed=every_layer,
    routing=lambda _: Routing("softmax", normalised=True),
    mixture=Mixture(stored="block_sparse_moe", matrices=("w1", "w3", "w2")),
)
