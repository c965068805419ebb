"""A published checkpoint's config.json and the charter's `[model]`: the one from the other, and where they differ.

Weights trained under one configuration are another model under another; what a family here does not have, such as scaled
rotary embeddings or experts chosen by groups, is named and not left out in silence.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from commons.charter import Model
from commons.experts.families import FAMILIES
from commons.experts.settings import LARGEST, SettingError, Value

_NO_MATTER = frozenset(
    {
        "architectures",
        "attention_dropout",
        "bos_token_id",
        "dtype",
        "eos_token_id",
        "initializer_range",
        "max_position_embeddings",
        "num_nextn_predict_layers",
        "pad_token_id",
        "rope_parameters",
        "use_cache",
    }
)
"""Keys of config.json that change nothing of what the weights compute on a text that fits the context."""
_UNKNOWN = ("rope_scaling", "clip_qkv")
"""Keys that a checkpoint may set and that nothing here carries out."""


_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
"""How releases of transformers call the number of experts, whatever the family calls it."""


def model_of(published: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
    """`[model]` of a charter for this config.json, without a tokenizer, and how many experts it has.

    Raises SettingError naming a key that no charter can say.
    """
    family = FAMILIES.get(str(published.get("model_type")))
    if family is None:
        raise SettingError(
            "model_type", f"is {published.get('model_type')!r}, a charter takes {', '.join(FAMILIES)}"
        )
    said = {**published, **_rope(published)}
    config: dict[str, Value] = {}
    for key in family.keys:
        if (value := said.get(key)) is not None:
            config[key] = tuple(value) if isinstance(value, list) else value
    if isinstance(context := config.get("max_position_embeddings"), int):
        config["max_position_embeddings"] = min(context, LARGEST)
    experts = next(
        (n for key in (family.experts_key, *_EXPERTS) if isinstance(n := said.get(key), int)), None
    )
    if experts is None:
        raise SettingError(family.experts_key, "is missing")
    family.settings(config)
    return {"family": family.name, "config": config}, experts


def differences(model: Model, experts: int, published: Mapping[str, Any]) -> Iterator[str]:
    """What config.json says otherwise than a charter's model of so many experts, each in a few words. Raises SettingError."""
    ours = FAMILIES[model.family].hf_config(model.config, experts)
    for key, value in ours.items():
        said = published.get(key)
        if key not in _NO_MATTER and said is not None and said != value:
            yield f"{key} is {_short(said)} there and {_short(value)} in the charter's model"
    mine = ours["rope_parameters"]
    assert isinstance(mine, dict)
    for key, value in _rope(published).items():
        if key == "rope_type" and value not in (None, "default"):
            yield f"its rotary embeddings are scaled ({_short(value)}), and those here are plain"
        elif key in mine and key != "rope_type" and value is not None and value != mine[key]:
            yield f"{key} is {_short(value)} there and {_short(mine[key])} in the charter's model"
    for key in _UNKNOWN:
        if published.get(key) is not None:
            yield f"it asks for {key} {_short(published[key])}, which is not here"


def _rope(published: Mapping[str, Any]) -> dict[str, Any]:
    """Of rotary embeddings, from where releases of transformers before and after 5 write it."""
    old = {k: published[k] for k in ("rope_theta", "partial_rotary_factor") if k in published}
    new = published.get("rope_parameters")
    return {**old, **new} if isinstance(new, Mapping) else old


def _short(value: object) -> str:
    return repr(value)[:80]
