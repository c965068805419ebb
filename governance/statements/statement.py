"""A statement as a person and an exporter want it: usages, refunds, disputes, clearing, rates, read from its lines.

Pure, and built from a bundle alone, so that it can be made offline. Amounts are micro of the currency. Knows no
format: `focus`, `hledger` and `beancount` write what stands here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from commons import charter_file
from commons.charter import Charter, RateCard
from commons.names import Digest
from commons.pricing import exact_pico, rates_of
from commons.records import Kind, Record
from commons.statement import MICRO, Line, StatementNote, amount_of
from governance.amounts import PICO_PER_MICRO
from governance.ratecard import rate_card_digest


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What one site's work in one round cost: the settle of its hold, and of the hold's top-ups."""

    record: int
    """Journal index of the first settle."""
    id: str
    held_ms: int
    """When the hold was made: the round opened."""
    at_ms: int
    run: str
    round: int
    site: str
    owner: str
    payer: str
    rate_card: Digest
    charged_micro: int
    device: str
    """Empty in journals from before measures stood on the settle; then the quantities are 0."""
    precision: str
    gflop: int
    device_ms: int
    tokens: int
    energy_j: int | None
    percent: int
    accepted: bool


@dataclass(frozen=True, kw_only=True)
class Refund:
    """Some of a charge given back."""

    record: int
    id: str
    at_ms: int
    settle: str
    charged_ms: int
    run: str
    round: int
    site: str
    owner: str
    payer: str
    reason: str
    amount_micro: int
    correction: bool
    """The charge is of an earlier period, whose statement no longer changes."""


@dataclass(frozen=True, kw_only=True)
class Disputed:
    id: Digest
    settle: str
    amount_micro: int
    opened_ms: int
    ended_ms: int | None
    upheld_micro: int
    """Given back, when it has ended."""


@dataclass(frozen=True, kw_only=True)
class Granted:
    """Budget (or pledged device time) that came in, or expired: a grant, a conversion, breakage."""

    record: int
    id: str
    at_ms: int
    unit: str
    amount: int
    about: str
    """Conversion: the time given for it; breakage: the grant that expired."""


@dataclass(frozen=True, kw_only=True)
class OpenHold:
    id: str
    run: str
    round: int
    site: str
    amount_micro: int
    since_ms: int


@dataclass(frozen=True)
class Card:
    digest: Digest
    since_ms: int
    card: RateCard


@dataclass(frozen=True)
class Clearing:
    """What the partner and another one owe each other for work on each other's sites."""

    other: str
    owed_micro: int
    """By the other to the partner."""
    owes_micro: int

    @property
    def net_micro(self) -> int:
        """Above 0: the other owes it."""
        return self.owed_micro - self.owes_micro


@dataclass(frozen=True)
class Total:
    """Usages of one run, site, device and precision."""

    run: str
    site: str
    experts: tuple[str, ...]
    device: str
    precision: str
    accepted: bool
    rounds: int
    gflop: int
    device_ms: int
    tokens: int
    energy_j: int | None
    """None when any of them did not tell."""
    charged_micro: int


