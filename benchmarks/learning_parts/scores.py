"""How good a model is: loss per domain, held to its owner's experts (oracle routing), and where its tokens went.

All losses are nats per byte on evenly spread rows of a held-out side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.learning_parts.combining import State, mean
from commons.charter import Model
from commons.experts.map import ExpertMap
from commons.names import ExpertId, SiteId
from workers.data import Rows, Source
from workers.objectives import as_tokens, held_out_loss
from workers.shard import build_shard, compute_device, routed_tokens

ROWS = 256
_BATCH = 32
COMMITTED = 16
"""Bytes after which a row's experts are chosen for good."""
Losses = dict[str, float]


def rows_of(texts: Mapping[str, Source], length: int, limit: int = ROWS) -> dict[str, Rows]:
    return {domain: text.held_out_rows(length=length, limit=limit) for domain, text in texts.items()}


def losses(model: Model, expert_map: ExpertMap, state: State, rows: Mapping[str, Rows]) -> Losses:
    """Of the whole model, by domain."""
    shard = _shard(model, expert_map, own=expert_map.experts, guests=False, state=state)
    return {domain: held_out_loss(shard, some) for domain, some in rows.items()}


def oracle_losses(
    model: Model,
    expert_map: ExpertMap,
    states: Mapping[str, State],
    rows: Mapping[str, Rows],
    sites: Mapping[str, Sequence[str]],
) -> Losses:
    """Each domain held to the experts of its `sites`: what routing could reach if it knew the domain. `states`: by site."""
    found: Losses = {}
    for domain, some in rows.items():
        own = [e for s in sites[domain] for e in expert_map.experts_of(SiteId(s))]
        shard = _shard(model, expert_map, own=own, guests=False, state=states[sites[domain][0]])
        found[domain] = held_out_loss(shard, some)
    return found


def load(
    model: Model, expert_map: ExpertMap, state: State, rows: Mapping[str, Rows]
) -> dict[str, dict[ExpertId, float]]:
    """Domain -> expert -> its share of the domain's routed tokens, over all layers."""
    shard = _shard(model, expert_map, own=expert_map.experts, guests=False, state=state)
    found = {}
    for domain, some in rows.items():
        routed_tokens(shard)
        with torch.inference_mode():
            shard(input_ids=as_tokens(some[:64], shard)[:, :-1], use_cache=False)
        counts = np.sum(routed_tokens(shard), axis=0)
        found[domain] = {
            e: round(int(n) / int(counts.sum()), 4) for e, n in zip(expert_map.experts, counts, strict=True)
        }
    return found


def soup(states: Sequence[State]) -> State:
    """The mean of whole models."""
    return {name: mean([s[name] for s in states], None) for name in states[0]}


def ensemble_losses(
    model: Model, expert_map: ExpertMap, states: Sequence[State], rows: Mapping[str, Rows]
) -> Losses:
    """Of several whole models, mixed by posterior (Branch-Train-Merge, arXiv 2208.03306)."""
    shards = [_shard(model, expert_map, own=expert_map.experts, guests=False, state=s) for s in states]
    return {domain: _mixed_loss(shards, some) for domain, some in rows.items()}


def posterior_losses(
    model: Model, expert_map: ExpertMap, states: Mapping[str, State], rows: Mapping[str, Rows]
) -> Losses:
    """Of one model whose experts are chosen by site: each site's experts on the trunk, mixed by posterior. `states`: by site.

    A router that reads the bytes before in place of one hidden state, and is told nothing of the domain.
    """
    shards = _by_site(model, expert_map, states)
    return {domain: _mixed_loss(shards, some) for domain, some in rows.items()}


def committed_losses(
    model: Model, expert_map: ExpertMap, states: Mapping[str, State], rows: Mapping[str, Rows]
) -> Losses:
    """As `posterior_losses`, but after COMMITTED bytes of a row the likeliest site's experts alone go on."""
    shards = _by_site(model, expert_map, states)
    return {domain: _mixed_loss(shards, some, commit=COMMITTED) for domain, some in rows.items()}


def _by_site(model: Model, expert_map: ExpertMap, states: Mapping[str, State]) -> list[nn.Module]:
    return [
        _shard(model, expert_map, own=expert_map.experts_of(SiteId(site)), guests=False, state=state)
        for site, state in states.items()
    ]


def _mixed_loss(shards: Sequence[nn.Module], rows: Rows, *, commit: int | None = None) -> float:
    """Probabilities weighted by how likely each shard found the row's bytes so far; all alike before the first."""
    total = 0.0
    for part in np.array_split(rows, -(-len(rows) // _BATCH)):
        tokens = as_tokens(part, shards[0])
        with torch.inference_mode():
            each = torch.stack([_log_probabilities(shard.eval(), tokens) for shard in shards])
        before = F.pad(each.cumsum(-1), (1, 0))[..., :-1]
        shares = before.log_softmax(0)
        if commit is not None:
            one = F.one_hot(before[..., commit].argmax(0), len(shards)).T.log()
            shares[..., commit:] = one.unsqueeze(-1)
        total -= float((shares + each).logsumexp(0).sum())
    return total / float(rows.shape[0] * (rows.shape[1] - 1))


def _shard(
    model: Model, expert_map: ExpertMap, *, own: Sequence[str], guests: bool, state: State
) -> nn.Module:
    """Where this machine computes."""
    shard = build_shard(model, expert_map, own=[ExpertId(e) for e in own], guests=guests, state=state)
    return shard.to(compute_device())


def macro(found: Mapping[str, float]) -> float:
    return float(np.mean(list(found.values())))


def gap_percent(ours: float, central: float) -> float:
    return 100 * (ours / central - 1)


def gap_closed(ours: float, alone: float, central: float) -> float:
    """1: as good as central; 0: as good as alone."""
    return (alone - ours) / (alone - central)


def _log_probabilities(shard: nn.Module, rows: torch.Tensor) -> torch.Tensor:
    """Of the byte that came, [rows, length]."""
    logits = shard(input_ids=rows[:, :-1], use_cache=False).logits.float()
    return -F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten(), reduction="none").view(len(rows), -1)
