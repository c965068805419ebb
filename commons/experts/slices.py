"""What a tensor of the released model is: trunk, router, one expert's, or one site's: of its reader or its own layers."""

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
    OWN = "own"
    """Of a site's own layers (`commons.experts.own`), likewise."""
    SEED = "seed"
    """Of the trunk that sites have layers of their own in place of: what those began as. Nobody changes it."""

    @property
    def owned(self) -> bool:
        """Whether slices of this kind have an owner, who alone trains them unless sites train copies of all."""
        return self in (Kind.EXPERT, Kind.READER, Kind.OWN)


@dataclass(frozen=True)
class Slice:
    """One fp32 tensor, under its on-disk Hugging Face name; an expert's has the expert's index in it."""

    name: str
    shape: tuple[int, ...]
    kind: Kind
    expert: ExpertId | None = None
    """The expert it belongs to, a reader's or own layer's the first of its site; None for what is nobody's."""
    stack: str | None = None
    """The on-disk tensor that holds it as one entry of its first dimension, at the expert's index. None: it is an
    on-disk tensor of its own."""
    stands_for: str | None = None
    """Of an own layer: the slice of the trunk in whose place its site has it, and as which it began."""

    @property
    def shared(self) -> bool:
        """Whether it is trunk or router, which all sites have alike."""
        return self.expert is None and self.kind is not Kind.SEED

    @property
    def layer(self) -> int | None:
        """The decoder layer it is in; None outside of all."""
        found = _LAYER.search(self.name)
        return int(found[1]) if found else None

    @property
    def size(self) -> int:
        """Number of parameters."""
        return prod(self.shape)
