"""What training minimises and evaluation reports: next-byte cross-entropy in nats per byte."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workers.data import Rows


def next_byte_loss(shard: nn.Module, rows: Tensor) -> Tensor:
    """Mean cross-entropy of `rows` [rows, length + 1], a scalar in nats per byte."""
    logits = shard(input_ids=rows[:, :-1], use_cache=False).logits
    return F.cross_entropy(logits.flatten(0, 1).float(), rows[:, 1:].flatten())


def held_out_loss(shard: nn.Module, rows: Rows, *, batch: int = 32) -> float:
    """Mean next-byte loss over all of `rows`, without gradients; leaves the shard as it was."""
    device = next(shard.parameters()).device
    was_training = shard.training
    shard.eval()
    total = 0.0
    with torch.inference_mode():
        for part in np.array_split(rows, -(-len(rows) // batch)):
            total += float(next_byte_loss(shard, torch.from_numpy(part).to(device))) * len(part)
    shard.train(was_training)
    return total / len(rows)
