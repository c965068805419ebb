"""Overview: where the run stands, who is there, what is left, what is voted on, how fresh the journal is."""

from __future__ import annotations

from starlette.requests import Request

from commons import charter_file, notes
from commons.charter import Charter
from commons.log import Checkpoint
from commons.views import (
    BudgetsView,
    BudgetView,
    CharterView,
    JournalView,
    ProposalsView,
    RoundView,
    RunView,
    SiteView,
)
from commons.written import money
from governance.dashboard.page import Context, Hall, Page
from governance.dashboard.svg import sparkline, stack

OPEN = ("pending", "active", "paused")
ROUNDS_DRAWN = 200


def context(hall: Hall, request: Request) -> Context:
    feed = hall.feed
    run, journal = feed.latest(RunView), feed.latest(JournalView)
    budgets, proposals = feed.latest(BudgetsView), feed.latest(ProposalsView)
    charter = charter_in_force(hall)
    sites = run.sites if run else ()
    history = run.history if run else ()
    return {
        "run": run,
        "charter": charter,
        "journal": journal,
        "witnessed": witnessed(journal, charter),
        "closed": [r for r in history if r.closed_ms],
        "losses": (losses := [mean_loss(r) for r in history[-ROUNDS_DRAWN:]]),
        "chart": sparkline(losses, "Mean training loss, round by round"),
        "loss": next((found for r in reversed(history) if (found := mean_loss(r)) is not None), None),
        "tokens": sum(r.tokens for r in history),
        "speed": sum(s.tokens_per_s for s in sites),
        "online": [s for s in sites if is_online(s)],
        "sites": sites,
        "members": len(charter.members) if charter else 0,
        "members_online": len({s.partner for s in sites if is_online(s)}),
        "currency": budgets.currency if budgets else "",
        "budgets": [_bar(b) for b in budgets.budgets] if budgets else [],
        "totals": _totals(budgets.budgets if budgets else ()),
        "votes": [p for p in proposals.proposals if p.state in OPEN] if proposals else [],
    }


def charter_in_force(hall: Hall) -> Charter | None:
    view = hall.feed.latest(CharterView)
    return charter_file.from_canonical(view.text.encode()) if view else None


def is_online(site: SiteView) -> bool:
    return site.state not in ("offline", "gone")


def mean_loss(found: RoundView) -> float | None:
    """Of the sites' training losses; None where nobody told one."""
    return sum(found.losses.values()) / len(found.losses) if found.losses else None


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
    return {"partner": budget.partner, "left": left, "bar": stack(parts, said)}


def _totals(budgets: tuple[BudgetView, ...]) -> dict[str, int]:
    return {
        name: sum(getattr(b, f"{name}_micro") for b in budgets)
        for name in ("available", "held", "spent", "later")
    }


PAGE = Page(
    "/",
    "Overview",
    "overview.html.j2",
    context,
    (RunView, JournalView, BudgetsView, ProposalsView, CharterView),
)
