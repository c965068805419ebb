"""The compute-budget ledger: who may spend what, what is held, what was charged, who contributed.

Pure: a fold over the journal's records; the `decide_*` functions beside it answer with new records or one refusal.
No clock, no randomness, no IO, no float. Double entry with TigerBeetle's semantics: every transfer debits one account
and credits one other of the same unit, a hold counts against the budget at once and ends exactly once, by settle (at
most the hold, the remainder returns with it), release or expire. An id is made by the caller and means one transfer
for ever; a mistake is corrected by a further transfer that names the first, never otherwise.

Accounts: ``issuance`` and ``contribution`` (unbounded), ``partner/<p>/budget`` (never overdrawn),
``partner/<p>/contributed``, ``partner/<p>/pledge/<device>``, ``run/<r>/consumed``, ``suspense/<dispute>``,
``breakage`` (expired grants), ``fx/<unit>`` (conversions), ``rounding``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import islice

from commons import charter_file, notes
from commons.accounting import Accounting, RateCard
from commons.claims import RulingNote
from commons.errors import StoreError
from commons.names import Digest
from commons.records import Kind, Record
from commons.work import UsageNote
from governance.ledger.accounts import Account, Purse, budget_account, contributed_account, require
from governance.ledger.holds import Hold
from governance.ledger.periods import Period, balance_lines
from governance.ledger.transfers import Dispute, Facts, Transfers
from governance.ratecard import rate_card_digest

__all__ = ["Budget", "Dispute", "Facts", "Ledger"]


@dataclass(frozen=True)
class Budget:
    """One partner's money in micro. granted + refunded = available + later + held + spent + expired."""

    partner: str
    granted_micro: int
    """Grants and conversions."""
    held_micro: int
    spent_micro: int
    available_micro: int
    contributed_micro: int
    later_micro: int = 0
    """Granted, but not to be spent yet."""
    expired_micro: int = 0
    refunded_micro: int = 0
    disputed_micro: int = 0
    """Charged and resting in suspense; part of what is spent."""


