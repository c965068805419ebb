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

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from commons import charter_file, notes
from commons.charter import Accounting, RateCard
from commons.errors import StoreError
from commons.names import Digest
from commons.records import Kind, Record
from commons.work import UsageNote
from governance.amounts import MICRO, is_amount
from governance.ledger.accounts import (
    Account,
    Lot,
    Purse,
    budget_account,
    contributed_account,
    require,
    spend,
)
from governance.ledger.holds import Hold, HoldRequest
from governance.ledger.periods import Period, balance_lines
from governance.ratecard import rate_card_digest

Facts = Mapping[str, Any]


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
class Dispute:
    id: Digest
    settle: str
    partner: str
    amount_micro: int
    open: bool = True
    outcome: str = ""
    """`upheld <micro>` once it has ended."""

    @property
    def account(self) -> str:
        return f"suspense/{self.tail}"

    @property
    def tail(self) -> str:
        return self.id.partition(":")[2][:32]


@dataclass
class Ledger:
    """State folded from records by `apply`; the decisions in the modules beside this one change nothing."""

    accounts: dict[str, Account] = field(default_factory=dict)
    purses: dict[str, Purse] = field(default_factory=dict)
    """Partner -> lots of its budget, in the order partners came."""
    rules: Accounting = field(default_factory=Accounting)
    cards: dict[Digest, RateCard] = field(default_factory=dict)
    """Every rate card that was ever in force."""
    owners: dict[str, str] = field(default_factory=dict)
    """site -> partner, by the charter in force"""
    failed: dict[str, str] = field(default_factory=dict)
    """id -> why it failed"""
    booked: dict[str, Facts] = field(default_factory=dict)
    """id -> the facts of every transfer that is no hold and ends none."""
    founding_micro: dict[str, int] = field(default_factory=dict)
    """Partner -> sum of the grants that follow from `members[].budget_micro`."""
    disputes: dict[Digest, Dispute] = field(default_factory=dict)
    closed: dict[str, int] = field(default_factory=dict)
    """Period -> when it was closed (Unix ms)."""
    boundaries: dict[str, tuple[Period, int, tuple[str, ...]]] = field(default_factory=dict)
    """Period that is over -> (period, records dated in or before it, balance lines at its end)."""
    open: dict[str, Hold] = field(default_factory=dict)
    """The holds that have not ended, in the order they were made."""
    last_ms: int = 0
    """When the last record was written."""
    size: int = 0
    """Records folded."""
    _holds: dict[str, Hold] = field(default_factory=dict)
    _tops: dict[str, list[Hold]] = field(default_factory=dict)
    _period: Period | None = None

    def budgets(self) -> list[Budget]:
        """Every partner that ever was a member, in the order they came, as of the last record."""
        return [self._budget(partner) for partner in self.purses]

    def available_micro(self, partner: str, now_ms: int | None = None) -> int:
        """What the partner may still have held, now or as of the last record; 0 for one the ledger does not know."""
        purse = self.purses.get(partner)
        return purse.available(self.last_ms if now_ms is None else now_ms) if purse else 0

    def charges(self) -> list[Hold]:
        """Every hold ever made, in order."""
        return list(self._holds.values())

    def hold(self, hold: str) -> Hold | None:
        return self._holds.get(hold)

    def settled(self, transfer: str) -> Hold | None:
        """The hold that this settle charged."""
        found = self._holds.get(transfer.replace("settle/", "hold/", 1))
        return found if found and found.state == "settled" and transfer == found.settle_id else None

    def topups(self, hold: str) -> list[Hold]:
        return self._tops.get(hold, [])

    def base(self, hold: Hold) -> Hold:
        """The hold itself, or the one it tops up."""
        return self._holds[hold.request.tops] if hold.request.tops else hold

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

    def apply(self, index: int, record: Record) -> None:
        """Fold one record. Raises StoreError when a transfer would break the ledger: the journal is not ours."""
        if self._period is None or record.at_ms >= self._period.end_ms:
            self._turn_period(record.at_ms)
        try:
            match record.kind:
                case Kind.TRANSFER:
                    self._transfer(record.facts, record.at_ms)
                case Kind.USAGE:
                    self._claim(UsageNote.from_note(notes.parse(record.body)))
                case Kind.CHARTER:
                    self._take_charter(record.body)
                case Kind.REFUSED:
                    facts = record.facts
                    self.failed[facts["id"]] = facts["message"]
                case Kind.PERIOD:
                    self.closed[record.facts["period"]] = record.at_ms
                case Kind.DISPUTE | _:
                    pass
        except (KeyError, TypeError, ValueError) as wrong:
            text = f"record {index} of the journal is no lawful {record.kind} ({wrong}): run `hansa journal fsck`"
            raise StoreError(text) from wrong
        self.last_ms, self.size = record.at_ms, index + 1

    def _turn_period(self, at_ms: int) -> None:
        before = self._period
        if before is not None:
            self.boundaries[before.name] = (before, self.size, balance_lines(self.accounts))
        self._period = Period.of(at_ms, self.rules.period, after_ms=before.end_ms if before else 0)

    def _take_charter(self, body: bytes) -> None:
        charter = charter_file.from_canonical(body)
        self.rules = charter.accounting
        self.cards[rate_card_digest(charter.rate_card)] = charter.rate_card
        self.owners = {site.name: site.partner for site in charter.sites}
        for name in ("issuance", "contribution"):
            self.accounts.setdefault(name, Account())
        members = {member.name for member in charter.members}
        for name in [m.name for m in charter.members]:
            self.purses.setdefault(name, Purse())
            self.accounts.setdefault(budget_account(name), Account())
            self.accounts.setdefault(contributed_account(name), Account())
        for name in self.purses:
            self.accounts[budget_account(name)].closed = name not in members

    def _claim(self, usage: UsageNote) -> None:
        """The site has said what its round took: the holds for it wait for their settle."""
        for hold in self.open.values():
            request = hold.request
            if (request.run, request.round, request.site) == (usage.run, usage.round, usage.site):
                hold.claimed = True

    def _transfer(self, facts: Facts, at_ms: int) -> None:
        unit = facts.get("unit", MICRO)
        amount = facts["amount_micro"] if unit == MICRO else facts["amount"]
        require(is_amount(amount), f"amount {amount!r}")
        kind = facts["type"]
        if kind == "hold":
            self._apply_hold(facts, amount, at_ms)
        elif kind in _ENDS:
            self._end(facts, _ENDS[kind], amount if kind == "settle" else 0, at_ms)
        else:
            require(facts["id"] not in self.booked, f"{facts['id']} was booked before")
            self._post(facts["debit"], facts["credit"], unit, amount)
            _EFFECTS[kind](self, facts, amount)
            self.booked[facts["id"]] = facts

    def _post(self, debit: str, credit: str, unit: str, amount: int) -> None:
        """Move `amount`; accounts other than the partners' come into being with their first transfer."""
        for name in (debit, credit):
            account = self.accounts.setdefault(name, Account(unit))
            require(account.unit == unit, f"{name} holds {account.unit}, not {unit}")
        self.accounts[debit].debits_posted += amount
        self.accounts[credit].credits_posted += amount

    def _apply_hold(self, facts: Facts, amount: int, at_ms: int) -> None:
        request = HoldRequest(**{n: facts[n] for n in HoldRequest.__dataclass_fields__ if n in facts})
        require(request.id not in self._holds, f"{request.id} was made before")
        require(facts["debit"] == budget_account(request.payer), f"{request.id} holds of {facts['debit']}")
        draws = self.purses[request.payer].draw(amount, at_ms)
        self.accounts[facts["debit"]].debits_pending += amount
        self.accounts.setdefault(facts["credit"], Account()).credits_pending += amount
        hold = self._holds[request.id] = self.open[request.id] = Hold(request, facts["partner"], at_ms, draws)
        if request.tops:
            self._tops.setdefault(request.tops, []).append(hold)

    def _end(self, facts: Facts, state: str, charged: int, at_ms: int) -> None:
        hold = self.open[facts["hold"]]
        held = hold.request.amount_micro
        require(charged <= held, f"{facts['hold']} is for {held}")
        request = hold.request
        own = (budget_account(request.payer), f"run/{request.run}/consumed")
        require((facts["debit"], facts["credit"]) == own, f"{facts['id']} moves between other accounts")
        del self.open[facts["hold"]]
        payer, consumed = self.accounts[facts["debit"]], self.accounts[facts["credit"]]
        payer.debits_pending -= held
        consumed.credits_pending -= held
        payer.debits_posted += charged
        consumed.credits_posted += charged
        spend(hold.draws, charged)
        hold.draws = []
        hold.state, hold.charged_micro, hold.ended_ms = state, charged, at_ms
        hold.usage, hold.accepted = facts.get("usage", ""), facts.get("accepted", True)

    def _grant(self, facts: Facts, amount: int) -> None:
        if facts.get("unit", MICRO) != MICRO:
            return
        partner = facts["partner"]
        rules = {name: facts[name] for name in ("priority", "not_before_ms", "expires_ms") if name in facts}
        self.purses[partner].add(Lot(facts["id"], amount, **rules))
        if not rules:
            self.founding_micro[partner] = self.founding_micro.get(partner, 0) + amount

    def _contribute(self, facts: Facts, amount: int) -> None:
        contributed = self._holds[facts["hold"]].contributed
        contributed[facts["partner"]] = contributed.get(facts["partner"], 0) + amount

    def _break(self, facts: Facts, amount: int) -> None:
        lot = next(lot for lot in self.purses[facts["partner"]].lots if lot.id == facts["grant"])
        require(amount <= lot.free, f"{lot.id} has {lot.free} left")
        lot.lost += amount
        lot.breakages += 1

    def _dispute(self, facts: Facts, amount: int) -> None:
        hold = self._correctable(facts["disputes"])
        require(amount <= hold.correctable_micro, f"{facts['disputes']} has {hold.correctable_micro} left")
        hold.suspended_micro += amount
        digest = Digest(facts["dispute"])
        self.disputes[digest] = Dispute(digest, facts["disputes"], facts["partner"], amount)

    def _dismiss(self, facts: Facts, amount: int) -> None:
        dispute = self.disputes[Digest(facts["dispute"])]
        self._correctable(dispute.settle).suspended_micro -= amount
        self._end_dispute(dispute)

    def _reverse(self, facts: Facts, amount: int) -> None:
        hold = self._correctable(facts["reverses"])
        if facts["debit"].startswith("suspense/"):
            dispute = next(d for d in self.disputes.values() if d.account == facts["debit"])
            hold.suspended_micro -= amount
            dispute.outcome = f"upheld {amount}"
            self._end_dispute(dispute)
        require(amount <= hold.correctable_micro, f"{facts['reverses']} has {hold.correctable_micro} left")
        hold.reversed_micro += amount
        self.purses[facts["payer"]].add(Lot(facts["id"], amount))

    def _end_dispute(self, dispute: Dispute) -> None:
        account = self.accounts[dispute.account]
        require(account.debits_posted <= account.credits_posted, f"{dispute.account} is overdrawn")
        dispute.open = account.debits_posted < account.credits_posted
        dispute.outcome = dispute.outcome or "upheld 0"

    def _convert(self, facts: Facts, amount: int) -> None:
        if facts.get("unit", MICRO) == MICRO:
            self.purses[facts["partner"]].add(Lot(facts["id"], amount))
        else:
            pledge = self.accounts[facts["debit"]]
            require(pledge.debits_posted <= pledge.credits_posted, f"{facts['debit']} is overdrawn")

    def _correctable(self, settle: str) -> Hold:
        hold = self.settled(settle)
        require(hold is not None, f"there is no {settle}")
        assert hold is not None
        return hold

    def _nothing_more(self, facts: Facts, amount: int) -> None:
        """Both accounts have it; nothing else depends on this transfer."""

    def _budget(self, partner: str) -> Budget:
        purse, account = self.purses[partner], self.accounts[budget_account(partner)]
        refunded = sum(lot.amount for lot in purse.lots if lot.id.startswith("reversal/"))
        lost = sum(lot.lost for lot in purse.lots)
        return Budget(
            partner=partner,
            granted_micro=account.credits_posted - refunded,
            held_micro=account.debits_pending,
            spent_micro=account.debits_posted - lost,
            available_micro=purse.available(self.last_ms),
            contributed_micro=_balance(self.accounts[contributed_account(partner)]),
            later_micro=sum(lot.free for lot in purse.lots if lot.not_before_ms > self.last_ms),
            expired_micro=lost + sum(lot.free for lot in purse.lots if lot.expired(self.last_ms)),
            refunded_micro=refunded,
            disputed_micro=sum(
                d.amount_micro for d in self.disputes.values() if d.open and d.partner == partner
            ),
        )


_ENDS = {"settle": "settled", "release": "released", "expire": "expired"}
_EFFECTS: dict[str, Callable[[Ledger, Facts, int], None]] = {
    "grant": Ledger._grant,
    "contribution": Ledger._contribute,
    "contribution-reversal": Ledger._nothing_more,
    "rounding": Ledger._nothing_more,
    "breakage": Ledger._break,
    "dispute": Ledger._dispute,
    "dismiss": Ledger._dismiss,
    "reversal": Ledger._reverse,
    "convert": Ledger._convert,
}


def _balance(account: Account) -> int:
    return account.credits_posted - account.debits_posted
