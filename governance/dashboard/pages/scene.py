"""What several pages need of the feed, gathered once."""

from __future__ import annotations

import time

from commons import charter_file
from commons.charter import Charter
from commons.roll_views import MembersView
from commons.run_views import NowView, RoundsView
from commons.views import BudgetsView, CharterView, JournalView, ProposalsView, SiteView, View
from governance.dashboard.alerts import Scene
from governance.dashboard.page import Hall
from governance.dashboard.viewer import Viewer

VIEWS: tuple[type[View], ...] = (
    NowView,
    RoundsView,
    BudgetsView,
    ProposalsView,
    MembersView,
    JournalView,
    CharterView,
)
"""What a `scene` is made from."""


def scene(hall: Hall, viewer: Viewer) -> Scene:
    """As the viewer may see it."""
    feed, charter = hall.feed, charter_in_force(hall)
    budgets = feed.latest(BudgetsView)
    return Scene(
        now_ms(),
        charter,
        feed.latest(NowView),
        feed.latest(RoundsView),
        viewer.part_of(budgets, charter) if budgets else None,
        feed.latest(ProposalsView),
        feed.latest(MembersView),
        feed.latest(JournalView),
    )


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def charter_in_force(hall: Hall) -> Charter | None:
    view = hall.feed.latest(CharterView)
    return charter_file.from_canonical(view.text.encode()) if view else None


def charter_of(hall: Hall) -> Charter:
    """The charter in force, asked for where it has not come yet. Raises HansaError."""
    found = charter_in_force(hall)
    return found or charter_file.from_canonical(hall.office.read(CharterView).text.encode())


def is_online(site: SiteView) -> bool:
    return site.state not in ("offline", "gone")


def rounds_ahead(run: NowView | None) -> int:
    """That the running run has yet to open."""
    return max(0, run.rounds - run.round) if run and run.phase == "training" else 0
