"""Features that change which experts the model has and whose they are.

Carried out, the state is re-made at the round boundary (`commons.experts.remaking`). Who may propose: the partner whose
expert it is, or who is to train one, and nobody else; an expert in escrow has no such partner, and any member may.
"""

from __future__ import annotations

from commons.charter import Charter
from commons.errors import Code, Refusal
from commons.experts.added import Added
from commons.features.feature import Feature, Patch, appended, removed
from commons.section import WHOLE, Name, Section


class ExpertAdd(Section):
    site: Name
    expert: Name
    like: Name | None = None
    """The expert of another site it begins as a copy of; not named: weights by the seed rule."""


class ExpertRetire(Section):
    expert: Name


class ExpertTransfer(Section):
    expert: Name
    to: Name
    """The site that trains it from now on."""


def invalid(key: str, what: str) -> Refusal:
    return Refusal(Code.FEATURE_PARAMETERS_INVALID, f"parameters of {key}: {what}")


def added(charter: Charter, key: str, site: str, expert: str, like: str | None) -> Patch | Refusal:
    """What is written of an expert that begins at `site`, beside its name there."""
    if expert in charter.experts or expert in charter.retired:
        was = "is there already" if expert in charter.experts else "was retired"
        return invalid(key, f"expert {expert!r} {was}; the new one needs a name of its own")
    if like is not None and (twin := _twin(charter, site, like)):
        return invalid(key, twin)
    return [appended("/added", Added(expert=expert, like=like).model_dump(mode="json", context=WHOLE))]


def _twin(charter: Charter, site: str, like: str) -> str | None:
    if like not in charter.experts:
        return f"there is no expert {like!r} to copy; there are {', '.join(charter.experts)}"
    entry = charter.site(site)
    own = entry.experts if entry else ()
    twins = [e for e in own if e == like or any(a.expert == e and a.like == like for a in charter.added)]
    if not twins:
        return None
    return (
        f"a copy of {like!r} beside {twins[0]!r} would see the same text at site {site} and stay its twin; copy another "
        "expert, or none"
    )


def forgotten(charter: Charter, experts: tuple[str, ...]) -> Patch:
    """What was written of these experts goes; their names stay, so that no other takes them."""
    at = [n for n, a in enumerate(charter.added) if a.expert in experts]
    return [*(removed(f"/added/{n}") for n in reversed(at)), *(appended("/retired", e) for e in experts)]


def _taken(charter: Charter, key: str, expert: str) -> Patch | Refusal:
    """The expert leaves its site's list, or the escrow."""
    if expert in charter.escrow:
        return [removed(f"/escrow/{charter.escrow.index(expert)}")]
    for number, site in enumerate(charter.sites):
        if expert not in site.experts:
            continue
        if len(site.experts) == 1:
            why = f"{expert!r} is the last expert of site {site.name}, which could not train without one"
            return invalid(key, f"{why}; add it another first, or propose site-remove")
        return [removed(f"/sites/{number}/experts/{site.experts.index(expert)}")]
    return invalid(key, f"there is no expert {expert!r}; there are {', '.join(charter.experts)}")


def _place(charter: Charter, key: str, site: str) -> str | Refusal:
    for number, entry in enumerate(charter.sites):
        if entry.name == site:
            return f"/sites/{number}/experts"
    return invalid(key, f"there is no site {site!r}; there are {', '.join(s.name for s in charter.sites)}")


def _add(charter: Charter, p: ExpertAdd) -> Patch | Refusal:
    place, born = (
        _place(charter, "expert-add", p.site),
        added(charter, "expert-add", p.site, p.expert, p.like),
    )
    for wrong in (place, born):
        if isinstance(wrong, Refusal):
            return wrong
    assert isinstance(place, str) and isinstance(born, list)
    return [appended(place, p.expert), *born]


def _retire(charter: Charter, p: ExpertRetire) -> Patch | Refusal:
    taken = _taken(charter, "expert-retire", p.expert)
    return taken if isinstance(taken, Refusal) else [*taken, *forgotten(charter, (p.expert,))]


def _transfer(charter: Charter, p: ExpertTransfer) -> Patch | Refusal:
    owner = charter.owner(p.expert)
    if owner is not None and owner.name == p.to:
        return invalid("expert-transfer", f"expert {p.expert!r} is site {p.to}'s already")
    place, taken = _place(charter, "expert-transfer", p.to), _taken(charter, "expert-transfer", p.expert)
    for wrong in (place, taken):
        if isinstance(wrong, Refusal):
            return wrong
    assert isinstance(place, str) and isinstance(taken, list)
    return [*taken, appended(place, p.expert)]


def _partner_of_site(charter: Charter, p: ExpertAdd) -> str | None:
    site = charter.site(p.site)
    return site.partner if site else None


def _partner_of_expert(charter: Charter, p: ExpertRetire | ExpertTransfer) -> str | None:
    owner = charter.owner(p.expert)
    return owner.partner if owner else None


EXPERTS = (
    Feature(
        "expert-add",
        "Let a site train one more expert, from the next round on",
        ExpertAdd,
        ("/sites/*/experts", "/added"),
        _add,
        undone_by="expert-retire",
        proposers=_partner_of_site,
    ),
    Feature(
        "expert-retire",
        "Take an expert out of the model for good, from the next round on",
        ExpertRetire,
        ("/sites/*/experts", "/added", "/escrow", "/retired"),
        _retire,
        undone_by="nothing: a retired expert does not come back",
        proposers=_partner_of_expert,
    ),
    Feature(
        "expert-transfer",
        "Give an expert, as it is, to another site",
        ExpertTransfer,
        ("/sites/*/experts", "/escrow"),
        _transfer,
        proposers=_partner_of_expert,
    ),
)
