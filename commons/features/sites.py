"""Features by which sites come into a consortium and leave it (members: `commons.features.members`).

A site comes with experts that begin as copies of others' or by the seed rule. A site that leaves opts its experts out, or leaves them in escrow: the coordinator holds them as
they were last admitted, until a vote gives them to another site or retires them.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from commons.charter import Charter, Site
from commons.errors import Refusal
from commons.features.experts import added, forgotten, invalid
from commons.features.feature import Feature, Patch, appended, removed, replaced
from commons.section import WHOLE, Name, Section

Quorum = Annotated[int | None, Field(ge=1, le=1024)]
"""Of the rounds from then on; not named: as it is now."""


class SiteAdd(Site):
    """A whole entry of the charter's sites."""

    like: Annotated[tuple[Name, ...], Field(max_length=256)] = ()
    """For each of `experts` the expert it begins as a copy of; not named: all begin by the seed rule."""
    quorum: Quorum = None


class SiteRemove(Section):
    site: Name
    experts: Literal["escrow", "drop"] = "escrow"
    """`drop`: the partner opts out, and its experts go with it."""
    quorum: Quorum = None


def _add(charter: Charter, p: SiteAdd) -> Patch | Refusal:
    if charter.site(p.name):
        return invalid("site-add", f"there is a site {p.name!r} already")
    if p.like and len(p.like) != len(p.experts):
        return invalid("site-add", f"like names {len(p.like)} experts for {len(p.experts)} new ones")
    if len(set(p.like)) < len(p.like):
        return invalid("site-add", "like names one expert twice; copies that see the same text stay twins")
    born: Patch = []
    for number, expert in enumerate(p.experts):
        one = added(charter, "site-add", p.name, expert, p.like[number] if p.like else None)
        if isinstance(one, Refusal):
            return one
        born += one
    entry = p.model_dump(mode="json", context=WHOLE, exclude={"like", "quorum"})
    return [appended("/sites", entry), *born, *_quorum(p.quorum)]


def _remove(charter: Charter, p: SiteRemove) -> Patch | Refusal:
    for number, site in enumerate(charter.sites):
        if site.name == p.site:
            gone = forgotten(charter, site.experts) if p.experts == "drop" else []
            kept = [] if gone else [appended("/escrow", e) for e in site.experts]
            return [removed(f"/sites/{number}"), *gone, *kept, *_quorum(p.quorum)]
    known = ", ".join(s.name for s in charter.sites)
    return invalid("site-remove", f"there is no site {p.site!r}; there are {known}")


def _quorum(quorum: int | None) -> Patch:
    return [] if quorum is None else [replaced("/rounds/quorum", quorum)]


def _who_removes(charter: Charter, p: SiteRemove) -> str | None:
    """Any member may have a site suspended; its experts are only its partner's to drop."""
    site = charter.site(p.site)
    return site.partner if site and p.experts == "drop" else None


SITES = (
    Feature(
        "site-add",
        "Take in a member's site with its experts, from the next round on",
        SiteAdd,
        ("/sites", "/added", "/rounds/quorum"),
        _add,
        undone_by="site-remove",
        proposers=lambda _, site: site.partner,
    ),
    Feature(
        "site-remove",
        "Let a site go: its experts into escrow, or dropped where its partner opts out",
        SiteRemove,
        ("/sites", "/added", "/escrow", "/retired", "/rounds/quorum"),
        _remove,
        undone_by="site-add under another name; experts in escrow: expert-transfer",
        proposers=_who_removes,
    ),
)
