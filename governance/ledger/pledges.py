"""The fold of pledges' transfers: held of one budget for another, paid into it, or given back.

What is paid keeps the limits of the grants it came of, one lot for each: a grant with an end cannot be given to another
member to have none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from governance.ledger.accounts import Lot, budget_account, require

if TYPE_CHECKING:
    from governance.ledger.transfers import Facts, Transfers


@dataclass(slots=True)
class PledgeHold:
    payer: str
    to: str
    amount_micro: int
    draws: list[tuple[Lot, int]]


def _hold(books: Transfers, facts: Facts, amount: int, at_ms: int) -> None:
    books.once(facts)
    payer, to = facts["payer"], facts["to"]
    _between(facts, payer, to)
    draws = books.purses[payer].draw(amount, at_ms)
    books.accounts[facts["debit"]].debits_pending += amount
    books.accounts[facts["credit"]].credits_pending += amount
    books.pledges[facts["id"]] = PledgeHold(payer, to, amount, draws)


def _pay(books: Transfers, facts: Facts, amount: int, at_ms: int) -> None:
    held = _end(books, facts, amount)
    books.purses[held.payer].spend(held.draws, amount)
    books.accounts[facts["debit"]].debits_posted += amount
    books.accounts[facts["credit"]].credits_posted += amount
    for number, (lot, taken) in enumerate(held.draws, 1):
        limits: dict[str, Any] = {
            name: getattr(lot, name) for name in ("priority", "not_before_ms", "expires_ms")
        }
        books.purses[held.to].add(Lot(f"{facts['hold']}/{number}", taken, **limits))


def _give_back(books: Transfers, facts: Facts, amount: int, at_ms: int) -> None:
    held = _end(books, facts, amount)
    books.purses[held.payer].spend(held.draws, 0)


def _end(books: Transfers, facts: Facts, amount: int) -> PledgeHold:
    books.once(facts)
    held = books.pledges.pop(facts["hold"])
    _between(facts, held.payer, held.to)
    require(amount == held.amount_micro, f"{facts['hold']} is for {held.amount_micro}")
    named = facts["hold"].replace("pledge/", f"{facts['type']}/", 1)
    require(facts["id"] == named, f"{facts['id']} is not {named}")
    books.accounts[facts["debit"]].debits_pending -= amount
    books.accounts[facts["credit"]].credits_pending -= amount
    return held


def _between(facts: Facts, payer: str, to: str) -> None:
    sides = (budget_account(payer), budget_account(to))
    require((facts["debit"], facts["credit"]) == sides and payer != to, f"{facts['id']} moves elsewhere")


PLEDGES: dict[str, Callable[[Transfers, Facts, int, int], None]] = {
    "pledge": _hold,
    "pledge-paid": _pay,
    "pledge-returned": _give_back,
}
"""Type -> what (books, facts, amount, log time in ms) it does."""
