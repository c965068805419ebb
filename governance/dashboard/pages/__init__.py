"""The pages, in the order of the navigation."""

from __future__ import annotations

from governance.dashboard.page import Page
from governance.dashboard.pages import overview, proposals, roadmap, voting

PAGES: tuple[Page, ...] = (
    overview.PAGE,
    proposals.LIST,
    voting.BALLOT,
    proposals.ONE,
    roadmap.PAGE,
    voting.KEY,
)
