"""A tiny checkpoint as it is published."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from commons.experts.tokenizer import FILE
from tests.support.tokenizers import trained


def published_olmoe(folder: Path) -> Path:
    """OLMoE's family as transformers publishes it, in `folder`: fp16, a padded vocabulary, five experts."""
    config = AutoConfig.for_model(
        "olmoe", vocab_size=352, hidden_size=16, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        num_experts=5, num_experts_per_tok=2, max_position_embeddings=64, rope_theta=500.0,
    )  # fmt: skip
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).to(torch.float16).save_pretrained(folder)
    (folder / FILE).write_bytes(trained(folder))
    return folder
