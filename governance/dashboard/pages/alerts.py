"""Alerts: what is wrong and who acts next."""

from __future__ import annotations

from starlette.requests import Request

from governance.dashboard.alerts import alerts
from governance.dashboard.page import Context, Hall, Page
from governance.dashboard.pages.scene import VIEWS, scene


def context(hall: Hall, request: Request) -> Context:
    now = scene(hall, request.state.viewer)
    return {"alerts": alerts(now), "run": now.run}


PAGE = Page("/alerts", "Alerts", "alerts.html.j2", context, VIEWS)
