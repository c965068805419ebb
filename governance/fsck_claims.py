"""The auditor's reading of second thoughts: reversals, disputes, rulings, conversions, and the closing of periods.

Nothing here is taken back without a reason that stands in the journal: a member's signed note, a vote, or the
operator's enumerated reason; and never more than is left of what it corrects.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timezone

from commons import notes
from commons.claims import ConvertNote, CountersignNote, DisputeNote, RulingNote
from commons.pricing import exact_pico, rates_of
from commons.records import Kind, Record
from commons.signed import text_digest
from governance.fsck_charges import MICRO, MILLION, PICO, Charge, Facts, card_digest
from governance.fsck_findings import Findings, Rule
from governance.fsck_money import Money
from governance.fsck_votes import Votes

_REASONS = ("metering_error", "hardware_fault", "duplicate", "rate_error")
_MONTH = re.compile(r"([0-9]{4})-(0[1-9]|1[0-2])")
_QUARTER = re.compile(r"([0-9]{4})-q([1-4])")


@dataclass
class _Dispute:
    settle: str
    charge: Charge
    partner: str
    index: int
    """Of the record that raised it, then of the last one that ends it."""
    amount: int
    left: int
    """In suspense."""
    upheld: int | None = None
    """What of it goes back, once a party or a vote has said so."""


@dataclass(frozen=True)
class _Boundary:
    """The books when a month ended."""

    records: int
    root: str
    accounts: int


class Claims:
    """Reads DISPUTE, RULING, CONVERT, COUNTERSIGN and PERIOD records, and the transfers that `Money` leaves to it."""

    def __init__(self, findings: Findings, votes: Votes, money: Money) -> None:
        self._findings, self._votes, self._money = findings, votes, money
        self._disputes: dict[str, _Dispute] = {}
        """Tail of the dispute's digest -> dispute"""
        self._note: tuple[int, DisputeNote | RulingNote | ConvertNote, str] | None = None
        """(index, note, digest) of a claim whose transfers must follow now."""
        self._owed: dict[str, tuple[int, str, str, str, int]] = {}
        """Transfer id -> (index of its cause, debit, credit, unit, amount) of what must follow now."""
        self._month_end_ms = 0
        self._boundaries: list[tuple[int, int, _Boundary]] = []
        """(first, end) of the month ends that lay between two records, and the books then. Unix ms."""
        self._closed: dict[str, int] = {}
        """Period -> when it ended (Unix ms)."""
        self._types = {
            "reversal": self._reverse,
            "dispute": self._dispute,
            "dismiss": self._dismiss,
            "contribution-reversal": self._follow,
            "convert": self._follow,
            "rounding": self._follow,
        }

    def turn(self, index: int, at_ms: int) -> None:
        """Before record `index` is read: look at the books if a month has ended."""
        if at_ms < self._month_end_ms:
            return
        begun_ms = _ms(_next_month(datetime.fromtimestamp(at_ms // 1000, timezone.utc)))
        if self._month_end_ms:
            root, accounts = self._money.books.balance_tree()
            boundary = _Boundary(index, root.hex(), accounts)
            self._boundaries.append((self._month_end_ms, begun_ms, boundary))
        self._month_end_ms = begun_ms

    def take(self, index: int, record: Record) -> None:
        facts = record.facts if record.kind is Kind.TRANSFER else {}
        self._follows(index, facts)
        match record.kind:
            case Kind.TRANSFER if facts["type"] in self._types and not self._money.reads(facts):
                self._types[facts["type"]](index, facts)
            case Kind.TRANSFER if not self._money.reads(facts):
                raise ValueError(f"a transfer of type {facts['type']!r}")
            case Kind.DISPUTE | Kind.RULING | Kind.CONVERT | Kind.COUNTERSIGN:
                self._claim(index, record)
            case Kind.PERIOD:
                self._close(index, record)

    def finish(self, size: int) -> None:
        """After the last record."""
        self._follows(size, {})
        for dispute in self._disputes.values():
            over = dispute.upheld is None or not dispute.left
            what = f"ends the dispute about {dispute.settle}, and {dispute.left} micro of it are still in suspense"
            self._findings.require(over, Rule.DISPUTE, dispute.index, what)

    def _follows(self, index: int, facts: Facts) -> None:
        """What must stand right behind its cause does."""
        if self._owed and facts.get("id") not in self._owed:
            for name, (cause, *_) in self._owed.items():
                rule = Rule.CONVERSION if "convert/" in name else Rule.CORRECTION
                self._findings.add(rule, cause, f"lacks {name}, which must follow it")
            self._owed.clear()
        if self._note is None:
            return
        cause, claim, digest = self._note
        about = claim.dispute if isinstance(claim, RulingNote) else digest
        if _tail(about) in facts.get("id", ""):
            self._note = self._note if isinstance(claim, DisputeNote) else None
            return
        if not isinstance(claim, ConvertNote):
            self._findings.add(Rule.DISPUTE, cause, "is a claim that nothing follows from")
        self._note = None

    def _claim(self, index: int, record: Record) -> None:
        note = notes.parse(record.body)
        digest = text_digest(note)
        claim: DisputeNote | RulingNote | ConvertNote | CountersignNote
        match record.kind:
            case Kind.DISPUTE:
                claim = DisputeNote.from_note(note)
            case Kind.RULING:
                claim = RulingNote.from_note(note)
            case Kind.CONVERT:
                claim = ConvertNote.from_note(note)
            case _:
                claim = CountersignNote.from_note(note)
        if not self._votes.by_member(index, note, claim.partner):
            return
        self._votes.once(index, note, Rule.DISPUTE, "is a claim that stood before")
        if isinstance(claim, CountersignNote):
            what = f"countersigns a statement of {claim.period}, which is not closed"
            self._findings.require(claim.period in self._closed, Rule.PERIOD, index, what)
            return
        self._note = (index, claim, digest)
        if isinstance(claim, ConvertNote):
            self._expect_conversion(index, claim, _tail(digest))
        if isinstance(claim, RulingNote):
            self._rule(index, claim)

    def _dispute(self, index: int, facts: Facts) -> None:
        need, tail, amount = self._findings.require, _tail(facts["dispute"]), facts["amount_micro"]
        charge = self._charge(index, facts["disputes"])
        run = charge.facts["run"]
        self._money.check_legs(index, facts, f"run/{run}/consumed", f"suspense/{tail}")
        need(
            facts["id"] == f"dispute/{tail}",
            Rule.DISPUTE,
            index,
            f"is called {facts['id']}, not dispute/{tail}",
        )
        note, self._note = self._note, None
        said = note[1] if note and note[2] == facts["dispute"] else None
        words = isinstance(said, DisputeNote) and (said.transfer, said.amount_micro, said.partner)
        same = words == (facts["disputes"], amount, facts["partner"])
        need(
            same,
            Rule.DISPUTE,
            index,
            f"disputes {amount} micro of {facts['disputes']}, which nobody has said",
        )
        by_payer = facts["partner"] == charge.facts["payer"]
        need(by_payer, Rule.DISPUTE, index, f"is a dispute by {facts['partner']}, who did not pay for it")
        self._take_from(index, charge, facts["disputes"], amount)
        self._money.books.post(facts["debit"], facts["credit"], MICRO, amount)
        self._disputes[tail] = _Dispute(facts["disputes"], charge, facts["partner"], index, amount, amount)

    def _rule(self, index: int, ruling: RulingNote) -> None:
        dispute = self._disputes.get(_tail(ruling.dispute))
        if dispute is None:
            self._findings.add(
                Rule.DISPUTE, index, f"rules on {ruling.dispute[:23]}, which is no dispute here"
            )
            return
        party = dispute.partner if ruling.outcome == "withdrawn" else dispute.charge.facts["partner"]
        what = f"is a dispute {ruling.outcome} by {ruling.partner}; that is for {party} to say"
        lawful = self._findings.require(ruling.partner == party, Rule.DISPUTE, index, what)
        if lawful:
            dispute.upheld = dispute.amount if ruling.outcome == "conceded" else 0

    def _ended(self, index: int, tail: str) -> _Dispute:
        """The dispute, with what goes back of it. Raises ValueError for one that never was."""
        dispute = self._disputes.get(tail)
        if dispute is None:
            raise ValueError(f"there is no dispute {tail!r}")
        dispute.index = index
        voted = [r for r in self._votes.charter.rulings if _tail(r.dispute) == tail]
        if dispute.upheld is None and voted:
            dispute.upheld = min(voted[0].upheld_micro, dispute.amount)
        what = f"ends the dispute about {dispute.settle}, which neither its parties nor a vote have ended"
        if not self._findings.require(dispute.upheld is not None, Rule.DISPUTE, index, what):
            dispute.upheld = dispute.amount
        return dispute

    def _dismiss(self, index: int, facts: Facts) -> None:
        tail, amount = _tail(facts["dispute"]), facts["amount_micro"]
        dispute = self._ended(index, tail)
        run = dispute.charge.facts["run"]
        self._money.check_legs(index, facts, f"suspense/{tail}", f"run/{run}/consumed")
        due = dispute.amount - (dispute.upheld or 0)
        what = (
            f"dismisses {amount} micro of a dispute; {due} were not upheld and {dispute.left} are in suspense"
        )
        self._findings.require(amount == due == dispute.left, Rule.DISPUTE, index, what)
        dispute.left -= amount
        dispute.charge.corrected[dispute.settle] -= amount
        self._money.books.post(facts["debit"], facts["credit"], MICRO, amount)

    def _reverse(self, index: int, facts: Facts) -> None:
        need, amount, settle = self._findings.require, facts["amount_micro"], facts["reverses"]
        charge = self._charge(index, settle)
        made = charge.facts
        tail = facts["debit"].partition("suspense/")[2]
        if tail:
            dispute = self._ended(index, tail)
            what = f"gives {amount} micro of a dispute back, upheld were {dispute.upheld} of {dispute.left}"
            same = amount == dispute.upheld and amount <= dispute.left and settle == dispute.settle
            need(same, Rule.DISPUTE, index, what)
            dispute.left -= amount
            lawful = facts["reason"] == "dispute_upheld" and facts["id"] == f"reversal/{tail}"
        else:
            self._take_from(index, charge, settle, amount)
            lawful = facts["reason"] in _REASONS and facts["id"].startswith("reversal/")
        need(
            lawful,
            Rule.CORRECTION,
            index,
            f"reverses {settle} for {facts['reason']!r}, which is no reason for it",
        )
        source = f"suspense/{tail}" if tail else f"run/{made['run']}/consumed"
        self._money.check_legs(index, facts, source, f"partner/{made['payer']}/budget")
        same = all(facts[k] == made[k] for k in ("run", "round", "site", "payer", "partner"))
        need(same, Rule.CORRECTION, index, f"reverses {settle} as if it were for something else")
        self._money.books.post(facts["debit"], facts["credit"], MICRO, amount)
        self._money.books.add_lot(made["payer"], facts["id"], amount)
        charged, before = sum(charge.settled.values()), charge.reversed
        charge.reversed += amount
        for partner, credited in charge.credited.items():
            back = charge.reversed * credited // charged - before * credited // charged if charged else 0
            if back:
                name = f"contribution-{facts['id']}/{partner}"
                self._owed[name] = (index, f"partner/{partner}/contributed", "contribution", MICRO, back)

    def _expect_conversion(self, index: int, claim: ConvertNote, tail: str) -> None:
        card, device = self._votes.charter.rate_card, claim.device
        rates = rates_of(card, device, "any") or rates_of(card, device, None)
        if not self._findings.require(
            bool(rates), Rule.CONVERSION, index, f"converts time of {device[:40]}, which has no rate"
        ):
            return
        unit, pledge = f"device_ms:{device}", f"partner/{claim.partner}/pledge/{device}"
        micro, rest = divmod(exact_pico(rates[0], 0, claim.amount_ms), MILLION)
        pledged = self._money.books.free(pledge)
        what = f"converts {claim.amount_ms} ms of {device} of which {claim.partner} has {pledged} pledged"
        self._findings.require(claim.amount_ms <= pledged, Rule.CONVERSION, index, what)
        legs = (
            (f"convert/{tail}/time", pledge, f"fx/{unit}", unit, claim.amount_ms),
            (f"convert/{tail}/money", "fx/micro", f"partner/{claim.partner}/budget", MICRO, micro),
            (f"rounding/convert/{tail}", "fx/pico", "rounding", PICO, rest),
        )
        self._owed |= {name: (index, *leg) for name, *leg in legs if leg[-1]}  # type: ignore[misc]

    def _follow(self, index: int, facts: Facts) -> None:
        """A transfer that another record is the cause of, in every particular."""
        name, need = facts["id"], self._findings.require
        unit = facts.get("unit", MICRO)
        amount = facts["amount_micro"] if unit == MICRO else facts["amount"]
        rule = Rule.CONVERSION if "convert/" in name else Rule.CORRECTION
        due = self._owed.pop(name, None)
        if need(due is not None, rule, index, f"is {name} without a cause") and due is not None:
            self._money.check_legs(index, facts, due[1], due[2])
            what = f"moves {amount} {unit} as {name}, due are {due[4]} {due[3]}"
            need((unit, amount) == due[3:], rule, index, what)
        self._money.books.post(facts["debit"], facts["credit"], unit, amount)
        if name.startswith("convert/"):
            card = card_digest(self._votes.charter)
            need(
                facts["rate_card"] == card,
                rule,
                index,
                f"converts as {name} by another rate card than the one in force",
            )
            if unit == MICRO:
                self._money.books.add_lot(facts["partner"], name, amount)

    def _charge(self, index: int, settle: str) -> Charge:
        """Raises ValueError when nothing was ever settled by that id."""
        charge = self._money.charges.of_settle.get(settle)
        if charge is None:
            raise ValueError(f"there is no charge {settle!r}")
        return charge

    def _take_from(self, index: int, charge: Charge, settle: str, amount: int) -> None:
        """Of a charge, no more is corrected or disputed than was charged."""
        left = charge.settled[settle] - charge.corrected.get(settle, 0)
        what = f"takes {amount} micro back of {settle}, of which {left} are left"
        self._findings.require(0 < amount <= left, Rule.CORRECTION, index, what)
        charge.corrected[settle] = charge.corrected.get(settle, 0) + amount

    def _close(self, index: int, record: Record) -> None:
        facts, need = record.facts, self._findings.require
        name = facts["period"]
        begin_ms, end_ms = _calendar(name)
        begin_ms = max(begin_ms, *(end for end in self._closed.values() if end < end_ms), 0)
        need(name not in self._closed, Rule.PERIOD, index, f"closes {name} a second time")
        need(record.at_ms >= end_ms, Rule.PERIOD, index, f"closes {name} before it is over")
        stated = (facts["begin_ms"], facts["end_ms"])
        what = f"closes {name} as {stated[0]} to {stated[1]}, by the calendar it is {begin_ms} to {end_ms}"
        need(begin_ms <= stated[0] < stated[1] == end_ms, Rule.PERIOD, index, what)
        found = next((b for first, end, b in self._boundaries if first <= end_ms < end), None)
        if (
            need(found is not None, Rule.PERIOD, index, f"closes {name}, in which nothing was written")
            and found
        ):
            same = _Boundary(facts["records"], facts["balances"], facts["accounts"]) == found
            what = f"closes {name} with {facts['records']} records and balances {facts['balances'][:16]}; they were"
            need(same, Rule.PERIOD, index, f"{what} {found.records} and {found.root[:16]}")
        self._closed[name] = end_ms


def _tail(digest: str) -> str:
    return digest.removeprefix("sha256:")[:32]


def _calendar(name: str) -> tuple[int, int]:
    """(first millisecond, first one after it) of a period. Raises ValueError for a name that is none."""
    if found := _MONTH.fullmatch(name):
        year, first, months = int(found[1]), int(found[2]), 1
    elif found := _QUARTER.fullmatch(name):
        year, first, months = int(found[1]), 3 * int(found[2]) - 2, 3
    else:
        raise ValueError(f"{name[:40]!r} is no period")
    begin = end = datetime(year, first, 1, tzinfo=timezone.utc)
    for _ in range(months):
        end = _next_month(end)
    return _ms(begin), _ms(end)


def _next_month(day: datetime) -> datetime:
    return datetime(day.year + (day.month == 12), day.month % 12 + 1, 1, tzinfo=timezone.utc)


def _ms(day: datetime) -> int:
    return int(day.timestamp()) * 1000
