"""The router of a shard: which of the experts present a token goes to, and with what gates.

A shard holds the whole router, one row per expert of the model, whichever experts it holds. So the gate of an expert
that is present is what it is in the released model, also where all rows take part in it (softmax); absent experts are
ruled out of the choice alone, and their rows cannot learn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from commons.experts.family import Routing


class Router(nn.Module):
    """The `k` best of the present experts by score (+ selection bias); gates from scores alone.

    Equal to the routers of transformers' families, with one group of experts. Absent experts are at -inf in the choice,
    through a mask that is never saved. Holding fewer experts than `k`, it chooses all it has.
    """

    def __init__(
        self, routing: Routing, *, hidden: int, experts: int, k: int, present: Sequence[int], biased: bool
    ) -> None:
        super().__init__()
        self.routing = routing
        self.present = tuple(present)
        self.fixed_rows = tuple(sorted(set(range(experts)) - set(present)))
        """Rows of absent experts: they get no gradient, and nothing else may move them."""
        self.k = min(k, len(present))
        self.weight = nn.Parameter(torch.empty(experts, hidden))
        self.e_score_correction_bias = nn.Buffer(torch.empty(experts)) if biased else None
        self.absent = nn.Buffer(torch.empty(experts), persistent=False)
        self.shares: Callable[[Tensor], Tensor | None] = lambda hidden: None
        """Of each group of experts in every token, [T, groups], once readers follow the forward (`workers.readers`)."""
        self.groups: tuple[tuple[int, ...], ...] = ()

    def forbid_absent(self) -> None:
        """Fill the mask; called once, after memory is there."""
        self.absent.fill_(float("-inf"))
        self.absent[list(self.present)] = 0.0

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """hidden [.., H] -> logits [T, E], gates [T, k], chosen experts [T, k].

        With shares of more than one group: k of each, [T, groups k], its gates times its share.
        """
        shares = self.shares(hidden)
        with torch.autocast(hidden.device.type, enabled=False):
            logits = self._logits(hidden.flatten(0, -2).float())
        scores = self._scores(logits)
        with torch.no_grad():
            if self.e_score_correction_bias is None:
                preference = logits + self.absent
            else:
                preference = scores + (self.e_score_correction_bias + self.absent)
        if shares is None:
            gates, chosen = self._best(scores, preference, range(len(preference[0])))
            return logits, gates, chosen
        found = [self._best(scores, preference, group) for group in self.groups]
        gates = torch.cat([g * shares[:, n : n + 1] for n, (g, _) in enumerate(found)], -1)
        return logits, gates, torch.cat([chosen for _, chosen in found], -1)

    def _best(self, scores: Tensor, preference: Tensor, group: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Gates and indices of the preferred experts of a group."""
        if len(group) == preference.shape[1]:
            chosen = torch.topk(preference, self.k, sorted=False).indices
        else:
            among = torch.tensor(group, device=preference.device)
            best = torch.topk(preference.index_select(1, among), min(self.k, len(group)), sorted=False)
            chosen = among[best.indices]
        gates = scores.gather(1, chosen)
        if self.routing.normalised:
            gates = gates / (gates.sum(-1, keepdim=True) + 1e-20)
        return gates * self.routing.scale, chosen

    def _logits(self, hidden: Tensor) -> Tensor:
        """Of absent experts 0, where no gate depends on theirs: how many there are then has no part in a single bit."""
        if not self.fixed_rows or self.routing.scores != "sigmoid":
            return F.linear(hidden, self.weight)
        present = self.absent.new_tensor(self.present, dtype=torch.long)
        some = F.linear(hidden, self.weight.index_select(0, present))
        return some.new_zeros(len(hidden), len(self.weight)).index_copy(1, present, some)

    def _scores(self, logits: Tensor) -> Tensor:
        if self.routing.scores == "sigmoid":
            return logits.sigmoid()
        if self.fixed_rows:
            logits = torch.where(self.absent == 0, logits, logits.detach())
        return logits.softmax(-1)
