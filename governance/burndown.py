"""A budget burning down: the forecast of what the budgets' view says, and what was and will be left round by round."""

from __future__ import annotations

from dataclasses import dataclass

from commons.views import BudgetsView, BudgetView
from governance.forecast import Forecast, Free, Spent, by_round, forecast


def forecast_of(budget: BudgetView, view: BudgetsView, rounds: int, now_ms: int) -> Forecast:
    """`rounds`: how many the running run has yet to open; 0 without one."""
    paid = [
        Spent(c.run, c.round, c.ended_ms, c.charged_micro)
        for c in view.charges
        if c.payer == budget.partner and c.state == "settled"
    ]
    free = [Free(lot.free_micro, lot.not_before_ms, lot.expires_ms) for lot in budget.lots]
    return forecast(
        budget.partner, by_round(paid), free,
        available_micro=budget.available_micro, run_rounds=rounds, now_ms=now_ms,
    )  # fmt: skip


@dataclass(frozen=True)
class Level:
    label: str
    left_micro: int
    ahead: bool


def levels(f: Forecast) -> list[Level]:
    """One per round so far, of all that is granted by now; then one per round ahead, until the budget or the run ends.

    Without a running run, as many rounds ahead as there were.
    """
    left = f.available_micro + sum(spent.amount_micro for spent in f.rounds)
    found = []
    for spent in f.rounds:
        left -= spent.amount_micro
        found.append(Level(f"{spent.run} round {spent.round}", left, False))
    wanted = f.run_rounds if f.run_rounds and not f.lacking_micro else max(len(f.rounds), f.run_rounds)
    ahead = min(f.rounds_left, wanted) if f.rounds_left is not None else f.run_rounds
    for number in range(1, ahead + 1):
        left = max(0, left - f.round_micro)
        found.append(Level(f"in {number} rounds" if number > 1 else "in 1 round", left, True))
    return found
