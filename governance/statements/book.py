"""Who is concerned by which transfer: the lines of every partner and period, folded from the journal.

A view. Keeps record indices and running sums, never a record: a statement over a million records is made from what
stands here, its lines are read from the journal when somebody wants them. Judges nothing; the ledger did.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from commons import charter_file, notes
from commons.claims import CountersignNote
from commons.names import Digest
from commons.records import Kind, Record
from commons.statement import LinesDigest, Sums, amount_of, line_json
from governance.ledger.periods import Period
from governance.ratecard import rate_card_digest

END_OF_TIME = 2**63


@dataclass
class Page:
    """The lines of one partner in one period."""

    sums: Sums
    indices: array[int] = field(default_factory=lambda: array("q"))
    times: array[int] = field(default_factory=lambda: array("q"))
    """When each line was written (Unix ms); never falls."""
    digest: LinesDigest = field(default_factory=LinesDigest)
    earlier: set[int] = field(default_factory=set)
    """Older records about what was still open when the period began."""
    corrects: list[tuple[int, str]] = field(default_factory=list)
    """(line, settle) for each line that reverses some of a charge, or disputes it, or ends a dispute about it."""
    cards: dict[str, int] = field(default_factory=dict)
    """Digest of each rate card that lines were priced by -> the first of these lines."""


@dataclass(frozen=True)
class CardInForce:
    digest: Digest
    currency: str
    since_ms: int
    until_ms: int
    index: int
    """The CHARTER record that brought it."""


@dataclass(frozen=True)
class _Open:
    """A hold or a dispute that has not ended."""

    index: int
    partners: frozenset[str]
    left_micro: int


class Book:
    """Changes only by `apply`."""

    def __init__(self) -> None:
        self.periods: dict[str, Period] = {}
        """Every period that has records, in order; the last is the current one."""
        self.sealed: dict[str, int] = {}
        """Closed period -> index of its PERIOD record."""
        self.countersigned: dict[tuple[str, str], tuple[int, str]] = {}
        """(partner, period) -> index of its COUNTERSIGN record, digest of the statement it is about."""
        self.consortium = ""
        self._pages: dict[tuple[str, str], Page] = {}
        self._open: dict[str, _Open] = {}
        """By hold id, or by the account a dispute rests in."""
        self._cards: list[tuple[int, int, Digest, str]] = []
        """(record index, at_ms, digest, currency) each time another card came into force."""
        self._rule = ""
        self._period: Period | None = None

    def page(self, partner: str, period: str) -> Page:
        """The partner's lines of a period; an empty page when nothing in it concerns them."""
        return self._pages.get((partner, period)) or Page(Sums(partner))

    def before(self, period: str) -> Period | None:
        """The period before it that has records; None when the books began with it."""
        names = list(self.periods)
        at = names.index(period)
        return self.periods[names[at - 1]] if at else None

    def cards(self, period: Period) -> list[CardInForce]:
        """The rate cards in force at some time of the period, in order."""
        return [c for c in self._all_cards() if c.since_ms < period.end_ms and c.until_ms > period.begin_ms]

    def card_index(self, digest: str) -> int:
        """The CHARTER record that first brought this rate card."""
        return next(index for index, _, known, _ in self._cards if known == digest)

    def candidates(self, partner: str, at_ms: int) -> list[int]:
        """Indices of the partner's lines that were written at that very time."""
        for period in self.periods.values():
            if period.begin_ms <= at_ms < period.end_ms:
                page = self.page(partner, period.name)
                low, high = bisect_left(page.times, at_ms), bisect_right(page.times, at_ms)
                return list(page.indices[low:high])
        return []

    def apply(self, index: int, record: Record) -> None:
        """Fold one record. Raises KeyError or ValueError for a record the ledger would not have taken."""
        if self._period is None or record.at_ms >= self._period.end_ms:
            self._turn(record.at_ms)
        match record.kind:
            case Kind.TRANSFER:
                self._transfer(index, record)
            case Kind.CHARTER:
                self._take_charter(index, record)
            case Kind.PERIOD:
                self.sealed[record.facts["period"]] = index
            case Kind.COUNTERSIGN:
                signed = CountersignNote.from_note(notes.parse(record.body))
                self.countersigned[signed.partner, signed.period] = index, signed.statement
            case _:
                pass

    def _turn(self, at_ms: int) -> None:
        """A new period begins; what is open goes on in it."""
        before = self._period
        period = self._period = Period.of(at_ms, self._rule, after_ms=before.end_ms if before else 0)
        self.periods[period.name] = period
        for still in self._open.values():
            for partner in still.partners:
                self._own_page(partner).earlier.add(still.index)

    def _take_charter(self, index: int, record: Record) -> None:
        charter = charter_file.from_canonical(record.body)
        self.consortium, self._rule = charter.consortium.name, charter.accounting.period
        if not self._cards:
            self._period = Period.of(record.at_ms, self._rule)
            self.periods = {self._period.name: self._period}
        digest = rate_card_digest(charter.rate_card)
        if not self._cards or self._cards[-1][2] != digest:
            self._cards.append((index, record.at_ms, digest, charter.rate_card.currency))

    def _transfer(self, index: int, record: Record) -> None:
        facts = record.facts
        partners = {account.split("/")[1] for account in _partners_accounts(facts)}
        partners.update(facts[name] for name in ("payer", "partner") if name in facts)
        match facts["type"]:
            case "hold" | "pledge":
                self._open[facts["id"]] = _Open(index, frozenset(partners), amount_of(facts))
            case "settle" | "release" | "expire" | "pledge-paid" | "pledge-returned":
                partners |= self._open.pop(facts["hold"]).partners
            case "dispute":
                self._open[facts["credit"]] = _Open(index, frozenset(partners), amount_of(facts))
            case "dismiss" | "reversal":
                self._lessen(facts["debit"], amount_of(facts))
        json = line_json((index, record.leaf.decode()))
        for partner in partners:
            page = self._own_page(partner)
            page.indices.append(index)
            page.times.append(record.at_ms)
            page.digest.add(json)
            page.sums.add(facts)
            if card := facts.get("rate_card"):
                page.cards.setdefault(card, index)
            if corrected := facts.get("reverses") or facts.get("disputes"):
                page.corrects.append((index, corrected))

    def _lessen(self, account: str, amount: int) -> None:
        """Less is disputed; nothing when `account` is no dispute's."""
        if rests := self._open.get(account):
            left = rests.left_micro - amount
            if left:
                self._open[account] = _Open(rests.index, rests.partners, left)
            else:
                del self._open[account]

    def _own_page(self, partner: str) -> Page:
        assert self._period is not None, "a record is in a period"
        key = partner, self._period.name
        page = self._pages.get(key)
        if page is None:
            page = self._pages[key] = Page(Sums(partner))
        return page

    def _all_cards(self) -> Iterator[CardInForce]:
        for (index, since_ms, digest, currency), (_, until_ms, _, _) in pairwise(
            [*self._cards, (0, END_OF_TIME, Digest(""), "")]
        ):
            yield CardInForce(digest, currency, since_ms, until_ms, index)


def _partners_accounts(facts: Mapping[str, Any]) -> list[str]:
    return [facts[side] for side in ("debit", "credit") if facts[side].startswith("partner/")]
