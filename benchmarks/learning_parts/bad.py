"""A site whose text or update is bad, and what stands against it: what the others lose by it.

Its text is a hundredth of what it was, or bytes without any order, or its own bytes shuffled within each row (for a
language model that is a label that is wrong); or it trains rightly and sends its update reversed, at a length the gate on
norms lets through.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from benchmarks.learning_parts.combining import State
from commons.experts.map import Slice
from commons.privacy.terms import Robust
from orchestrator.combine.distances import Distances
from orchestrator.combine.robust import combine_block, shares
from workers.data import Corpus, Rows, Source
from workers.encoder import Encoder

Bad = Literal["", "little", "random", "shuffled", "flipped", "huge", "absent"]
"""`absent`: nothing is wrong with it, and what it sends of the shared slices is left out: what is left where a bad site
is found at once."""
LITTLE = 100
"""How many times less text the site has."""
HUGE = 30.0
"""How many times longer than it is the reversed update is sent: far from the charter's default gate of 1000."""


@dataclass(frozen=True)
class Disordered:
    """A corpus in whose batches nothing can be learnt of what follows what."""

    corpus: Corpus
    kind: Literal["random", "shuffled"]

    def batch(self, step: int, *, rows: int, length: int, seed: int) -> Rows:
        found = self.corpus.batch(step, rows=rows, length=length, seed=seed)
        key = hashlib.sha256(f"{seed}/{self.corpus.name}/{self.kind}".encode()).digest()[:16]
        philox = np.random.Philox(key=np.frombuffer(key, np.uint64), counter=[0, 0, 0, step])
        dice = np.random.Generator(philox)
        if self.kind == "random":
            drawn: Rows = dice.integers(0, 256, found.shape, dtype=np.int64)
            return drawn
        shuffled: Rows = dice.permuted(found, axis=1)
        return shuffled

    def held_out_rows(self, *, length: int, limit: int) -> Rows:
        return self.corpus.held_out_rows(length=length, limit=limit)

    @property
    def encoder(self) -> Encoder:
        return self.corpus.encoder


def spoilt(kind: Bad, text: Source) -> Source:
    """What the bad site trains on."""
    assert isinstance(text, Corpus)
    match kind:
        case "little":
            return replace(text, train=text.train[: len(text.train) // LITTLE])
        case "random" | "shuffled":
            return Disordered(text, kind)
        case _:
            return text


def times_sent(kind: Bad) -> float:
    """What the bad site's update is multiplied by before it is sent."""
    return {"flipped": -1.0, "huge": -HUGE}.get(kind, 1.0)


def believed(
    rule: Robust, parts: Sequence[Slice], deltas: Sequence[Mapping[str, NDArray[np.float32]]]
) -> State:
    """The deltas as the product's rule combines them; `parts` are all shared slices."""
    rows = np.stack([np.concatenate([d[p.name].ravel() for p in parts]) for d in deltas])
    distances = Distances(len(rows))
    distances.add(rows)
    counted = shares(rule, np.full(len(rows), 1 / len(rows)), distances.norms(), distances)
    joint = np.empty(rows.shape[1], np.float32)
    combine_block(rule, rows, counted, joint)
    cuts = np.split(joint, np.cumsum([p.size for p in parts])[:-1])
    return {part.name: cut.reshape(part.shape) for part, cut in zip(parts, cuts, strict=True)}
