"""What the audit knows by itself: lots and holds as it keeps them, hashes, the Merkle tree and the calendar."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

Facts = Mapping[str, Any]
Where = tuple[str, int, str]
"""(run, round, site)."""
NEVER = 1 << 63
"""No amount and no time reaches it."""


@dataclass
class Lot:
    id: str
    amount: int
    priority: int = 100
    not_before_ms: int = 0
    expires_ms: int = 0
    held: int = 0
    spent: int = 0
    lost: int = 0
    losses: int = 0

    @property
    def free(self) -> int:
        return self.amount - self.held - self.spent - self.lost

    def usable(self, at_ms: int) -> bool:
        return self.not_before_ms <= at_ms < (self.expires_ms or NEVER)


@dataclass
class Hold:
    facts: Facts
    draws: list[tuple[Lot, int]]
    claimed: bool = False
    """The site has said what its round took: it waits to be settled."""
    end: str = ""
    ended_ms: int = 0
    charged: int = 0
    settle: Facts = field(default_factory=dict)
    reversed: int = 0
    suspended: int = 0
    tops: list[Hold] = field(default_factory=list)

    @property
    def left(self) -> int:
        """Of the charge: neither given back nor disputed."""
        return self.charged - self.reversed - self.suspended


def where(facts: Facts) -> Where:
    return facts["run"], facts["round"], facts["site"]


def sides(hold: Facts) -> tuple[str, str]:
    return f"partner/{hold['payer']}/budget", f"run/{hold['run']}/consumed"


def sha(text: str) -> str:
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def root(leaves: Sequence[bytes]) -> bytes:
    """RFC 6962, straight from its definition."""
    if len(leaves) < 2:
        return hashlib.sha256(b"\0" + leaves[0] if leaves else b"").digest()
    split = 1 << (len(leaves) - 1).bit_length() - 1
    return hashlib.sha256(b"\1" + root(leaves[:split]) + root(leaves[split:])).digest()


def period_of(at_ms: int, rule: str, after_ms: int) -> tuple[str, int, int]:
    day = datetime.fromtimestamp(at_ms // 1000, timezone.utc)
    months = 3 if rule == "quarter" else 1
    first = day.month - (day.month - 1) % months
    name = f"{day.year}-q{(day.month + 2) // 3}" if months == 3 else f"{day.year}-{day.month:02d}"
    begin = datetime(day.year, first, 1, tzinfo=timezone.utc)
    end = datetime(day.year + (first + months > 12), (first + months - 1) % 12 + 1, 1, tzinfo=timezone.utc)
    return name, max(after_ms, int(begin.timestamp()) * 1000), int(end.timestamp()) * 1000
