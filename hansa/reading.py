"""What a model says of text, token by token: by its own router, or with its experts chosen by what was read so far; its seed
beside it or not.

Every row begins anew. Knows nothing of why somebody asks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from commons.charter import Model
from commons.experts.map import ExpertMap
from hansa.beside import foreseen, mixed
from workers.data import Rows
from workers.encoder import BYTES, Encoder
from workers.objectives import as_tokens
from workers.shard import build_shard

Array = NDArray[np.float32]
_BATCH = 32


@dataclass(frozen=True)
class Read:
    """Of each token of each row but the first, [rows, length]."""

    log_probabilities: NDArray[np.float64]
    """Natural logarithm of what the model gave to the token that came."""
    likeliest: NDArray[np.bool_]
    """Whether no other token had more. A greedy continuation is the text exactly as long as this holds."""
    bytes: NDArray[np.int64]
    """Of text, that each token stands for."""

    @property
    def losses(self) -> NDArray[np.float64]:
        """Nats per byte of each row."""
        losses: NDArray[np.float64] = -self.log_probabilities.mean(1) / self.bytes.mean(1)
        return losses

    @property
    def loss(self) -> float:
        """Nats per byte of all rows together."""
        return float((self.losses * (self.bytes.mean(1) / self.bytes.mean())).mean())


class Reader:
    """A whole model in memory, or, `by_site`, its trunk once for every owner of experts."""

    def __init__(
        self,
        model: Model,
        expert_map: ExpertMap,
        state: Mapping[str, Array],
        *,
        by_site: bool,
        beside: Reader | None = None,
        encoder: Encoder = BYTES,
    ) -> None:
        """`by_site`: each owner's experts alone on the shared trunk, mixed by how likely each found the row so far: a
        router that reads the tokens before, for experts that never met another's (Branch-Train-Merge, arXiv 2208.03306).
        `beside`: of the seed (`hansa.beside`).
        """
        groups = [expert_map.experts]
        if by_site:
            owners = dict.fromkeys(expert_map.owners.values())
            groups = [tuple(e for e, o in expert_map.owners.items() if o == owner) for owner in owners]
        self._shards = [
            build_shard(model, expert_map, own=own, guests=False, state=state).eval() for own in groups
        ]
        self._beside, self._encoder = beside, encoder

    def read(self, rows: Rows) -> Read:
        """`rows` [rows, length + 1]. Raises CorpusError for what the model cannot read."""
        parts = [self._read(part) for part in np.array_split(rows, -(-len(rows) // _BATCH))]
        said, likeliest = (np.concatenate(found) for found in zip(*parts, strict=True))
        return Read(said, likeliest, self._encoder.sizes[rows[:, 1:]])

    def _read(self, rows: Rows) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        tokens = as_tokens(rows, self._shards[0])
        came = tokens[:, 1:]
        with torch.inference_mode():
            said = self._says(tokens)
            if self._beside is not None:
                both = torch.stack([said, self._beside._says(tokens)])
                said = mixed(both, foreseen(both, tokens[:, :-1]))[0]
            found = _of(said, came).double().cpu().numpy()
            return found, (said.argmax(-1) == came).cpu().numpy()

    def _says(self, tokens: Tensor) -> Tensor:
        """Log-probabilities of what comes after each token but the last, [rows, length, V]."""
        each = torch.stack([_log_probabilities(shard, tokens) for shard in self._shards])
        before = F.pad(_of(each, tokens[:, 1:]).cumsum(-1), (1, 0))[..., :-1]
        return (before.log_softmax(0).unsqueeze(-1) + each).logsumexp(0)


def _log_probabilities(shard: torch.nn.Module, tokens: Tensor) -> Tensor:
    logits: Tensor = shard(input_ids=tokens[:, :-1], use_cache=False).logits
    return logits.float().log_softmax(-1)


def _of(each: Tensor, came: Tensor) -> Tensor:
    index = came.unsqueeze(-1).expand(*each.shape[:-1], 1)
    return each.gather(-1, index).squeeze(-1)
