"""What the audit knows of pledges: whose they are, that the money was there, and that each ends once and rightly."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.simulation.values import Facts, Lot

if TYPE_CHECKING:
    from tests.simulation.money import Money


@dataclass
class Pledges:
    promised: dict[str, dict[str, str]] = field(default_factory=dict)
    """Tail of the note's digest -> its fields."""
    held: dict[str, tuple[Facts, list[tuple[Lot, int]]]] = field(default_factory=dict)
    needs: dict[str, int] = field(default_factory=dict)
    """Proposal -> pledges without which it is not carried out."""
    paid: Counter[str] = field(default_factory=Counter)
    """Proposal -> micro."""
    executed: set[str] = field(default_factory=set)

    def transfer(self, money: Money, facts: Facts, amount: int, at_ms: int) -> None:
        budgets = tuple(f"partner/{facts[side]}/budget" for side in ("payer", "to"))
        assert (facts["debit"], facts["credit"]) == budgets, f"{facts['id']} goes elsewhere"
        tail = facts["id"].rpartition("/")[2]
        said = self.promised[tail]
        booked = (facts["payer"], facts["to"], str(amount), facts["proposal"])
        assert booked == (said["member"], said["to"], said["amount_micro"], said["proposal"]), (
            f"{facts['id']}"
        )
        debit, credit = (money.accounts[name] for name in budgets)
        if facts["type"] == "pledge":
            debit[1] += amount
            credit[3] += amount
            draws, left = [], amount
            for lot in money.lots[facts["payer"]]:
                part = min(left, lot.free) if lot.usable(at_ms) else 0
                lot.held += part
                left -= part
                draws += [(lot, part)] if part else []
            assert not left, f"{facts['payer']} pledges {left} more than it has"
            self.held[tail] = (facts, draws)
            return
        _, draws = self.held.pop(tail)
        debit[1] -= amount
        credit[3] -= amount
        for lot, part in draws:
            lot.held -= part
        if facts["type"] == "pledge-paid":
            assert facts["proposal"] in self.executed and at_ms < int(said["expires_ms"]), f"{facts['id']}"
            debit[2] += amount
            credit[4] += amount
            self.paid[facts["proposal"]] += amount
            for number, (lot, part) in enumerate(draws, 1):
                lot.spent += part
                limits = (lot.priority, lot.not_before_ms, lot.expires_ms)
                money.give(facts["to"], Lot(f"pledge/{tail}/{number}", part, *limits))

    def finish(self) -> None:
        for facts, _ in self.held.values():
            assert facts["proposal"] not in self.executed, f"{facts['id']} is open, and its proposal is law"
        for proposal in self.executed:
            assert self.paid[proposal] >= self.needs.get(proposal, 0), f"{proposal} lacks pledges"
