"""From a statement's lines, and the earlier records they refer to, to the values in `statement`.

Pure, and from a bundle alone, so that it can be done offline. Trusts that the lines were verified.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from commons import charter_file
from commons.amounts import MICRO
from commons.charter import Charter
from commons.names import Digest
from commons.records import Kind, Record
from commons.statement import Line, StatementNote, amount_of
from governance.ratecard import rate_card_digest
from governance.statements.statement import Card, Disputed, Granted, OpenHold, Refund, Statement, Usage


def read_statement(note: StatementNote, lines: Sequence[Line], earlier: Sequence[Line]) -> Statement:
    """Raises ValueError or KeyError for lines that are no complete statement."""
    return _Reading(note, lines, earlier).statement()


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
        self.pledged: list[Granted] = []
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
            pledged=tuple(self.pledged),
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
            case "hold" | "pledge":
                self.holds[facts["id"]] = at_ms, facts
                if facts["payer"] == self.partner:
                    self.open[facts["id"]] = amount_of(facts)
            case "settle":
                self.settles[facts["id"]] = at_ms
            case "dispute":
                about = {"id": facts["dispute"], "settle": facts["disputes"]}
                self.disputes[facts["credit"]] = Disputed(
                    **about, amount_micro=amount_of(facts), opened_ms=at_ms
                )

    def _line(self, index: int, at_ms: int, facts: Mapping[str, Any]) -> None:
        match facts["type"]:
            case "hold" | "pledge" | "dispute":
                self._known(facts, at_ms)
            case "settle":
                self.settles[facts["id"]] = at_ms
                self.open.pop(facts["hold"], None)
                self._settle(index, at_ms, facts)
            case "release" | "expire" | "pledge-returned":
                self.open.pop(facts["hold"], None)
            case "pledge-paid":
                self.open.pop(facts["hold"], None)
                mine = facts["payer"] == self.partner
                about = f"pledge for {facts['to']}" if mine else f"pledge of {facts['payer']}"
                (self.pledged if mine else self.grants).append(_granted(index, at_ms, facts, about))
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
            self.usages[base] = replace(known, charged_micro=known.charged_micro + charged)
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
        about = {name: facts[name] for name in ("id", "run", "round", "site", "payer", "reason")}
        self.refunds.append(
            Refund(
                record=index,
                at_ms=at_ms,
                settle=facts["reverses"],
                charged_ms=charged_ms,
                owner=facts["partner"],
                amount_micro=amount,
                correction=charged_ms < self.note.begin_ms,
                **about,
            )
        )
        self._end_dispute(facts["debit"], at_ms, amount)

    def _end_dispute(self, account: str, at_ms: int, upheld: int) -> None:
        if known := self.disputes.get(account):
            upheld += known.upheld_micro
            self.disputes[account] = replace(known, ended_ms=at_ms, upheld_micro=upheld)

    def _open_holds(self) -> Iterable[OpenHold]:
        for name, amount in self.open.items():
            since_ms, facts = self.holds[name]
            yield OpenHold(id=facts["id"], amount_micro=amount, since_ms=since_ms)

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