@dataclass
class Ledger(Transfers):
    """State folded from records by `apply`; the decisions in the modules beside this one change nothing."""

    rules: Accounting = field(default_factory=Accounting)
    cards: dict[Digest, RateCard] = field(default_factory=dict)
    """Every rate card that was ever in force."""
    cards_since: list[tuple[int, Digest]] = field(default_factory=list)
    """When which card came into force (Unix ms), oldest first; the last one is in force."""
    owners: dict[str, str] = field(default_factory=dict)
    """site -> partner, by the charter in force"""
    closed: dict[str, int] = field(default_factory=dict)
    """Period -> when it was closed (Unix ms)."""
    boundaries: dict[str, tuple[Period, int, tuple[str, ...]]] = field(default_factory=dict)
    """Period that is over -> (period, records dated in or before it, balance lines at its end)."""
    last_ms: int = 0
    """When the last record was written."""
    size: int = 0
    """Records folded."""
    _period: Period | None = None

    def budgets(self) -> list[Budget]:
        """Every partner that ever was a member, in the order they came, as of the last record."""
        return [self.budget(partner) for partner in self.purses]

    def available_micro(self, partner: str, now_ms: int | None = None) -> int:
        """What the partner may still have held, now or as of the last record; 0 for one the ledger does not know."""
        purse = self.purses.get(partner)
        return purse.available(self.last_ms if now_ms is None else now_ms) if purse else 0

    def charges(self) -> list[Hold]:
        """Every hold ever made, in order."""
        return list(self._holds.values())

    @property
    def charges_total(self) -> int:
        """How many holds were ever made."""
        return len(self._holds)

    def latest_charges(self, count: int) -> list[Hold]:
        """The `count` holds made last, in order."""
        return list(islice(reversed(self._holds.values()), count))[::-1]

    def due_periods(self, now_ms: int) -> list[tuple[Period, int, tuple[str, ...]]]:
        """Periods that are over and not closed, oldest first, as in `boundaries`."""
        due = [found for name, found in self.boundaries.items() if name not in self.closed]
        current = self._period
        if current is not None and current.end_ms <= now_ms:
            due.append((current, self.size, balance_lines(self.accounts)))
        return due

    def period(self) -> Period | None:
        """The one the last record is in."""
        return self._period

    def period_at(self, at_ms: int) -> Period | None:
        """The one that a record of this time was counted in, by the rule of that time; None: there is no such record."""
        known = [period for period, _, _ in self.boundaries.values()]
        known += [self._period] if self._period else []
        return next((p for p in known if p.begin_ms <= at_ms < p.end_ms), None)

    def apply(self, index: int, record: Record) -> None:
        """Fold one record. Raises StoreError when a transfer would break the ledger: the journal is not ours."""
        try:
            if self._period is None or record.at_ms >= self._period.end_ms:
                self._turn_period(record.at_ms)
            match record.kind:
                case Kind.TRANSFER:
                    self._transfer(record.facts, record.at_ms)
                case Kind.USAGE:
                    usage = UsageNote.from_note(notes.parse(record.body))
                    self._claim((usage.run, usage.round, usage.site))
                case Kind.CHARTER:
                    self._take_charter(record)
                case Kind.REFUSED:
                    facts = record.facts
                    self.failed[facts["id"]] = facts["message"]
                case Kind.RULING:
                    ruling = RulingNote.from_note(notes.parse(record.body))
                    self.disputes[Digest(ruling.dispute)].ruling = ruling.outcome
                case Kind.PERIOD:
                    self._close(record)
                case _:
                    pass
        except (ArithmeticError, AttributeError, LookupError, OSError, TypeError, ValueError) as wrong:
            text = f"record {index} of the journal is no lawful {record.kind} ({wrong}): run `hansa journal fsck`"
            raise StoreError(text) from wrong
        self.last_ms, self.size = record.at_ms, index + 1

    def _turn_period(self, at_ms: int) -> None:
        before = self._period
        if before is not None:
            self.boundaries[before.name] = (before, self.size, balance_lines(self.accounts))
        self._period = Period.of(at_ms, self.rules.period, after_ms=before.end_ms if before else 0)

    def _close(self, record: Record) -> None:
        facts = record.facts
        name = facts["period"]
        _, size, lines = self.boundaries[name]
        require(name not in self.closed, f"{name} was closed before")
        require(
            (facts["records"], facts["accounts"]) == (size, len(lines)), f"{name} ended with {size} records"
        )
        self.closed[name] = record.at_ms

    def _take_charter(self, record: Record) -> None:
        charter = charter_file.from_canonical(record.body)
        self.rules = charter.accounting
        card = rate_card_digest(charter.rate_card)
        if not self.cards_since:  # a founding charter rules the period it is signed in too
            self._period = Period.of(record.at_ms, self.rules.period)
        if not self.cards_since or self.cards_since[-1][1] != card:
            self.cards_since.append((record.at_ms, card))
        self.cards[card] = charter.rate_card
        self.owners = {site.name: site.partner for site in charter.sites}
        for name in ("issuance", "contribution"):
            self.accounts.setdefault(name, Account())
        members = [member.name for member in charter.members]
        for name in members:
            self.purses.setdefault(name, Purse())
            self.accounts.setdefault(budget_account(name), Account())
            self.accounts.setdefault(contributed_account(name), Account())
        for name in self.purses:
            self.accounts[budget_account(name)].closed = name not in members

    def budget(self, partner: str) -> Budget:
        """Of one partner, as of the last record. Raises KeyError for one that the ledger does not know."""
        purse, account = self.purses[partner], self.accounts[budget_account(partner)]
        contributed = self.accounts[contributed_account(partner)]
        expired = sum(lot.free for lot in purse.lots if lot.expired(self.last_ms))
        return Budget(
            partner=partner,
            granted_micro=account.credits_posted - purse.refunded_micro,
            held_micro=account.debits_pending,
            spent_micro=account.debits_posted - purse.lost_micro,
            available_micro=purse.available(self.last_ms),
            contributed_micro=contributed.credits_posted - contributed.debits_posted,
            later_micro=sum(lot.free for lot in purse.lots if lot.not_before_ms > self.last_ms),
            expired_micro=purse.lost_micro + expired,
            refunded_micro=purse.refunded_micro,
            disputed_micro=purse.disputed_micro,
        )
