"""Releases: models that were written and signed, those that the members voted for, their gates and where they come from."""

from __future__ import annotations

from starlette.requests import Request

from commons.roll_views import ReleasesView
from commons.run_views import CurvesView, NowView
from commons.views import CharterView
from governance.dashboard.page import Context, Hall, Page
from governance.dashboard.pages.scene import charter_in_force


def context(hall: Hall, request: Request) -> Context:
    view, charter = hall.feed.latest(ReleasesView), charter_in_force(hall)
    run, curves = hall.feed.latest(NowView), hall.feed.latest(CurvesView)
    current = {v.alias: v for v in view.voted} if view else {}
    votes = {v.manifest: v for v in view.voted} if view else {}
    return {
        "view": view,
        "made": [{"release": m, "vote": votes.get(m.manifest)} for m in reversed(view.made)] if view else [],
        "voted": [{"vote": v, "current": current[v.alias] == v} for v in reversed(view.voted)]
        if view
        else [],
        "sites": charter.sites if charter else (),
        "run": run,
        "evaluation": curves.evaluation if curves else {},
    }


PAGE = Page(
    "/releases", "Releases", "releases.html.j2", context, (ReleasesView, NowView, CurvesView, CharterView)
)
