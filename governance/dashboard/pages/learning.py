"""Learning: held-out loss of each domain, round by round, beside what its partner reaches alone and all texts in one place."""

from __future__ import annotations

import json

from starlette.requests import Request

from commons.run_views import CurvesView, NowView
from governance.dashboard.page import Context, Hall, Page
from governance.dashboard.svg import sparkline

DOMAINS_SHOWN = 12


def context(hall: Hall, request: Request) -> Context:
    curves, run = hall.feed.latest(CurvesView), hall.feed.latest(NowView)
    start = request.query_params.get("from", "0")
    first = int(start) if start.isascii() and start.isdecimal() and len(start) < 6 else 0
    domains = curves.domains if curves else ()
    first = first if first < len(domains) else 0
    partners = {s.domain: s.partner for s in run.sites} if run else {}
    shown = range(first, min(len(domains), first + DOMAINS_SHOWN))
    return {
        "curves": curves,
        "run": run,
        "charts": [_chart(hall, curves, n, partners.get(domains[n], "")) for n in shown] if curves else [],
        "probe": _probe(curves),
        "domains": domains,
        "first": first,
        "following": first + DOMAINS_SHOWN if first + DOMAINS_SHOWN < len(domains) else None,
        "before": max(0, first - DOMAINS_SHOWN) if first else None,
    }


def _chart(hall: Hall, curves: CurvesView, at: int, partner: str) -> Context:
    domain = curves.domains[at]
    rounds = [
        point.round - 1 for point in curves.points
    ]  # measured on the round's base, the state of the one before
    losses = [point.held_out[at] for point in curves.points]
    if curves.evaluation.get(domain) is not None and curves.points:
        rounds, losses = [*rounds, curves.points[-1].round], [*losses, curves.evaluation[domain]]
    compared = hall.settings.compared
    alone, central = compared.alone.get(partner, {}).get(domain), compared.central.get(domain)
    known = [value for value in losses if value is not None]
    return {
        "domain": domain,
        "partner": partner,
        "first": known[0] if known else None,
        "last": known[-1] if known else None,
        "alone": alone,
        "central": central,
        "drawn": sparkline(losses, f"Held-out loss of {domain} by round"),
        "data": json.dumps(
            {"x": rounds, "y": losses, "alone": alone, "central": central, "what": "held-out loss"}
        ),
        "known": len(known),
    }


def _probe(curves: CurvesView | None) -> Context | None:
    """The curve of the charter's probe, where there is one."""
    points = [p for p in curves.points if p.probe_loss is not None] if curves else []
    if len(points) < 2:
        return None
    losses = [p.probe_loss for p in points]
    return {
        "drawn": sparkline(losses, "Loss on the charter's probe by round"),
        "data": json.dumps({"x": [p.round for p in points], "y": losses, "what": "probe loss"}),
        "rolled_back": [p.round for p in points if p.rolled_back],
        "last": losses[-1],
    }


PAGE = Page("/learning", "Learning", "learning.html.j2", context, (CurvesView,))
