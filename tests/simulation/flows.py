"""What came to and went from each partner's budget in each period, added up from the raw transfers."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from tests.simulation.values import Facts

FLOWS = {
    "grant": "granted_micro",
    "reversal": "refunded_micro",
    "convert": "converted_micro",
    "breakage": "expired_micro",
    "settle": "charged_micro",
    "contribution": "contributed_micro",
    "contribution-reversal": "contribution_reversed_micro",
}
"""Type of a transfer of money -> the sum of a statement that it belongs to."""


@dataclass
class Flows:
    sums: dict[tuple[str, str], Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    """(period, partner) -> sum -> micro."""
    periods: list[str] = field(default_factory=list)
    """In order, without those nothing happened in."""

    def add(self, period: str, facts: Facts) -> None:
        if period not in self.periods:
            self.periods.append(period)
        if facts["type"] == "pledge-paid":
            self.sums[period, facts["payer"]]["charged_micro"] += facts["amount_micro"]
            self.sums[period, facts["to"]]["granted_micro"] += facts["amount_micro"]
        if facts["type"] not in FLOWS or "amount_micro" not in facts:
            return
        whose = "payer" if facts["type"] in ("settle", "reversal") else "partner"
        self.sums[period, facts[whose]][FLOWS[facts["type"]]] += facts["amount_micro"]

    def check(self, partner: str, period: str, said: Mapping[str, int]) -> None:
        """Whether a statement says what came to pass."""
        ours = self.sums[period, partner]
        for name in FLOWS.values():
            assert said[name] == ours[name], (
                f"{partner} in {period}: {name} is {ours[name]}, not {said[name]}"
            )
        opening = sum(self._change(partner, before) for before in self.periods if before < period)
        assert said["opening_micro"] == opening, f"{partner}: {period} opens with {opening}"
        assert said["closing_micro"] == opening + self._change(partner, period), f"{partner}: end of {period}"

    def _change(self, partner: str, period: str) -> int:
        sums = self.sums[period, partner]
        come = sums["granted_micro"] + sums["refunded_micro"] + sums["converted_micro"]
        return come - sums["expired_micro"] - sums["charged_micro"]
