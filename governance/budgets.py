"""Budgets and charges as their readers see them: `commons.views.BudgetsView`, derived from the ledger."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

from commons.names import Digest
from commons.views import BudgetsView, BudgetView, ChargeView, LotView, PledgeView, RateCardView, RateView
from governance.ledger import Budget, Hold, Ledger
from governance.ledger.accounts import Lot, budget_account

CHARGES_SHOWN = 1_000
LOTS_SHOWN = 50
"""Of each partner."""
CARDS_SHOWN = 10


def budgets_view(ledger: Ledger, currency: str) -> BudgetsView:
    """All partners in charter order, the latest holds in the order they were made, the latest rate cards."""
    return BudgetsView(
        currency=currency,
        budgets=tuple(_budget(ledger, budget) for budget in ledger.budgets()),
        charges=tuple(_charge(hold) for hold in ledger.latest_charges(CHARGES_SHOWN)),
        charges_total=ledger.charges_total,
        pledges=tuple(_pledges(ledger)),
        cards=tuple(_card(ledger, digest, since) for since, digest in ledger.cards_since[-CARDS_SHOWN:]),
    )


def _budget(ledger: Ledger, budget: Budget) -> BudgetView:
    lots = ledger.purses[budget.partner].lots
    return BudgetView(
        **asdict(budget),
        closed=ledger.accounts[budget_account(budget.partner)].closed,
        lots=tuple(_lot(lot) for lot in lots[:LOTS_SHOWN]),
        lots_total=len(lots),
    )


def _pledges(ledger: Ledger) -> Iterator[PledgeView]:
    """In the order they were made."""
    for name, account in ledger.accounts.items():
        match name.split("/"):
            case ["partner", partner, "pledge", device]:
                left = account.credits_posted - account.debits_posted
                yield PledgeView(partner=partner, device=device, amount_ms=left)


def _lot(lot: Lot) -> LotView:
    return LotView(
        id=lot.id,
        amount_micro=lot.amount,
        free_micro=lot.free,
        priority=lot.priority,
        not_before_ms=lot.not_before_ms,
        expires_ms=lot.expires_ms,
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
        partner=hold.partner,
        reversed_micro=hold.reversed_micro,
        disputed_micro=hold.suspended_micro,
        accepted=hold.accepted,
        tops=request.tops,
        at_ms=hold.at_ms,
        ended_ms=hold.ended_ms,
    )


def _card(ledger: Ledger, digest: Digest, since_ms: int) -> RateCardView:
    card = ledger.cards[digest]
    rates = tuple(RateView.model_validate(vars(rate)) for rate in card.rates)
    return RateCardView(digest=digest, since_ms=since_ms, currency=card.currency, rates=rates)
