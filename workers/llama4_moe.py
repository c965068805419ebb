"""Llama 4's mixture of experts, with routed tokens only.

The class of transformers runs every expert on every token and is not behind its experts interface. This one holds the
same modules under the same names; only what it computes differs. Loaded where a Llama 4 is, and nowhere else.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.models.llama4.modeling_llama4 import Llama4TextMoe

from workers.routed import dispatch, products, routes, total


class RoutedLlama4Moe(Llama4TextMoe):  # type: ignore[misc]
    """A `Llama4TextMoe` that becomes this class keeps its weights."""

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """hidden [.., H] -> ([T, H], router logits [T, E]). The gate multiplies what an expert is given."""
        hidden = hidden.reshape(-1, self.hidden_dim)
        scores, logits = self.router(hidden)
        chosen = torch.topk(logits, self.top_k, dim=1).indices
        where = routes(chosen, self.num_experts)
        counts = where.counts.tolist()
        gates = scores.gather(1, chosen).flatten().index_select(0, where.order)
        rows = dispatch(hidden, where) * gates.unsqueeze(1)
        experts = self.experts
        gate, up = products(rows, experts.gate_up_proj, counts, transposed=True).chunk(2, dim=-1)
        done = products(up * experts.act_fn(gate), experts.down_proj, counts, transposed=True)
        return self.shared_expert(hidden) + total(done, where, self.top_k), logits


def compute_routed_only(model: nn.Module) -> None:
    """Turn every mixture of the model into a `RoutedLlama4Moe`, in place."""
    for module in model.modules():
        if type(module) is Llama4TextMoe:
            module.__class__ = RoutedLlama4Moe
