"""What training minimises, next-token cross-entropy, and what evaluation reports: the same in nats per byte of text."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from workers.data import CorpusError, HeldOut, Rows
from workers.readers import Readers


def as_tokens(rows: Rows, shard: nn.Module) -> Tensor:
    """`rows` [rows, length + 1] on the shard's device. Raises CorpusError for what its model cannot read."""
    config: Any = shard.config
    length, context = rows.shape[1] - 1, config.max_position_embeddings
    if length > context:
        raise CorpusError(
            f"sequences are {length} tokens long and the model's context is {context} (max_position_embeddings); "
            "the charter's sequence_length must not exceed it"
        )
    lowest, highest = int(rows.min()), int(rows.max())
    if lowest < 0 or highest >= config.vocab_size:
        raise CorpusError(
            f"the text holds token {lowest if lowest < 0 else highest} and the model's vocabulary is 0 to "
            f"{config.vocab_size - 1}; encode the text with the tokenizer of the model"
        )
    return torch.from_numpy(rows).to(next(shard.parameters()).device)


PORTIONS_FROM = 1 << 14
"""Vocabulary from which on logits are made of some tokens at a time, and made again on the way back: of 8 sequences of 1,024
tokens and 150,000 logits each, all at once would take 5 GB, and their gradient as much."""
PORTION = 1 << 26
"""Logits made at a time."""


def next_token_loss(shard: nn.Module, rows: Tensor) -> Tensor:
    """Mean cross-entropy of `rows` [rows, length + 1], a scalar in nats per token."""
    inputs, targets, vocabulary = rows[:, :-1], rows[:, 1:].flatten(), cast(Any, shard).config.vocab_size
    if vocabulary < PORTIONS_FROM or _answers_with_others(shard):
        logits = shard(input_ids=inputs, use_cache=False).logits
        return F.cross_entropy(logits.flatten(0, 1).float(), targets)
    hidden, count = _hidden(shard, inputs).flatten(0, 1), max(1, PORTION // vocabulary)
    total = torch.zeros((), device=rows.device)
    for some, came in zip(torch.split(hidden, count), torch.split(targets, count), strict=True):
        total = total + checkpoint(_summed, shard.lm_head, some, came, use_reentrant=False)
    return total / len(targets)


def _answers_with_others(shard: nn.Module) -> bool:
    """Whether its logits are not of its own head alone: readers choose, or its seed is beside it."""
    readers = cast(Readers | None, getattr(shard, "readers", None))
    return (readers is not None and readers.choose) or hasattr(shard, "seed")


def _hidden(shard: nn.Module, inputs: Tensor) -> Tensor:
    """What the head is given, [rows, length, H], by a forward of the whole shard with the logits of the last token alone."""
    held: list[Tensor] = []
    hook = shard.get_submodule("model").register_forward_hook(
        lambda _, __, out: held.append(out.last_hidden_state)
    )
    try:
        shard(input_ids=inputs, use_cache=False, logits_to_keep=1)
    finally:
        hook.remove()
    return held[0]


def _summed(head: nn.Module, hidden: Tensor, came: Tensor) -> Tensor:
    return F.cross_entropy(head(hidden).float(), came, reduction="sum")


def with_reader(objective: Tensor, shard: nn.Module, rows: Tensor) -> Tensor:
    """What a step goes down: the objective of the forward just made and, apart from it, the loss of the reader trained here."""
    readers = cast(Readers | None, getattr(shard, "readers", None))
    reading = readers.loss(rows) if readers is not None else None
    return objective if reading is None else objective + reading


def loss_on(shard: nn.Module, text: HeldOut, *, length: int, limit: int) -> float:
    """Nats per byte over at most `limit` rows of what is held out: of all their tokens, by the bytes these stand for.

    Raises CorpusError as `as_tokens` does.
    """
    rows = text.held_out_rows(length=length, limit=limit)
    return held_out_loss(shard, rows) / text.encoder.bytes_per_token(rows[:, 1:])


def held_out_loss(shard: nn.Module, rows: Rows, *, batch: int = 32) -> float:
    """Mean next-token loss over all of `rows`, without gradients; leaves the shard as it was.

    Raises CorpusError as `as_tokens` does.
    """
    was_training = shard.training
    shard.eval()
    total = 0.0
    with torch.inference_mode():
        for part in np.array_split(rows, -(-len(rows) // batch)):
            total += float(next_token_loss(shard, as_tokens(part, shard))) * len(part)
    shard.train(was_training)
    return total / len(rows)
