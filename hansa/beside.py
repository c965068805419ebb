"""A model with the seed it grew from beside it: text that the model reads worse than its seed did falls to the seed.

Both read every text and foresee each token. By Bayes' rule what they gave the tokens so far says how far each is believed: the
seed a fifth at first, and with a small chance at every token that it turns (fixed share, Herbster and Warmuth 1998). So a row
costs at most ln 5 = 1.6 nats more than with the seed alone and ln 5/4 = 0.2 more than with the model alone, whatever was trained
since or taken out: after an opt-out a domain is read no worse than before the run. The seed is nobody's, and nothing
trains it. The price is a second model in memory, and its pass over every text.
"""

from __future__ import annotations

from math import log
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

SHARE = 0.2
"""Of the belief that is the seed's before a row's first token."""
SWITCH = 1e-4
"""Chance at every token that the belief begins anew."""


class _Past(NamedTuple):
    """Of rows that were read, what the next forward on the same cache needs."""

    cache: Any
    """The seed's own."""
    ahead: Tensor
    """Log-probabilities of the next token by both, [2, rows, V]."""
    belief: Tensor
    """In both after the last token, in logarithms, [2, rows]."""
    keys: Tensor
    """The model's cache's own, by which one that was reordered or cut meanwhile is noticed."""


def mixed(both: Tensor, heard: Tensor, belief: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """What model and seed, in this order, say together.

    `both` [2, rows, length, V]: log-probabilities of what comes after each token. `heard` [2, rows, length]: those that each
    token was given before it came, 0 for one that nobody foresaw. `belief` [2, rows]: in logarithms, before the first token;
    None: at a row's beginning. Answers log-probabilities [rows, length, V] and the belief after the last token.
    """
    first = torch.tensor([[log(1 - SHARE)], [log(SHARE)]], dtype=torch.float64, device=both.device)
    now = first.expand(-1, both.shape[1]) if belief is None else belief
    found = []
    for one in heard.double().unbind(2):
        now = torch.logaddexp((now + one).log_softmax(0) + log(1 - SWITCH), first + log(SWITCH))
        found.append(now)
    beliefs = torch.stack(found, 2).to(both.dtype)
    return torch.logsumexp(beliefs.unsqueeze(-1) + both, 0), now


def foreseen(both: Tensor, tokens: Tensor, before: Tensor | None = None) -> Tensor:
    """What each of `tokens` [rows, length] was given before it came, [2, rows, length], where `both` [2, rows, length, V] comes
    after them. `before` [2, rows, V]: what came before the first; None: nobody foresaw it."""
    first = both.new_zeros(both[:, :, 0].shape) if before is None else before
    ahead = torch.cat([first.unsqueeze(2), both[:, :, :-1]], 2)
    return ahead.gather(-1, tokens.unsqueeze(-1).expand(2, -1, -1, 1)).squeeze(-1)


def put_beside(model: nn.Module, seed: nn.Module) -> nn.Module:
    """The model, whose logits are log-probabilities of both from now on: of whole rows, or on from a cache it filled itself.

    Raises, when called, ValueError for another cache or for padded rows.
    """
    pair = _Pair(seed)
    model.seed = seed
    model.register_forward_pre_hook(pair.before, with_kwargs=True)
    model.register_forward_hook(pair.after, with_kwargs=True)
    return model


class _Pair:
    def __init__(self, seed: nn.Module) -> None:
        self._seed = seed
        self._pasts: WeakKeyDictionary[Any, _Past] = WeakKeyDictionary()
        self._begun: _Past | None = None

    def before(self, _: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, Any]:
        cache, mask = named.get("past_key_values"), named.get("attention_mask")
        if mask is not None and not bool(mask.all()):
            raise ValueError("model and seed read whole rows: give rows of one length, without padding")
        self._begun = None
        if cache is not None and cache.get_seq_length():
            self._begun = self._pasts.get(cache)
            if self._begun is None or self._begun.keys is not cache.layers[0].keys:
                raise ValueError(
                    "the seed has not read what the cache holds; read these rows from their beginning"
                )
        return given, named | {"logits_to_keep": 0}

    def after(self, _: nn.Module, given: tuple[Any, ...], named: dict[str, Any], out: Any) -> Any:
        tokens = named["input_ids"] if "input_ids" in named else given[0]
        past, cache = self._begun, out.past_key_values
        beside = self._seed(
            input_ids=tokens, past_key_values=past.cache if past else None, use_cache=cache is not None
        )
        both = torch.stack([out.logits, beside.logits]).float().log_softmax(-1)
        heard = foreseen(both, tokens, past.ahead if past else None)
        out.logits, belief = mixed(both, heard, past.belief if past else None)
        if cache is not None:
            self._pasts[cache] = _Past(beside.past_key_values, both[:, :, -1], belief, cache.layers[0].keys)
        return out
