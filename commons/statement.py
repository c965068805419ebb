"""A partner's statement for one period: what the coordinator signs, and the arithmetic it stands for.

Owns the note, the lines it commits to, the account lines of a period's balances and the sums over lines; what a
bundle file holds and how it is verified is `commons.statement_proof`. Amounts are micro of the currency unless a
name says otherwise. Knows no ledger: it reads journal records as anybody can.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, field, fields
from typing import Any, Literal, NamedTuple

from commons.amounts import MICRO
from commons.names import Digest
from commons.records import canonical_json
from commons.work import Words

Line = tuple[int, str]
"""(record index, leaf) of one journal record."""


@dataclass(frozen=True, kw_only=True)
class StatementNote(Words):
    """Signed by the log key. For a closed period the same journal gives the same bytes, whenever it is asked."""

    KIND = "hansa-statement/v1"
    consortium: str
    partner: str
    period: str
    """`2026-11` or `2026-q4`, by UTC."""
    begin_ms: int
    end_ms: int
    """The first millisecond that no longer belongs to the period."""
    currency: str
    opening_micro: int
    granted_micro: int
    """By the charter, and paid by other members as pledges."""
    refunded_micro: int
    converted_micro: int
    expired_micro: int
    charged_micro: int
    """For work, and paid to other members as pledges."""
    closing_micro: int
    """What the budget account holds at the end: opening + granted + refunded + converted - expired - charged."""
    held_micro: int
    """Part of `closing_micro` that is held for rounds under way, and for pledges."""
    contributed_micro: int
    contribution_reversed_micro: int
    lines: int
    """Journal records that concern the partner and are dated in the period."""
    lines_digest: str
    """`LinesDigest` over them."""
    earlier: int
    """Older records that the lines refer to: charters with rates, open holds and disputes, corrected charges."""
    earlier_digest: str
    rate_card: str
    """Digest of the rate card in force at the end."""
    rate_card_since_ms: int
    rate_cards: int
    """How many were in force during the period."""
    journal_size: int
    """The records the statement was made from. Closed: up to and with the PERIOD record."""
    journal_root: str
    """Hex."""
    balances_root: str
    """Hex; RFC 6962 tree over one line per account, by name, at the end of the period (or now)."""
    accounts: int
    closed: Literal["yes", "no"]
    """`no`: the period goes on; more lines will come."""

    @property
    def adds_up(self) -> bool:
        come = self.opening_micro + self.granted_micro + self.refunded_micro + self.converted_micro
        return come == self.expired_micro + self.charged_micro + self.closing_micro


class LinesDigest:
    """SHA-256 over lines as they come: the canonical JSON ``[index,leaf]`` of each and a newline."""

    def __init__(self, lines: Iterable[Line] = ()) -> None:
        self._hash = hashlib.sha256()
        for line in lines:
            self.add(line_json(line))

    def add(self, json: bytes) -> None:
        """The next line, as `line_json` writes it."""
        self._hash.update(json)

    @property
    def digest(self) -> Digest:
        return Digest(f"sha256:{self._hash.hexdigest()}")


def line_json(line: Line) -> bytes:
    return canonical_json(line) + b"\n"


@dataclass(slots=True)
class Counters:
    """The four counters of one account, or what lines added to them."""

    debits_pending: int = 0
    debits_posted: int = 0
    credits_pending: int = 0
    credits_posted: int = 0

    def __add__(self, other: Counters) -> Counters:
        return Counters(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


class AccountLine(NamedTuple):
    """A leaf of the balance tree: ``<account> <unit> <debits pending> <posted> <credits pending> <posted>``."""

    account: str
    unit: str
    counters: Counters

    @classmethod
    def parse(cls, text: str) -> AccountLine:
        """Raises ValueError when it is none."""
        parts = text.split(" ")
        if len(parts) != 6 or not all(c.isdecimal() and str(int(c)) == c for c in parts[2:]):
            raise ValueError(f"{text[:120]!r} is no line of a balance")
        return cls(parts[0], parts[1], Counters(*map(int, parts[2:])))


@dataclass
class Sums:
    """What lines of one partner add up to. `add` them in any order, each once."""

    partner: str
    granted_micro: int = 0
    refunded_micro: int = 0
    converted_micro: int = 0
    expired_micro: int = 0
    charged_micro: int = 0
    contributed_micro: int = 0
    contribution_reversed_micro: int = 0
    moved: dict[tuple[str, str], Counters] = field(default_factory=dict)
    """(account of the partner, unit) -> what was added to its counters."""

    def add(self, facts: Mapping[str, Any]) -> None:
        """The facts of a TRANSFER record. Raises KeyError or ValueError when it is none we know."""
        kind, unit, amount = facts["type"], facts.get("unit", MICRO), amount_of(facts)
        own = f"partner/{self.partner}/"
        debit, credit = facts["debit"], facts["credit"]
        if debit.startswith(own):
            counters = self._account(debit, unit)
            counters.debits_pending += _pending(kind, facts, amount)
            counters.debits_posted += 0 if kind in _UNPOSTED else amount
            if debit == f"{own}budget" and (name := _FROM_BUDGET[kind]):
                setattr(self, name, getattr(self, name) + amount)
            elif kind == "contribution-reversal":
                self.contribution_reversed_micro += amount
        if credit.startswith(own):
            counters = self._account(credit, unit)
            counters.credits_pending += _pending(kind, facts, amount)
            counters.credits_posted += 0 if kind in _UNPOSTED else amount
            if name := _TO_PARTNER[kind] if unit == MICRO else "":
                setattr(self, name, getattr(self, name) + amount)

    def stated(self) -> dict[str, int]:
        """The sums that a statement states, by field."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name.endswith("_micro")}

    def _account(self, name: str, unit: str) -> Counters:
        return self.moved.setdefault((name, unit), Counters())