@dataclass(frozen=True, kw_only=True)
class Statement:
    note: StatementNote
    usages: tuple[Usage, ...]
    """Paid by the partner."""
    earned: tuple[Usage, ...]
    """Work of the partner's sites that others paid."""
    refunds: tuple[Refund, ...]
    """To the partner."""
    refunds_by_owner: tuple[Refund, ...]
    """To others, for work of the partner's sites."""
    disputes: tuple[Disputed, ...]
    """Raised by the partner: opened or ended in the period, or still open."""
    grants: tuple[Granted, ...]
    conversions: tuple[Granted, ...]
    expired: tuple[Granted, ...]
    holds: tuple[OpenHold, ...]
    """Of the partner's budget, open at the end."""
    held_before_micro: int
    """What they came to at the beginning."""
    cards: tuple[Card, ...]
    """In force in the period."""
    charters: tuple[Charter, ...] = field(repr=False)

    @classmethod
    def of(cls, note: StatementNote, lines: Sequence[Line], earlier: Sequence[Line]) -> Statement:
        """Read the lines. Raises ValueError (KeyError) for lines that are no complete statement."""
        return _Reading(note, lines, earlier).statement()

    @property
    def totals(self) -> tuple[Total, ...]:
        """What the partner paid for, summed up, in the order it began."""
        groups: dict[tuple[str, str, str, str, bool], list[Usage]] = {}
        for u in self.usages:
            groups.setdefault((u.run, u.site, u.device, u.precision, u.accepted), []).append(u)
        return tuple(
            Total(
                run,
                site,
                self.experts(site),
                device,
                precision,
                accepted,
                len(found),
                sum(u.gflop for u in found),
                sum(u.device_ms for u in found),
                sum(u.tokens for u in found),
                None if any(u.energy_j is None for u in found) else sum(u.energy_j or 0 for u in found),
                sum(u.charged_micro for u in found),
            )
            for (run, site, device, precision, accepted), found in groups.items()
        )

    @property
    def clearing(self) -> tuple[Clearing, ...]:
        """One for every partner with whom something is owed, by name."""
        owed: dict[str, int] = {}
        owes: dict[str, int] = {}
        for u in self.earned:
            owed[u.payer] = owed.get(u.payer, 0) + u.charged_micro
        for u in self.usages:
            owes[u.owner] = owes.get(u.owner, 0) + u.charged_micro
        for r in self.refunds_by_owner:
            owed[r.payer] = owed.get(r.payer, 0) - r.amount_micro
        for r in self.refunds:
            owes[r.owner] = owes.get(r.owner, 0) - r.amount_micro
        others = sorted((owed.keys() | owes.keys()) - {self.note.partner})
        return tuple(Clearing(other, owed.get(other, 0), owes.get(other, 0)) for other in others)

    def experts(self, site: str) -> tuple[str, ...]:
        """By the newest charter at hand that knows the site."""
        return next((s.experts for c in reversed(self.charters) if (s := c.site(site))), ())

    def card(self, digest: str) -> RateCard:
        """A card that the lines were priced by. Raises ValueError when no charter at hand has it."""
        for charter in self.charters:
            if rate_card_digest(charter.rate_card) == digest:
                return charter.rate_card
        raise ValueError(f"no charter of the statement has rate card {digest}")

    def exact_pico(self, usage: Usage) -> tuple[int, int]:
        """(price of the work, price of the time) in 10^-6 micro, before rounding, shares and bounds."""
        rates = rates_of(self.card(usage.rate_card), usage.device, usage.precision)
        if not rates:
            raise ValueError(f"{usage.id} is for {usage.device} at {usage.precision}, which has no rate")
        work = exact_pico(rates[0], usage.gflop, 0)
        return work, exact_pico(rates[0], usage.gflop, usage.device_ms) - work

    def problems(self) -> list[str]:
        """What a reader who knows the rate cards objects to, each in a sentence; empty: nothing."""
        note, found = self.note, []
        last = self.cards[-1] if self.cards else None
        stated = (note.rate_card, note.rate_card_since_ms, note.rate_cards)
        if last is None or (last.digest, last.since_ms, len(self.cards)) != stated:
            found.append(f"rate card {note.rate_card} was not in force at the end of {note.period}")
        for usage in (*self.usages, *self.earned):
            if usage.device:
                exact = -(-sum(self.exact_pico(usage)) // PICO_PER_MICRO) * usage.percent // 100
                if usage.charged_micro > exact:
                    found.append(f"{usage.id} charged {usage.charged_micro} micro, its price is {exact}")
        return found


class _Reading:
    """Lines on their way to a statement."""

    def __init__(self, note: StatementNote, lines: Sequence[Line], earlier: Sequence[Line]) -> None:
        self.note, self.partner = note, note.partner
        self.holds: dict[str, tuple[int, Mapping[str, Any]]] = {}
        """id -> (at_ms, facts) of every hold there is a record of."""
        self.open: dict[str, int] = {}
        """Holds of the partner's budget that have not ended."""
        self.settles: dict[str, int] = {}
        self.disputes: dict[str, Disputed] = {}
        self.usages: dict[str, Usage] = {}
        self.refunds: list[Refund] = []
        self.grants: list[Granted] = []
        self.conversions: list[Granted] = []
        self.expired: list[Granted] = []
        self.time_given: dict[str, str] = {}
        self.charters: list[tuple[int, Charter]] = []
        for _, at_ms, record in _records(earlier):
            if record.kind is Kind.CHARTER:
                self.charters.append((at_ms, charter_file.from_canonical(record.body)))
            else:
                self._known(record.facts, at_ms)
        self.held_before_micro = sum(self.open.values())
        for index, at_ms, record in _records(lines):
            self._line(index, at_ms, record.facts)

    def statement(self) -> Statement:
        usages, paid = self.usages.values(), self.partner
        return Statement(
            note=self.note,
            usages=tuple(u for u in usages if u.payer == paid),
            earned=tuple(u for u in usages if u.payer != paid),
            refunds=tuple(r for r in self.refunds if r.payer == paid),
            refunds_by_owner=tuple(r for r in self.refunds if r.payer != paid),
            disputes=tuple(self.disputes.values()),
            grants=tuple(self.grants),
            conversions=tuple(self.conversions),
            expired=tuple(self.expired),
            holds=tuple(self._open_holds()),
            held_before_micro=self.held_before_micro,
            cards=self._cards(),
            charters=tuple(charter for _, charter in self.charters),
        )

    def _known(self, facts: Mapping[str, Any], at_ms: int) -> None:
        """An older record, or one of the period: what later lines refer to."""
        match facts["type"]:
            case "hold":
                self.holds[facts["id"]] = at_ms, facts
                if facts["payer"] == self.partner:
                    self.open[facts["id"]] = amount_of(facts)
            case "settle":
                self.settles[facts["id"]] = at_ms
            case "dispute":
                self.disputes[facts["credit"]] = Disputed(
                    id=Digest(facts["dispute"]),
                    settle=facts["disputes"],
                    amount_micro=amount_of(facts),
                    opened_ms=at_ms,
                    ended_ms=None,
                    upheld_micro=0,
                )

    def _line(self, index: int, at_ms: int, facts: Mapping[str, Any]) -> None:
        match facts["type"]:
            case "hold" | "dispute":
                self._known(facts, at_ms)
            case "settle":
                self._known(facts, at_ms)
                self.open.pop(facts["hold"], None)
                self._settle(index, at_ms, facts)
            case "release" | "expire":
                self.open.pop(facts["hold"], None)
            case "reversal":
                self._refund(index, at_ms, facts)
            case "dismiss":
                self._end_dispute(facts["debit"], at_ms, 0)
            case "grant":
                self.grants.append(_granted(index, at_ms, facts))
            case "convert" if facts.get("unit", MICRO) != MICRO:
                self.time_given[facts["linked"]] = f"{amount_of(facts)} ms of {facts['debit'].split('/')[-1]}"
            case "convert":
                self.conversions.append(_granted(index, at_ms, facts, self.time_given[facts["linked"]]))
            case "breakage":
                self.expired.append(_granted(index, at_ms, facts, facts["grant"]))

    def _settle(self, index: int, at_ms: int, facts: Mapping[str, Any]) -> None:
        held_ms, hold = self.holds[facts["hold"]]
        base = hold.get("tops") or hold["id"]
        charged = amount_of(facts)
        if known := self.usages.get(base):
            charged += known.charged_micro
            self.usages[base] = Usage(**{**vars(known), "charged_micro": charged})
            return
        self.usages[base] = Usage(
            record=index,
            id=facts["id"],
            held_ms=held_ms,
            at_ms=at_ms,
            run=facts["run"],
            round=facts["round"],
            site=facts["site"],
            owner=hold["partner"],
            payer=facts["payer"],
            rate_card=Digest(facts["rate_card"]),
            charged_micro=charged,
            device=facts.get("device", ""),
            precision=facts.get("precision", ""),
            gflop=facts.get("gflop", 0),
            device_ms=facts.get("device_ms", 0),
            tokens=facts.get("tokens", 0),
            energy_j=facts.get("energy_j"),
            percent=facts.get("percent", 100),
            accepted=facts.get("accepted", True),
        )

    def _refund(self, index: int, at_ms: int, facts: Mapping[str, Any]) -> None:
        amount, charged_ms = amount_of(facts), self.settles[facts["reverses"]]
        names = ("id", "run", "round", "site", "payer", "reason")
        self.refunds.append(
            Refund(
                record=index,
                at_ms=at_ms,
                settle=facts["reverses"],
                charged_ms=charged_ms,
                owner=facts["partner"],
                amount_micro=amount,
                correction=charged_ms < self.note.begin_ms,
                **{name: facts[name] for name in names},
            )
        )
        self._end_dispute(facts["debit"], at_ms, amount)

    def _end_dispute(self, account: str, at_ms: int, upheld: int) -> None:
        if known := self.disputes.get(account):
            ended = {"ended_ms": at_ms, "upheld_micro": known.upheld_micro + upheld}
            self.disputes[account] = Disputed(**{**vars(known), **ended})

    def _open_holds(self) -> Iterable[OpenHold]:
        for name, amount in self.open.items():
            since_ms, facts = self.holds[name]
            about = {key: facts[key] for key in ("id", "run", "round", "site")}
            yield OpenHold(amount_micro=amount, since_ms=since_ms, **about)

    def _cards(self) -> tuple[Card, ...]:
        found = [Card(rate_card_digest(c.rate_card), at_ms, c.rate_card) for at_ms, c in self.charters]
        until = [card.since_ms for card in found[1:]] + [self.note.end_ms]
        return tuple(c for c, end_ms in zip(found, until, strict=True) if end_ms > self.note.begin_ms)


def _records(lines: Sequence[Line]) -> Iterable[tuple[int, int, Record]]:
    for index, leaf in lines:
        record = Record.parse(leaf.encode())
        yield index, record.at_ms, record


def _granted(index: int, at_ms: int, facts: Mapping[str, Any], about: str = "") -> Granted:
    unit = facts.get("unit", MICRO)
    return Granted(record=index, id=facts["id"], at_ms=at_ms, unit=unit, amount=amount_of(facts), about=about)
