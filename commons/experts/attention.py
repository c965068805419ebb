"""Attention of the families: keys, shapes and checks of grouped queries. Multi-head latent attention is DeepSeek's own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from commons.experts.settings import SettingError, Settings
from commons.experts.slices import Kind, Slice


def heads(c: Settings) -> tuple[int, int, int]:
    """Query heads, key and value heads, dimensions of one head."""
    count = c.whole("num_attention_heads")
    groups = c.whole("num_key_value_heads") or count
    given = c.whole("head_dim") if "head_dim" in c.values else 0
    return count, groups, given or c.whole("hidden_size") // count


def check_heads(c: Settings, *, rotary_share: float = 1.0) -> None:
    """Heads divide what they share, and rotary embeddings turn an even number of dimensions. Raises SettingError."""
    hidden, (count, groups, width) = c.whole("hidden_size"), heads(c)
    if not c.values.get("head_dim") and hidden % count:
        raise SettingError("hidden_size", f"{hidden} is no multiple of num_attention_heads {count}")
    if count % groups:
        raise SettingError("num_key_value_heads", f"{groups} does not divide num_attention_heads {count}")
    if rotary_share > 1 or int(width * rotary_share) % 2:
        if "partial_rotary_factor" in c.values:
            raise SettingError("partial_rotary_factor", f"must turn an even part of {width} head dimensions")
        key = "head_dim" if c.values.get("head_dim") else "num_attention_heads"
        raise SettingError(key, f"gives heads of {width} dimensions, which cannot be turned in pairs")


def grouped(
    prefix: str,
    c: Settings,
    *,
    norms: Literal["none", "head", "all heads"] = "none",
    biases: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj"),
) -> Iterator[Slice]:
    """Slices of grouped-query attention behind `prefix`.

    `norms`: queries and keys are normed per head, or over all heads at once. `biases`: who has one, if `attention_bias` is on.
    """
    hidden, (count, groups, width) = c.whole("hidden_size"), heads(c)
    shapes = {
        "q_proj": (count * width, hidden),
        "k_proj": (groups * width, hidden),
        "v_proj": (groups * width, hidden),
        "o_proj": (hidden, count * width),
    }
    for name, shape in shapes.items():
        yield Slice(f"{prefix}{name}.weight", shape, Kind.TRUNK_MATRIX)
        if name in biases and c.values.get("attention_bias"):
            yield Slice(f"{prefix}{name}.bias", shape[:1], Kind.TRUNK_VECTOR)
    if norms != "none":
        for name, of in (("q_norm", count), ("k_norm", groups)):
            size = width if norms == "head" else of * width
            yield Slice(f"{prefix}{name}.weight", (size,), Kind.TRUNK_VECTOR)
