"""Every Hugging Face family a consortium can train, by `model_type`."""

from __future__ import annotations

from collections.abc import Mapping

from commons.experts.deepseek_v3 import DEEPSEEK_V3
from commons.experts.family import Family
from commons.experts.glm4_moe import GLM4_MOE
from commons.experts.llama4_text import LLAMA4_TEXT
from commons.experts.mixtral import MIXTRAL
from commons.experts.olmoe import FLEX_OLMO, OLMOE
from commons.experts.qwen3_moe import QWEN3_MOE

FAMILIES: Mapping[str, Family] = {
    family.name: family
    for family in (GLM4_MOE, LLAMA4_TEXT, DEEPSEEK_V3, QWEN3_MOE, MIXTRAL, OLMOE, FLEX_OLMO)
}
