"""The readers of a shard: which site's experts a text is for, at every token, in one pass.

Every reader predicts the next token from the hidden states at the first router (`commons.experts.readers`). By Bayes' rule
what they gave the tokens so far is the posterior over sites, all alike before the first token, with a small chance at
every token that the text becomes another's (fixed share, Herbster and Warmuth 1998). Its shares weigh the sites' experts
in every layer. What the readers themselves foresee is a part of the prediction: as much as the surest site lacks of one,
as mixed experts predict worse than a mixture of predictions, and a tenth where one is sure.

A shard of one site has nothing to choose: it trains its reader, on hidden states that give no gradient back, so that
trunk and experts learn as if there were none. A forward reads rows from their beginning, or goes on from a cache that an
earlier one has filled.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from commons.experts.readers import SPAN
from commons.names import SiteId

SWITCH = 1e-4
"""Chance that a token belongs to another site's text than the one before it."""
LEAST_DOUBT = 0.1
"""Part of the prediction that is the readers' where one site is sure."""
LEAST_SHARE = 1e-3
"""A site that is less likely has no part in a token: its experts compute nothing for it."""


LEAST_LOG = -1e4
"""Least log-probability of a token that is heard."""


class Past(NamedTuple):
    """Of rows that were read, what the next forward on the same cache needs."""

    hidden: Tensor
    """The last SPAN states, [rows, SPAN, H]; zeros before the beginning."""
    posterior: Tensor
    """Over sites after the last token, [rows, sites]."""
    keys: Tensor
    """The cache's own, by which one that was reordered or cut meanwhile is noticed."""


class Readers(nn.Module):
    """The readers present, one for each site of `groups`; those of `trained` have parameters, the others buffers.

    `groups`: each site's experts that are present, as indices in the released model.
    """

    def __init__(
        self,
        groups: Mapping[SiteId, Sequence[int]],
        *,
        trained: SiteId | None,
        width: int,
        hidden: int,
        vocabulary: int,
    ) -> None:
        super().__init__()
        self.groups = tuple(tuple(experts) for experts in groups.values())
        self._trained = trained
        self._names = [f"of_{site}" for site in groups]
        for site in groups:
            self.add_module(f"of_{site}", Reader(width, hidden, vocabulary, frozen=site != trained))
        self._tokens: Tensor | None = None
        self._hidden: Tensor | None = None
        self._shares: Tensor | None = None
        self._foreseen: Tensor | None = None
        self._begun: Past | None = None
        self._ended: tuple[Tensor, Tensor] | None = None
        self._pasts: WeakKeyDictionary[Any, Past] = WeakKeyDictionary()

    @property
    def choose(self) -> bool:
        return len(self.groups) > 1

    def begin(self, tokens: Tensor, cache: Any = None) -> None:
        """A forward over `tokens` [rows, length] begins, after those that `cache` holds.

        Raises ValueError for a cache that no forward of this model has left as it is: its rows would have to be read again.
        """
        self._tokens = tokens
        self._hidden = self._shares = self._foreseen = self._ended = self._begun = None
        if self.choose and cache is not None and cache.get_seq_length():
            self._begun = self._pasts.get(cache)
            if self._begun is None or self._begun.keys is not cache.layers[0].keys:
                raise ValueError(
                    "readers know nothing of these rows: the cache was filled, reordered or cut by something else (as beam "
                    "search does); read them from their beginning"
                )

    def end(self, cache: Any) -> None:
        """The forward is over, and has left `cache`."""
        if self._ended is not None and cache is not None:
            self._pasts[cache] = Past(*self._ended, cache.layers[0].keys)

    def shares(self, hidden: Tensor) -> Tensor | None:
        """Of every site in each token, [tokens, sites]; None with one site.

        Of the first router's `hidden`, [.., H] over all tokens; those after it in a forward get the same.
        """
        if self._hidden is None:
            assert self._tokens is not None, "a forward has begun"
            self._hidden = hidden.detach().view(*self._tokens.shape, -1)
            if self.choose:
                self._read()
        return self._shares

    def shares_by_row(self) -> Tensor:
        """Of every site in each token of the last forward, [rows, length, sites]."""
        assert self._tokens is not None and self._shares is not None, "a router has read the rows"
        return self._shares.view(*self._tokens.shape, -1)

    def mixed(self, logits: Tensor) -> Tensor:
        """The model's next-token logits of the last tokens [rows, some, V] -> log-probabilities of model and readers together."""
        assert self._shares is not None and self._foreseen is not None, "a router has read the rows"
        rows, some = logits.shape[:2]
        doubt = (1 - self._shares.amax(-1)).clamp(min=LEAST_DOUBT).view(rows, -1, 1)[:, -some:]
        both = (torch.log1p(-doubt) + logits.log_softmax(-1), doubt.log() + self._foreseen[:, -some:])
        return torch.logaddexp(*both)

    def loss(self, rows: Tensor) -> Tensor | None:
        """Mean cross-entropy of the trained reader on the last forward's rows [rows, length + 1], first token included."""
        if self._trained is None or self._hidden is None:
            return None
        reader = self.get_submodule(f"of_{self._trained}")
        return F.cross_entropy(reader(_windows(self._hidden)).flatten(0, 1), rows.flatten())

    def _read(self) -> None:
        assert self._tokens is not None and self._hidden is not None, "a forward has begun"
        past = self._begun
        hidden, tokens = _windows(self._hidden, past and past.hidden), self._tokens.unsqueeze(-1)
        found = [bounded(reader(hidden).log_softmax(-1)) for reader in self._readers()]
        heard = torch.stack([f[:, :-1].gather(-1, tokens).squeeze(-1) for f in found], -1)
        after = _posterior(heard, past and past.posterior)
        posterior = torch.where(after < LEAST_SHARE, 0.0, after)
        shares = (posterior / posterior.sum(-1, keepdim=True)).to(hidden.dtype)
        foreseen = torch.full_like(found[0][:, 1:], float("-inf"))
        for n, one in enumerate(found):
            foreseen = torch.logaddexp(foreseen, shares[..., n : n + 1].log() + one[:, 1:])
        self._shares, self._foreseen = shares.flatten(0, 1), foreseen
        self._ended = hidden[:, -1].view(len(hidden), SPAN, -1).flip(1), after[:, -1]

    def _readers(self) -> Iterator[nn.Module]:
        return (self.get_submodule(name) for name in self._names)


