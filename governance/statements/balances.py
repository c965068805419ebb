"""The balance tree of a period: RFC 6962 over one line per account, by name, with each line's place in it."""

from __future__ import annotations

from collections.abc import Sequence

from commons import merkle
from commons.statement_proof import Balances, balances_of


class BalanceTree:
    """`lines` as `governance.ledger.periods.balance_lines` gives them; all of them are kept in memory."""

    def __init__(self, lines: Sequence[str]) -> None:
        self.lines = tuple(lines)
        frontier = merkle.Frontier()
        self._nodes: dict[tuple[int, int], bytes] = {}
        for line in self.lines:
            for level, index, found in frontier.append(merkle.leaf_hash(line.encode())):
                self._nodes[level, index] = found
        self.root = frontier.root()

    def of(self, partner: str) -> list[str]:
        """The partner's account lines."""
        return [line for line in self.lines if line.startswith(f"partner/{partner}/")]

    def prove(self, partner: str) -> Balances:
        """The partner's account lines, each with its path to the root."""
        own = [(i, line) for i, line in enumerate(self.lines) if line.startswith(f"partner/{partner}/")]
        return balances_of(own, [self._path(index) for index, _ in own])

    def _path(self, index: int) -> list[bytes]:
        return merkle.inclusion_proof(index, len(self.lines), lambda level, at: self._nodes[level, at])
