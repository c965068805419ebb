"""The pages, in the order of the navigation."""

from __future__ import annotations

from governance.dashboard.page import Page
from governance.dashboard.pages import (
    alerts,
    budgets,
    experts,
    journal,
    learning,
    members,
    overview,
    proposals,
    releases,
    roadmap,
    rounds,
    voting,
)

PAGES: tuple[Page, ...] = (
    overview.PAGE,
    rounds.PAGE,
    rounds.OF_RUN,
    experts.PAGE,
    learning.PAGE,
    budgets.PAGE,
    proposals.LIST,
    proposals.ONE,
    roadmap.PAGE,
    voting.BALLOT,
    voting.KEY,
    members.PAGE,
    journal.PAGE,
    releases.PAGE,
    alerts.PAGE,
)