class Reader(nn.Module):
    def __init__(self, width: int, hidden: int, vocabulary: int, *, frozen: bool) -> None:
        super().__init__()
        self.up = _Weights({"weight": (width, SPAN * hidden)}, frozen)
        self.out = _Weights({"weight": (vocabulary, width), "bias": (vocabulary,)}, frozen)

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden [.., SPAN H] -> logits of the next token [.., V]; of a row's first one where hidden is 0."""
        up: Any = self.up
        out: Any = self.out
        return F.linear(F.silu(F.linear(hidden, up.weight)), out.weight, out.bias)


class _Weights(nn.Module):
    def __init__(self, shapes: Mapping[str, tuple[int, ...]], frozen: bool) -> None:
        super().__init__()
        for name, shape in shapes.items():
            data = torch.empty(shape)
            if frozen:
                self.register_buffer(name, data)
            else:
                self.register_parameter(name, nn.Parameter(data))


def read_with(shard: nn.Module, readers: Readers) -> None:
    """Let `readers` follow every forward of the shard, and answer in its place where they choose."""

    def before(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        mask = named.get("attention_mask")
        if mask is not None and not bool(mask.all()):
            raise ValueError("readers read whole rows: give rows of one length, without padding")
        readers.begin(named["input_ids"] if "input_ids" in named else given[0], named.get("past_key_values"))

    def after(_: nn.Module, given: tuple[Any, ...], out: Any) -> Any:
        if readers.choose:
            out.logits = readers.mixed(out.logits)
            readers.end(out.past_key_values)
        return out

    shard.readers = readers
    shard.register_forward_pre_hook(before, with_kwargs=True)
    shard.register_forward_hook(after)


def bounded(log_probabilities: Tensor) -> Tensor:
    """What a site sent is finite, what comes of it need not be: then its reader gives the token next to nothing."""
    return log_probabilities.nan_to_num(nan=LEAST_LOG, posinf=LEAST_LOG, neginf=LEAST_LOG).clamp(
        min=LEAST_LOG
    )


def _posterior(heard: Tensor, now: Tensor | None) -> Tensor:
    """Log-probability of each token by each site's reader [rows, length, sites] -> the sites' probabilities after it.

    `now`: before the first of them; None: all alike.
    """
    sites, found = heard.shape[-1], []
    if now is None:
        now = heard.new_full((len(heard), sites), 1 / sites, dtype=torch.float64)
    for one in heard.double().unbind(1):
        now = (((1 - SWITCH) * now + SWITCH / sites).log() + one).softmax(-1)
        found.append(now)
    return torch.stack(found, 1)


def levelled(hidden: Tensor) -> Tensor:
    """States that come from no norm, at the length of those that do."""
    return F.rms_norm(hidden, hidden.shape[-1:])


def _windows(hidden: Tensor, before: Tensor | None = None) -> Tensor:
    """[rows, length, H] -> [rows, length + 1, SPAN H]: what is read before each token and after the last, the nearest first.

    `before` [rows, SPAN, H]: the states before these; None: nothing, as at a row's beginning.
    """
    length = hidden.shape[1]
    whole = F.pad(hidden, (0, 0, SPAN, 0)) if before is None else torch.cat([before, hidden], 1)
    return torch.cat([whole[:, SPAN - 1 - n : SPAN + length - n] for n in range(SPAN)], -1)
