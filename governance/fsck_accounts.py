"""The auditor's own double entry: four counters per account, one unit each, and the lots a budget is made of.

Adds up what it is given and says what that gives; whether it was lawful is `governance.fsck_money`'s to judge.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from commons import merkle

NEVER = 2**63


@dataclass(slots=True)
class Account:
    unit: str
    debits_pending: int = 0
    debits: int = 0
    credits_pending: int = 0
    credits: int = 0


@dataclass(slots=True)
class Lot:
    id: str
    partner: str
    left: int
    """Neither held, nor spent, nor lost."""
    priority: int
    not_before_ms: int
    expires_ms: int
    """`NEVER` for one without expiry."""
    held: int = 0
    breakages: int = 0

    def in_force(self, now_ms: int) -> bool:
        return self.not_before_ms <= now_ms < self.expires_ms


Draw = tuple[Lot, int]


@dataclass
class Books:
    accounts: dict[str, Account] = field(default_factory=dict)
    _purses: dict[str, list[Lot]] = field(default_factory=dict)
    """Partner -> lots that are not used up, in the order they are spent."""

    def account(self, name: str, unit: str) -> Account:
        """Comes into being, in this unit, when it is first named."""
        return self.accounts.setdefault(name, Account(unit))

    def unit(self, name: str) -> str | None:
        found = self.accounts.get(name)
        return found.unit if found else None

    def post(self, debit: str, credit: str, unit: str, amount: int) -> None:
        payer, taker = self.account(debit, unit), self.account(credit, unit)
        payer.debits += amount
        taker.credits += amount

    def pend(self, debit: str, credit: str, unit: str, amount: int) -> None:
        """A hold; a negative amount undoes it."""
        payer, taker = self.account(debit, unit), self.account(credit, unit)
        payer.debits_pending += amount
        taker.credits_pending += amount

    def free(self, account: str) -> int:
        """What the counters of an account still allow to be spent of it; nothing for one nobody named."""
        found = self.accounts.get(account)
        return found.credits - found.debits - found.debits_pending if found else 0

    def add_lot(
        self,
        partner: str,
        name: str,
        amount: int,
        *,
        priority: int = 100,
        not_before_ms: int = 0,
        expires_ms: int = 0,
    ) -> None:
        lots = self._purses.setdefault(partner, [])
        lots.append(Lot(name, partner, amount, priority, not_before_ms, expires_ms or NEVER))
        lots.sort(key=lambda lot: (lot.priority, lot.expires_ms))  # stable: the older first

    def lot(self, partner: str, name: str) -> Lot | None:
        """A lot that is not used up."""
        return next((lot for lot in self._purses.get(partner, ()) if lot.id == name), None)

    def draw(self, partner: str, amount: int, now_ms: int) -> tuple[list[Draw], int]:
        """Hold `amount` of the lots in force; (from which, how much is lacking)."""
        lots = self._purses.get(partner, [])
        draws: list[Draw] = []
        used_up = False
        for lot in lots:
            taken = min(amount, lot.left) if lot.in_force(now_ms) else 0
            used_up = used_up or not (lot.left or lot.held)
            if taken:
                lot.left -= taken
                lot.held += taken
                amount -= taken
                draws.append((lot, taken))
            if not amount:
                break
        if used_up:
            self._purses[partner] = [lot for lot in lots if lot.left or lot.held]
        return draws, amount

    def balance_tree(self) -> tuple[bytes, int]:
        """(root over one line per account in order of names, number of lines): what closes a period."""
        lines = [
            f"{name} {a.unit} {a.debits_pending} {a.debits} {a.credits_pending} {a.credits}"
            for name, a in sorted(self.accounts.items())
        ]
        return merkle.root([merkle.leaf_hash(line.encode()) for line in lines]), len(lines)


def put_back(draws: list[Draw], charged: int) -> None:
    """End a hold: the first `charged` of what it drew is spent, the rest is free again."""
    for lot, taken in draws:
        spent = min(charged, taken)
        charged -= spent
        lot.held -= taken
        lot.left += taken - spent
