"""The pages, in the order of the navigation."""

from __future__ import annotations

from governance.dashboard.page import Page
from governance.dashboard.pages import overview

PAGES: tuple[Page, ...] = (overview.PAGE,)
