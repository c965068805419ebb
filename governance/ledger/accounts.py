"""Accounts, their names, and the lots a budget is made of.

Amounts are whole: micro of the rate card's currency, milliseconds of a device, or pico (10^-6 micro) for what
rounding left over. One account has one unit; nothing here ever adds two units.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable
from dataclasses import dataclass, field

from commons.amounts import AMOUNT_LIMIT, MICRO


@dataclass(slots=True)
class Account:
    """Four counters; the posted ones never fall."""

    unit: str = MICRO
    debits_pending: int = 0
    debits_posted: int = 0
    credits_pending: int = 0
    credits_posted: int = 0
    closed: bool = False
    """Its member left the consortium: open holds still end, nothing new begins."""


@dataclass(slots=True)
class Lot:
    """One grant, conversion or refund: budget with its own priority and expiry."""

    id: str
    amount: int
    priority: int = 100
    not_before_ms: int = 0
    expires_ms: int = 0
    """0: never."""
    held: int = 0
    spent: int = 0
    lost: int = 0
    """Booked to breakage."""
    breakages: int = 0

    @property
    def free(self) -> int:
        return self.amount - self.held - self.spent - self.lost

    def in_force(self, now_ms: int) -> bool:
        return self.not_before_ms <= now_ms and not self.expired(now_ms)

    def expired(self, now_ms: int) -> bool:
        return 0 < self.expires_ms <= now_ms


def _burn_order(lot: Lot) -> tuple[int, int]:
    return lot.priority, lot.expires_ms or AMOUNT_LIMIT


@dataclass(slots=True)
class Purse:
    """The lots of one partner that have something in them, in the order they are spent: priority, expiry, age."""

    lots: list[Lot] = field(default_factory=list)
    refunded_micro: int = 0
    """Came back by reversals."""
    lost_micro: int = 0
    """Went to breakage."""
    disputed_micro: int = 0
    """Charged to the partner and resting in suspense."""

    def add(self, lot: Lot) -> None:
        insort(self.lots, lot, key=_burn_order)

    def available(self, now_ms: int) -> int:
        return sum(lot.free for lot in self.lots if lot.in_force(now_ms))

    def draw(self, amount: int, now_ms: int) -> list[tuple[Lot, int]]:
        """Hold `amount` and say from which lots. Raises ValueError when that much is not there."""
        draws = []
        left = amount
        for lot in self.lots:
            if not left:
                break
            taken = min(left, lot.free) if lot.in_force(now_ms) else 0
            if taken:
                lot.held += taken
                left -= taken
                draws.append((lot, taken))
        if left:
            for lot, taken in draws:
                lot.held -= taken
            raise ValueError(f"{amount} are to be held, {amount - left} are available")
        return draws

    def spend(self, draws: Iterable[tuple[Lot, int]], charged: int) -> None:
        """End a hold: the first `charged` of its draws are spent, in order, the rest is free again."""
        for lot, taken in draws:
            part = min(charged, taken)
            charged -= part
            lot.held -= taken
            lot.spent += part
            self._drop_if_empty(lot)

    def lose(self, lot: Lot, amount: int) -> None:
        """Book `amount` of an expired lot to breakage."""
        lot.lost += amount
        lot.breakages += 1
        self.lost_micro += amount
        self._drop_if_empty(lot)

    def _drop_if_empty(self, lot: Lot) -> None:
        if not lot.free and not lot.held:
            self.lots.remove(lot)


def budget_account(partner: str) -> str:
    return f"partner/{partner}/budget"


def contributed_account(partner: str) -> str:
    return f"partner/{partner}/contributed"


def pledge_account(partner: str, device: str) -> str:
    return f"partner/{partner}/pledge/{device}"


def consumed_account(run: str) -> str:
    return f"run/{run}/consumed"


def rounding_account(partner: str) -> str:
    return f"partner/{partner}/rounding"


def require(true: bool, what: str) -> None:
    if not true:
        raise ValueError(what)
