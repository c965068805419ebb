"""Where a site stands between two rounds: its own values of slices that are exchanged, and what of them goes on.

A round exchanges some slices (`commons.experts.fragments`); these begin the next one at the combined state. The site goes on
with its own values of the others, as long as the state still has what they grew from: what others have moved meanwhile, or
the members took back, is taken as it is. Knows nothing of models, optimisers or files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from commons.learning import Learning

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Standing:
    """What a finished round left."""

    round: int
    local: Mapping[str, Array]
    """The site's values after the round. Without overlap only those of slices that were not exchanged."""
    exchanged: frozenset[str]
    bases: Mapping[str, str]
    """Every slice that is exchanged in some round -> digest of its value in the round's base."""

    @classmethod
    def left(
        cls,
        number: int,
        local: Mapping[str, Array],
        due: Collection[str],
        base: Mapping[str, Array],
        learning: Learning,
    ) -> Standing | None:
        """`local`: every slice that is exchanged in some round, `due`: those of this one. None where nothing goes on."""
        kept = {name: a for name, a in local.items() if learning.overlap_steps or name not in due}
        if not kept:
            return None
        exchanged = frozenset(name for name in local if name in due)
        return cls(number, kept, exchanged, {name: digest_of(base[name]) for name in local})

    @classmethod
    def read(cls, facts: Mapping[str, Any], local: Mapping[str, Array]) -> Standing:
        return cls(facts["round"], local, frozenset(facts["exchanged"]), facts["bases"])

    def facts(self) -> dict[str, Any]:
        """What `read` reads, without the arrays."""
        return {"round": self.round, "exchanged": sorted(self.exchanged), "bases": dict(self.bases)}

    def leads_to(self, number: int, learning: Learning) -> bool:
        """Whether round `number` begins with steps from here, before its base is looked at."""
        return learning.overlap_steps > 0 and self.round == number - 1 and self.exchanged <= self.local.keys()

    def is_in(self, base: Mapping[str, Array]) -> bool:
        """Whether the round's exchange is in `base`. It is not when it failed or was taken back: then all is taken from there."""
        return not self.exchanged or any(self._moved(name, base) for name in self.exchanged)

    def goes_on(self, base: Mapping[str, Array]) -> dict[str, Array]:
        """The values with which the site goes on from `base` in place of the base's."""
        if not self.is_in(base):
            return {}
        return {name: self.local[name] for name in self._kept(self.local, base)}

    def taken_in(self, now: Mapping[str, Array], base: Mapping[str, Array]) -> dict[str, Array]:
        """The values with which the site goes on when it has come to `now` before it took `base` in: of what was exchanged, as
        if the base had been there at once, with the steps that were made since."""
        kept = set(self._kept(now, base))
        new: dict[str, Array] = {}
        for name, here in now.items():
            there = np.asarray(base[name], np.float32)
            if name in self.exchanged:
                new[name] = there + (here - self.local[name])
            else:
                new[name] = here if name in kept else there
        return new

    def _kept(self, names: Iterable[str], base: Mapping[str, Array]) -> list[str]:
        return [name for name in names if name not in self.exchanged and not self._moved(name, base)]

    def _moved(self, name: str, base: Mapping[str, Array]) -> bool:
        return self.bases[name] != digest_of(base[name])


def digest_of(values: Array) -> str:
    return hashlib.sha256(np.ascontiguousarray(values, "<f4").data).hexdigest()