_UNPOSTED = ("hold", "release", "expire", "pledge", "pledge-returned")
"""Types that hold, or give back whole what was held."""


def _pending(kind: str, facts: Mapping[str, Any], amount: int) -> int:
    """What a transfer adds to what both of its sides hold."""
    match kind:
        case "hold" | "pledge":
            return amount
        case "release" | "expire" | "pledge-returned" | "pledge-paid":
            return -amount
        case "settle":
            return -amount - int(facts["returned_micro"])
        case _:
            return 0


_FROM_BUDGET = {
    "hold": "",
    "release": "",
    "expire": "",
    "settle": "charged_micro",
    "breakage": "expired_micro",
    "pledge": "",
    "pledge-paid": "charged_micro",
    "pledge-returned": "",
}
_TO_PARTNER = {
    "grant": "granted_micro",
    "pledge": "",
    "pledge-paid": "granted_micro",
    "pledge-returned": "",
    "reversal": "refunded_micro",
    "convert": "converted_micro",
    "contribution": "contributed_micro",
}


def amount_of(facts: Mapping[str, Any]) -> int:
    """The amount of a TRANSFER record in its own unit. Raises KeyError, or ValueError when it is no whole number."""
    amount = facts["amount_micro"] if facts.get("unit", MICRO) == MICRO else facts["amount"]
    if type(amount) is not int or amount < 0:
        raise ValueError(f"{facts['id']} has no whole amount")
    return amount


def differences(opening: Sequence[AccountLine], sums: Sums, closing: Sequence[AccountLine]) -> list[str]:
    """Accounts whose closing counters are not opening counters + lines, each in a sentence."""
    found = {(line.account, line.unit): line.counters for line in opening}
    for key, moved in sums.moved.items():
        found[key] = found.get(key, Counters()) + moved
    stated = {(line.account, line.unit): line.counters for line in closing}
    return [
        f"{account} ({unit}) comes to {_shown(found.get((account, unit)))}, its balance is "
        f"{_shown(stated.get((account, unit)))}"
        for account, unit in sorted(found.keys() | stated.keys())
        if found.get((account, unit), Counters()) != stated.get((account, unit), Counters())
    ]


def _shown(counters: Counters | None) -> str:
    if counters is None:
        return "nothing"
    c = counters
    return (
        f"{c.debits_posted} debited, {c.credits_posted} credited, {c.debits_pending} held"
        + f" ({c.credits_pending} to come)" * bool(c.credits_pending)
    )
