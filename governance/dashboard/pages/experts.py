"""Experts: whose they are, what went through them, how they do, and who may change them."""

from __future__ import annotations

from starlette.requests import Request

from commons.run_views import NowView, RoundsView
from commons.views import CharterView, ExpertsView, ExpertView
from governance.dashboard.heat import heat_map, ownership
from governance.dashboard.page import Context, Hall, Page
from governance.dashboard.pages.scene import charter_in_force

PROTECTED = {
    "secagg": "its updates are masked: nobody sees them alone",
    "dp": "its updates are noised",
    "robust": "outliers among its updates are left out",
}


def context(hall: Hall, request: Request) -> Context:
    view, run, charter = hall.feed.latest(ExpertsView), hall.feed.latest(NowView), charter_in_force(hall)
    rounds = hall.feed.latest(RoundsView)
    experts = view.experts if view else ()
    sites = list(dict.fromkeys(s.name for s in charter.sites)) if charter else []
    domains = list(dict.fromkeys(s.domain for s in charter.sites)) if charter else []
    losses = {s.site: s.held_out_loss for s in run.sites} if run else {}
    worth = next((r.experts_ppm for r in reversed(rounds.rounds) if r.experts_ppm), {}) if rounds else {}
    routed = {d: {e.expert: e.routed.get(d, 0) for e in experts} for d in domains}
    total = sum(e.tokens for e in experts)
    mode = charter.privacy.mode if charter else "none"
    return {
        "view": view,
        "owners": ownership([(e.expert, e.site) for e in experts], sites),
        "heat": heat_map(routed, [e.expert for e in experts]),
        "rows": [
            {
                "expert": e,
                "loss": losses.get(e.site or ""),
                "load": 100 * e.tokens / total if total else None,
                "worth": worth.get(e.expert),
                "protected": _protected(e, PROTECTED.get(mode, "")),
            }
            for e in experts
        ],
        "withheld": mode in ("dp", "secagg"),
    }


def _protected(expert: ExpertView, besides: str) -> str:
    if expert.partner is None:
        return "in escrow: nobody trains it, and any member may propose what becomes of it"
    only = f"only {expert.partner} may propose to hand it on or retire it"
    return f"{only}; {besides}" if besides else only


PAGE = Page(
    "/experts", "Experts", "experts.html.j2", context, (ExpertsView, NowView, RoundsView, CharterView)
)
