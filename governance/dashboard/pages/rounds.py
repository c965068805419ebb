"""Rounds: a timeline site by site, what each site waits for and why, and what became of every update."""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.requests import Request

from commons.run_views import ROUNDS_SHOWN, NowView, RoundsView
from governance.dashboard.page import Context, Hall, Page
from governance.dashboard.pages.scene import now_ms
from governance.dashboard.timeline import timeline


def context(hall: Hall, request: Request) -> Context:
    """Of the latest run, or of the one that the path names."""
    name = str(request.path_params.get("run", ""))
    run = hall.office.read(NowView, name) if name else hall.feed.latest(NowView)
    shown = hall.office.read(RoundsView, name) if name else hall.feed.latest(RoundsView)
    last = request.query_params.get("to", "")
    if last and shown:
        if not (last.isascii() and last.isdecimal() and len(last) < 10):
            raise HTTPException(400, "A round is a number.")
        shown = hall.office.read(RoundsView, f"{shown.run}/{last}")
    rounds = shown.rounds if shown else ()
    total = shown.total if shown else 0
    return {
        "run": run,
        "here": request.url.path,
        "rounds": rounds,
        "timeline": timeline(rounds, [s.site for s in run.sites] if run else [], now_ms()),
        "total": total,
        "older": rounds[0].round - 1 if rounds and rounds[0].round > 1 else None,
        "newer": min(total, rounds[-1].round + ROUNDS_SHOWN) if rounds and rounds[-1].round < total else None,
        "noised": any(s.epsilon is not None for s in run.sites) if run else False,
    }


PAGE = Page("/rounds", "Rounds", "rounds.html.j2", context, (NowView, RoundsView))
OF_RUN = Page("/runs/{run}", "Rounds", "rounds.html.j2", context, (NowView, RoundsView), listed=False)
"""Where the runs in MLflow lead to."""
