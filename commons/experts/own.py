"""Own layers: trunk that every site has for itself, from some decoder layer on.

What sites share up to there serves all; what comes after is trained by each site on its own text alone, beside its
experts, and never averaged: it is sent, combined, kept and taken along as the site's experts are. In the first layer with
experts it begins behind the router, where readers listen (`commons.experts.readers`), so readers hear what all share.
Embedding and output head stay shared. The trunk's own tensors stay in the model as the seed has them and nobody trains
them: a site's layers begin as they are, today's and those of one that joins later, and a released model is whole without
any site's.

Here: which slices there are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from commons.experts.readers import first_experts
from commons.experts.slices import Kind, Slice
from commons.names import ExpertId, SiteId

PREFIX = "own."
_TRUNK = (Kind.TRUNK_MATRIX, Kind.TRUNK_VECTOR)
_BEFORE_ROUTER = ("self_attn.", "input_layernorm.", "post_attention_layernorm.")
"""Of a layer with experts; what else it has of the trunk comes after its router."""


def with_own(
    slices: Iterable[Slice], owners: Mapping[ExpertId, SiteId | None], *, first: int, begin: int | None
) -> Iterator[Slice]:
    """A model's slices with those of every site's own layers from `begin` on; None: as they are. `first`: the first layer
    that has experts."""
    sites = first_experts(owners)
    for part in slices:
        if begin is None or not _is_late(part, first, begin):
            yield part
            continue
        yield replace(part, kind=Kind.SEED)
        for site, expert in sites.items():
            name = f"{PREFIX}{site}.{part.name}"
            yield Slice(name, part.shape, Kind.OWN, expert, stands_for=part.name)


def _is_late(part: Slice, first: int, begin: int) -> bool:
    if part.kind not in _TRUNK:
        return False
    if part.layer is None:
        return part.name == "model.norm.weight"
    if part.layer == first:
        return begin == first and not part.name.split(".", 3)[3].startswith(_BEFORE_ROUTER)
    return part.layer >= begin
