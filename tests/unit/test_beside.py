"""A model with its seed beside it: neither is ever far behind the other's better, and a cache changes nothing."""

from __future__ import annotations

from math import log

import numpy as np
import pytest
import torch
from torch import nn

from hansa.beside import SHARE, SWITCH, put_beside
from tests.unit.test_trainer import MAP, MODEL
from workers.shard import build_shard, initial_state


def shard(seed: int) -> nn.Module:
    state = {n: 4 * a for n, a in initial_state(MODEL, MAP, seed=seed).items()}  # sure enough to differ
    return build_shard(MODEL, MAP, own=MAP.experts, guests=False, state=state).eval()


def rows(length: int = 24) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 250, (3, length)))


def nats(model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """Of each row but its first token."""
    with torch.inference_mode():
        said = model(input_ids=tokens[:, :-1], use_cache=False).logits.log_softmax(-1)
    return -said.gather(-1, tokens[:, 1:, None]).squeeze(-1).sum(1)


def test_a_row_costs_little_more_than_with_the_better_of_the_two() -> None:
    alone, seed, both = nats(shard(1), rows()), nats(shard(2), rows()), shard(1)
    put_beside(both, shard(2))
    found, turning = nats(both, rows()), -24 * log(1 - SWITCH)
    assert (alone - seed).abs().min() > 3, "they differ enough to tell"
    assert (found <= seed - log(SHARE) + turning + 1e-3).all()
    assert (found <= alone - log(1 - SHARE) + turning + 1e-3).all()
    with torch.inference_mode():
        said = both(input_ids=rows(), use_cache=False).logits
    torch.testing.assert_close(said.logsumexp(-1), torch.zeros(said.shape[:2]), atol=1e-5, rtol=0)


def test_with_a_cache_both_read_on_and_a_cache_of_others_is_refused() -> None:
    both, tokens = put_beside(shard(1), shard(2)), rows(12)
    with torch.inference_mode():
        at_once = both(input_ids=tokens, use_cache=False).logits
        cache, found = None, []
        for piece in tokens.split([5, 1, 6], 1):
            out = both(input_ids=piece, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            found.append(out.logits)
        torch.testing.assert_close(torch.cat(found, 1), at_once, atol=1e-4, rtol=0)
        made = both.generate(tokens, max_new_tokens=3, do_sample=False)  # type: ignore[operator]
        assert torch.equal(made[:, 12], at_once[:, -1].argmax(-1))
        cache.crop(-8)
        with pytest.raises(ValueError, match="has not read what the cache holds"):
            both(input_ids=tokens[:, 4:], past_key_values=cache, use_cache=True)
        with pytest.raises(ValueError, match="without padding"):
            both(input_ids=tokens, attention_mask=(tokens > 80).long(), use_cache=False)
