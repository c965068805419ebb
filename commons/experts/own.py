"""Own layers: trunk that every site has for itself, from some decoder layer on.

What sites share below serves all; from that layer on each trains attention, norms and what is dense on its own text alone,
beside its experts, and never averages it: it is sent, combined, kept and taken along as the site's experts are. From
layer 0 on sites share nothing but the embedding and the output head. The trunk's own tensors stay in the model as the seed
has them and nobody trains them: a site's layers begin as they are, those of one that joins later too, and a released
model is whole without any site's.

Here: which slices there are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from commons.experts.readers import first_experts
from commons.experts.slices import Kind, Slice
from commons.names import ExpertId, SiteId

PREFIX = "own."
_LAST = "model.norm.weight"


def with_own(
    slices: Iterable[Slice], owners: Mapping[ExpertId, SiteId | None], begin: int | None
) -> Iterator[Slice]:
    """A model's slices with those of every site's own layers from `begin` on; None: as they are."""
    sites = first_experts(owners)
    for part in slices:
        if begin is None or not _is_late(part, begin):
            yield part
            continue
        yield replace(part, kind=Kind.SEED)
        for site, expert in sites.items():
            name = f"{PREFIX}{site}.{part.name}"
            yield Slice(name, part.shape, Kind.OWN, expert, stands_for=part.name)


def _is_late(part: Slice, begin: int) -> bool:
    if part.kind not in (Kind.TRUNK_MATRIX, Kind.TRUNK_VECTOR):
        return False
    return part.name == _LAST if part.layer is None else part.layer >= begin
