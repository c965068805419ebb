"""What a tensor of the released model is: trunk, router, one expert's or one site's reader's."""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import prod

from commons.names import ExpertId
from commons.words import Word

_LAYER = re.compile(r"\.layers\.(\d+)\.")


class Kind(Word):
    TRUNK_MATRIX = "trunk_matrix"
    TRUNK_VECTOR = "trunk_vector"
    ROUTER = "router"
    """Gate rows and selection biases, one row per expert. Every site sends them with the trunk."""
    EXPERT = "expert"
    READER = "reader"
    """Of a site's reader (`commons.experts.readers`), which is its owner's as experts are."""


@dataclass(frozen=True)
class Slice:
    """One fp32 tensor, under its on-disk Hugging Face name; an expert's has the expert's index in it."""

    name: str
    shape: tuple[int, ...]
    kind: Kind
    expert: ExpertId | None = None
    """The expert it belongs to, a reader's the first of its site; None for what all sites share."""
    stack: str | None = None
    """The on-disk tensor that holds it as one entry of its first dimension, at the expert's index. None: it is an
    on-disk tensor of its own."""

    @property
    def layer(self) -> int | None:
        """The decoder layer it is in; None outside of all."""
        found = _LAYER.search(self.name)
        return int(found[1]) if found else None

    @property
    def size(self) -> int:
        """Number of parameters."""
        return prod(self.shape)
