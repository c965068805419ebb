"""Periods of the books: calendar months or quarters by UTC, and the balances that stand at their end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone

from governance.ledger.accounts import Account


@dataclass(frozen=True)
class Period:
    name: str
    """``2026-11`` or ``2026-q4``."""
    begin_ms: int
    end_ms: int
    """The first millisecond that no longer belongs to it."""

    @classmethod
    def of(cls, at_ms: int, rule: str, *, after_ms: int = 0) -> Period:
        """The month or quarter that holds `at_ms`; it begins no earlier than `after_ms`, where the last one ended."""
        day = datetime.fromtimestamp(at_ms // 1000, timezone.utc)
        months = 3 if rule == "quarter" else 1
        first = (day.month - 1) // months * months + 1
        name = f"{day.year}-q{(first + 2) // 3}" if rule == "quarter" else f"{day.year}-{first:02d}"
        following = (day.year + (first + months > 12), (first + months - 1) % 12 + 1)
        return cls(name, max(_ms(day.year, first), after_ms), _ms(*following))


def balance_lines(accounts: Mapping[str, Account]) -> tuple[str, ...]:
    """One line per account, by name: ``<account> <unit> <debits pending> <posted> <credits pending> <posted>``.

    These are the leaves of a period's balance tree (RFC 6962), in this order.
    """
    return tuple(
        f"{name} {a.unit} {a.debits_pending} {a.debits_posted} {a.credits_pending} {a.credits_posted}"
        for name, a in sorted(accounts.items())
    )


def _ms(year: int, month: int) -> int:
    return int(datetime(year, month, 1, tzinfo=timezone.utc).timestamp()) * 1000
