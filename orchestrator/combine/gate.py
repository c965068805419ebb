"""The gate on norms: an update far larger than its round's others is no update, in whichever mode the run is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from commons.names import RoundNumber, SiteId

Name = TypeVar("Name", str, tuple[SiteId, RoundNumber])
"""Of an update: its site, or its site and the round it is of."""


NOTHING = 1e-12
"""L2, of an update; no training makes one as short."""


def outliers(norms: Mapping[Name, float], times: float) -> tuple[Name, ...]:
    """Updates whose L2 norm is more than `times` the median of all, in order of name.

    Of an even number the lower median counts: of two updates the larger may be out, the smaller never. Nobody is out
    where the median is next to nothing, which says nothing of what an update measures.
    """
    if not norms:
        return ()
    median = sorted(norms.values())[(len(norms) - 1) // 2]
    return tuple(sorted(name for name, norm in norms.items() if median > NOTHING and median * times < norm))
