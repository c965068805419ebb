"""Overview: where the run stands, who is there, what is left, what is voted on, how fresh the journal is."""

from __future__ import annotations

from starlette.requests import Request

from commons import notes
from commons.charter import Charter
from commons.log import Checkpoint
from commons.run_views import CurvesView
from commons.views import BudgetView, JournalView
from commons.written import money
from governance.dashboard.alerts import alerts
from governance.dashboard.page import Context, Hall, Page
from governance.dashboard.pages.scene import VIEWS, is_online, scene
from governance.dashboard.svg import sparkline, stack

OPEN = ("pending", "active", "paused")
ROUNDS_DRAWN = 200
BARS_MAX = 12


def context(hall: Hall, request: Request) -> Context:
    now, curves = scene(hall, request.state.viewer), hall.feed.latest(CurvesView)
    sites = now.run.sites if now.run else ()
    online = [s for s in sites if is_online(s)]
    losses = [point.loss for point in curves.points[-ROUNDS_DRAWN:]] if curves else []
    budgets = now.budgets.budgets if now.budgets else ()
    return {
        "run": now.run,
        "alerts": alerts(now),
        "journal": now.journal,
        "witnessed": witnessed(now.journal, now.charter),
        "chart": sparkline(losses, "Mean training loss of the sites, round by round"),
        "loss": next((found for found in reversed(losses) if found is not None), None),
        "speed": sum(s.tokens_per_s for s in sites),
        "online": online,
        "sites": sites,
        "members": len(now.charter.members) if now.charter else 0,
        "members_online": len({s.partner for s in online}),
        "currency": now.budgets.currency if now.budgets else "",
        "budgets": [_bar(b) for b in budgets[:BARS_MAX]],
        "more_budgets": len(budgets) - BARS_MAX,
        "totals": {n: sum(getattr(b, f"{n}_micro") for b in budgets) for n in ("available", "held", "spent")},
        "votes": [p for p in now.proposals.proposals if p.state in OPEN] if now.proposals else [],
    }


def witnessed(journal: JournalView | None, charter: Charter | None) -> Context:
    """How many records the newest cosigned checkpoint covers, and how many signed it besides the log."""
    quorum = charter.witnesses.quorum if charter else 0
    if not journal or not journal.published:
        return {"quorum": quorum, "size": 0, "cosigned": 0}
    note = notes.parse(journal.published.encode())
    return {"quorum": quorum, "size": Checkpoint.read(note).size, "cosigned": len(note.signatures) - 1}


def _bar(budget: BudgetView) -> Context:
    parts = [
        ("available", budget.available_micro),
        ("held", budget.held_micro),
        ("spent", budget.spent_micro),
    ]
    left, said = money(budget.available_micro), ", ".join(f"{name} {money(m)}" for name, m in parts)
    return {"partner": budget.partner, "left": left, "bar": stack(parts, f"{budget.partner}: {said}")}


PAGE = Page("/", "Overview", "overview.html.j2", context, (*VIEWS, CurvesView))
