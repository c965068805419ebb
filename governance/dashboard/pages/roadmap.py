"""Roadmap: what the members want next, in order. Forms that work by keyboard, with and without scripts."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.requests import Request

from commons.ballots import CHOICES
from commons.errors import Code, Refusal
from commons.ranking import readable
from commons.views import ProposalsView, ProposalView
from governance.dashboard.page import Context, Hall, Page
from governance.dashboard.pages.proposals import OPEN, all_proposals, bar, own_ballot, rules, why_not
from governance.dashboard.viewer import Viewer

PLACE, VOTES = "place-", "votes-"
"""Begin the names of a form's fields; the candidate follows."""


def chosen(p: ProposalView, fields: Mapping[str, str]) -> str | Refusal:
    """The choice that a form says: `choice`, or places or votes of a roadmap's candidates."""
    if not p.candidates:
        choice = fields.get("choice", "")
        if choice in CHOICES:
            return choice
        return Refusal(Code.REQUEST_INVALID, "say whether you are for it, against it, or abstain")
    choice = _credits(p, fields) if p.credits else _ranking(p, fields)
    if readable(choice, p.candidates, p.credits):
        return choice
    if p.credits:
        return Refusal(
            Code.REQUEST_INVALID, f"n votes cost n times n: give votes that cost 1 to {p.credits} credits"
        )
    return Refusal(Code.REQUEST_INVALID, "give at least one candidate a place, and no two the same")


def _ranking(p: ProposalView, fields: Mapping[str, str]) -> str:
    places = {name: fields.get(PLACE + name, "") for name in p.candidates}
    given = [name for name in p.candidates if places[name].isdecimal() and len(places[name]) < 4]
    if len({int(places[name]) for name in given}) < len(given):
        return ""  # two in one place
    return "rank " + " > ".join(sorted(given, key=lambda name: int(places[name])))


def _credits(p: ProposalView, fields: Mapping[str, str]) -> str:
    votes = {name: fields.get(VOTES + name, "") for name in p.candidates}
    given = [f"{name} {int(n)}" for name, n in votes.items() if n.isdecimal() and len(n) < 6 and int(n)]
    return "credits " + ", ".join(given)


def context(hall: Hall, request: Request) -> Context:
    viewer: Viewer = request.state.viewer
    every = [p for p in all_proposals(hall)[::-1] if p.candidates]
    return {
        "open": [_shown(p, viewer) for p in every if p.state in OPEN],
        "over": [_shown(p, viewer) for p in every if p.state not in OPEN],
    }


def _shown(p: ProposalView, viewer: Viewer) -> Context:
    own = own_ballot(p, viewer)
    order, votes = _said(own.choice if own else "", p)
    return {
        "p": p,
        "label": f"P-{p.number:04d}",
        "bar": bar(p),
        "rules": rules(p),
        "why_not": why_not(p, viewer),
        "own": own,
        "order": order,
        "votes": votes,
    }


def _said(choice: str, p: ProposalView) -> tuple[list[str], dict[str, int]]:
    """The candidates as the own ballot has them, the others after them; the votes it gives."""
    words = choice.partition(" ")[2]
    if choice.startswith("rank "):
        ranked = words.split(" > ")
        return [*ranked, *(name for name in p.candidates if name not in ranked)], {}
    votes = dict(pair.split(" ") for pair in words.split(", ")) if choice.startswith("credits ") else {}
    return list(p.candidates), {name: int(n) for name, n in votes.items()}


PAGE = Page("/roadmap", "Roadmap", "roadmap.html.j2", context, (ProposalsView,))
