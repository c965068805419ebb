"""A model whose sites have layers of their own: what they share once, then a tail for every site that a text may be of.

Sites are alike up to the first router, or up to the first own layer where that comes before it, and there the readers
listen. What comes after, with a site's experts and own layers, is the site's tail: its shard to the bit. The readers' shares
weigh what the tails say of the next token: predictions are mixed, not hidden states, as those of different trunks do not fit
each other. A tail reads a row as far as its site has a share somewhere, and goes on from there, on what was kept of the
shared part, when the site has one again; so a text that is surely one site's costs what that site's shard costs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from workers.readers import Readers, bounded, levelled, read_with


class _Past(NamedTuple):
    """Of rows that were read, what the next forward on the same cache needs."""

    states: Tensor
    """What the shared part gave, [rows, length, H]."""
    caches: dict[str, Any]
    """The tails' own, of as much of the rows as each has read."""


@dataclass(frozen=True)
class Cut:
    """Where sites part: `whole` layers are shared, and the attention of the next one where it parts at a router."""

    whole: int
    router: bool

    @classmethod
    def before(cls, own_from: int, first: int) -> Cut:
        """`first`: the first layer with experts."""
        return cls(min(own_from, first), own_from > first)


def cut_early(shard: nn.Module, cut: Cut, block: str, *, pair: bool, readers: Readers) -> None:
    """Leave of a shard without experts what comes before the cut: its logits are then what tails go on from, [rows, length, H].

    `block`: the attribute of a layer that holds the experts; `pair`: it answers outputs and logits.
    """
    model: Any = shard
    model.lm_head, layers = nn.Identity(), model.model.layers
    if cut.router:
        model.model.layers, model.model.norm = layers[: cut.whole + 1], nn.Identity()
        setattr(layers[cut.whole], block, _Listening(readers, pair=pair))
    else:
        model.model.layers = layers[: cut.whole] if cut.whole else nn.ModuleList([_Passed(0)])
        model.model.norm = _Heard(readers)


def cut_tail(shard: nn.Module, cut: Cut) -> None:
    """Leave of a shard what comes after the cut; it takes `inputs_embeds`."""
    layers = cast(Any, shard).model.layers
    for layer in range(cut.whole):
        layers[layer] = _Passed(layer)
    if cut.router:
        layers[cut.whole].self_attn = _Silent(cut.whole)


def hear_before(shard: nn.Module, cut: Cut, readers: Readers) -> None:
    """Let the readers of a site's shard listen where those of all listen. At a router they do anyway."""
    if not cut.router:
        layer = cast(Any, shard).model.layers[cut.whole]

        def before(_: nn.Module, given: tuple[Any, ...]) -> None:
            readers.shares(levelled(given[0]))

        layer.register_forward_pre_hook(before)


def join(early: nn.Module, tails: Mapping[str, nn.Module], readers: Readers) -> None:
    """Let `early` answer with what tails and readers say together. `tails`: of each site, in the readers' order.

    Called, it raises as readers do for rows and caches that cannot be read.
    """
    both = Tails(tails, readers)
    early.tails = both
    early.register_forward_pre_hook(both.before, with_kwargs=True)
    early.register_forward_hook(both.after)
    read_with(early, readers)


class Tails(nn.Module):
    def __init__(self, tails: Mapping[str, nn.Module], readers: Readers) -> None:
        super().__init__()
        self._names = [f"of_{site}" for site in tails]
        for name, tail in zip(self._names, tails.values(), strict=True):
            self.add_module(name, tail)
        self._shares = readers.shares_by_row
        self._pasts: WeakKeyDictionary[Any, _Past] = WeakKeyDictionary()
        self._begun: _Past | None = None

    def before(self, _: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, Any]:
        cache = named.get("past_key_values")
        filled = cache is not None and cache.get_seq_length()
        self._begun = self._pasts.get(cache) if filled else None
        return given, named | {"logits_to_keep": 0}

    def after(self, _: nn.Module, given: tuple[Any, ...], out: Any) -> Any:
        now, past, cache = out.logits, self._begun, out.past_key_values
        states = now if past is None else torch.cat([past.states, now], 1)
        caches = dict(past.caches) if past else {}
        out.logits = self._mixed(states, states.shape[1] - now.shape[1], caches, keep=cache is not None)
        if cache is not None:
            self._pasts[cache] = _Past(states, caches)
        return out

    def _mixed(self, states: Tensor, begun: int, caches: dict[str, Any], *, keep: bool) -> Tensor:
        """Log-probabilities of the next token from `begun` on, [rows, some, V]; `caches` are brought up to date."""
        shares = self._shares().float()
        found: Tensor | None = None
        for n, name in enumerate(self._names):
            share = shares[..., n]
            wanted = (share > 0).any(0).nonzero()
            if not len(wanted):
                continue
            some = int(wanted[-1]) + 1
            said = self._read(name, states[:, : begun + some], caches, keep=keep)[:, -some:]
            said = bounded(said.log_softmax(-1)) + share[:, :some, None].log()
            if found is None:
                found = said.new_full((*share.shape, said.shape[-1]), float("-inf"))
            found[:, :some] = torch.logaddexp(found[:, :some], said)
        assert found is not None, "shares sum to one"
        return found

    def _read(self, name: str, states: Tensor, caches: dict[str, Any], *, keep: bool) -> Tensor:
        """A tail's logits of what it has not read of `states`, [rows, some, V]."""
        tail, cache = self.get_submodule(name), caches.get(name)
        done = cache.get_seq_length() if cache is not None else 0
        out: Any = tail(inputs_embeds=states[:, done:], past_key_values=cache, use_cache=keep)
        if keep:
            caches[name] = out.past_key_values
        logits: Tensor = out.logits.float()
        return logits


class _Listening(nn.Module):
    """In place of a block of experts: the readers hear what it is given, and it adds nothing."""

    def __init__(self, readers: Readers, *, pair: bool) -> None:
        super().__init__()
        self._hear, self._pair = readers.shares, pair

    def forward(self, hidden: Tensor) -> Any:
        self._hear(hidden)
        nothing = torch.zeros_like(hidden)
        return (nothing, None) if self._pair else nothing


class _Heard(nn.Module):
    """In place of a last norm: the readers hear what it is given, and it goes on as it is."""

    def __init__(self, readers: Readers) -> None:
        super().__init__()
        self._hear = readers.shares

    def forward(self, hidden: Tensor) -> Tensor:
        self._hear(levelled(hidden))
        return hidden


class _Passed(nn.Module):
    """In place of a decoder layer that all share."""

    def __init__(self, layer: int) -> None:
        super().__init__()
        self._layer = layer

    def forward(self, hidden_states: Tensor, **named: Any) -> Tensor:
        _count(named.get("past_key_values"), self._layer, hidden_states)
        return hidden_states


class _Silent(_Passed):
    """In place of an attention that all share: it adds nothing."""

    def forward(self, hidden_states: Tensor, **named: Any) -> Any:
        return torch.zeros_like(super().forward(hidden_states, **named)), None


def _count(cache: Any, layer: int, hidden: Tensor) -> None:
    """A cache knows by the first layers how much was read: an empty key for each token."""
    if cache is not None:
        empty = hidden.new_zeros(len(hidden), 1, hidden.shape[1], 1)
        cache.update(empty, empty, layer)
