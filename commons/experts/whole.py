"""A seed for every site: each begins with copies of all the seed's experts, and trains what it would train by itself.

Dealt over the sites, a seed's experts leave each site a part of what its partner alone would have. Where every site owns as
many experts as the seed has, they begin as copies of all of them, in the charter's order, with their router rows (sparse
upcycling, arXiv 2212.05055, of copies that never meet in training). Which of the two it is, the seed's size says.
Where gates are shares of all experts' (softmax, as they are), those of each copy are the seed's divided by the number of
sites; so its output is multiplied by it, and every site begins as the seed is.
"""

from __future__ import annotations

from commons.charter import Charter
from commons.experts.families import FAMILIES
from commons.experts.map import ExpertMap
from commons.experts.remaking import Change, Origin
from commons.names import ExpertId


def experts_each(charter: Charter) -> int | None:
    """How many experts every site owns; None where they are no model's: of one site alone, of unequal number, beside some in
    escrow, fewer than a token is routed to. Raises SettingError."""
    counts, family = {len(site.experts) for site in charter.sites}, FAMILIES[charter.model.family]
    least = max(2, family.settings(charter.model.config).whole("num_experts_per_tok"))
    if len(charter.sites) == 1 or charter.escrow or len(counts) > 1 or min(counts) < least:
        return None
    return counts.pop()


def seed_map(charter: Charter) -> ExpertMap | None:
    """The map of a seed of `experts_each` experts, which are nobody's. Raises SettingError."""
    count = experts_each(charter)
    if count is None:
        return None
    return ExpertMap.from_owners(charter.model.shared, {ExpertId(str(n)): None for n in range(count)})


def copies(charter: Charter, seed: ExpertMap) -> Change:
    """From a `seed_map` to the charter's, each site's experts copies of the seed's in their order."""
    origins = {
        ExpertId(expert): Origin(origin, stays=False)
        for site in charter.sites
        for expert, origin in zip(site.experts, seed.experts, strict=True)
    }
    family = FAMILIES[charter.model.family]
    routing = family.routing(family.settings(charter.model.config))
    shared_out = routing.scores == "softmax" and not routing.normalised
    gain = len(charter.sites) if shared_out else 1
    return Change(charter, seed, ExpertMap.from_charter(charter), origins, gain)
