"""Readers: what lets a model of lean expert shards choose a site's experts for the text it reads.

A site's reader is a small next-token model on the trunk's last SPAN hidden states at the first layer with experts:
log_softmax(out silu(up h) + bias). What it gives the tokens a text came with says how likely the site finds the text, and
the sites' readers together give the posterior over sites (`workers.readers`). Each learns from its own site's text alone,
as experts do: nobody needs another's text, a site that leaves takes its reader along, and the others' do not change.
A reader's probabilities sum to one, so a site cannot claim text by anything but predicting it.

Here: which slices there are. They belong to the site through the first of its experts, and travel as experts do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from commons.experts.slices import Kind, Slice
from commons.names import ExpertId, SiteId

PREFIX = "readers."
SPAN = 3
"""Hidden states a reader sees: the token's own and those before it."""


def reader_slices(
    owners: Mapping[ExpertId, SiteId | None], *, width: int, hidden: int, vocabulary: int
) -> Iterator[Slice]:
    """Of every site that owns an expert; none for a width of 0."""
    if not width:
        return
    for site, expert in first_experts(owners).items():
        shapes = {
            "up.weight": (width, SPAN * hidden),
            "out.weight": (vocabulary, width),
            "out.bias": (vocabulary,),
        }
        for role, shape in shapes.items():
            yield Slice(f"{PREFIX}{site}.{role}", shape, Kind.READER, expert)


def first_experts(owners: Mapping[ExpertId, SiteId | None]) -> dict[SiteId, ExpertId]:
    """Each site's first expert, sites in the order in which they come; an expert in escrow is no site's."""
    found: dict[SiteId, ExpertId] = {}
    for expert, site in owners.items():
        if site is not None:
            found.setdefault(site, expert)
    return found
