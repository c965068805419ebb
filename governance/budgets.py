"""Budgets and charges as their readers see them: `commons.views.BudgetsView`, derived from the ledger."""

from __future__ import annotations

from dataclasses import asdict

from commons.views import BudgetsView, BudgetView, ChargeView
from governance.ledger import Hold, Ledger


def budgets_view(ledger: Ledger, currency: str) -> BudgetsView:
    """All partners in charter order and all holds in the order they were made."""
    return BudgetsView(
        currency=currency,
        budgets=tuple(BudgetView(**asdict(budget)) for budget in ledger.budgets()),
        charges=tuple(_charge(hold) for hold in ledger.charges()),
    )


def _charge(hold: Hold) -> ChargeView:
    request = hold.request
    return ChargeView(
        id=request.id,
        run=request.run,
        round=request.round,
        site=request.site,
        payer=request.payer,
        held_micro=request.amount_micro,
        charged_micro=hold.charged_micro,
        state=hold.state,
    )
