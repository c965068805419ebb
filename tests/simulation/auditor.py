"""An auditor who trusts nobody: recomputes the books from the journal's raw records and the promises made.

Written from the invariants, not from the ledger: it shares no code with `governance`, and reads facts as JSON and
notes as lines of text.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from commons.records import Kind, Record


@dataclass
class Books:
    """What the journal says, added up by hand. Amounts in micro."""

    granted: Counter[str] = field(default_factory=Counter)
    spent: Counter[str] = field(default_factory=Counter)
    contributed: Counter[str] = field(default_factory=Counter)
    open_holds: dict[str, tuple[str, int]] = field(default_factory=dict)
    ended: Counter[str] = field(default_factory=Counter)
    charged_for: Counter[tuple[str, int, str]] = field(default_factory=Counter)
    """(run, round, site) -> number of charges."""
    admitted: dict[tuple[str, int, str], int] = field(default_factory=dict)
    """(run, round, site) -> journal index of the update."""
    combined: dict[tuple[str, int], tuple[str, ...]] = field(default_factory=dict)
    finished: set[str] = field(default_factory=set)

    @property
    def held(self) -> Counter[str]:
        total: Counter[str] = Counter()
        for payer, amount in self.open_holds.values():
            total[payer] += amount
        return total


def audit(records: Iterable[Record]) -> Books:
    """Add everything up; an AssertionError names the first record that breaks an invariant."""
    books = Books()
    debits: defaultdict[str, int] = defaultdict(int)
    credits: defaultdict[str, int] = defaultdict(int)
    before_ms = 0
    for index, record in enumerate(records):
        where = f"record {index} ({record.kind})"
        assert record.at_ms >= before_ms, f"{where} is dated before its predecessor"
        before_ms = record.at_ms
        if record.kind is Kind.TRANSFER:
            facts = json.loads(record.body)
            assert isinstance(facts["amount_micro"], int), f"{where}: money is an integer"
            assert facts["amount_micro"] >= 0, f"{where}: {facts['amount_micro']} micro"
            _transfer(books, facts, where)
            if facts["type"] in ("grant", "settle", "contribution"):
                debits[facts["debit"]] += facts["amount_micro"]
                credits[facts["credit"]] += facts["amount_micro"]
        elif record.kind is Kind.UPDATE:
            said = _lines(record)
            key = (said["run"], int(said["round"]), said["site"])
            assert key not in books.admitted, f"{where}: a second update of {key}"
            assert key[:2] not in books.combined, f"{where}: the round is closed"
            books.admitted[key] = index
        elif record.kind is Kind.CLOSE:
            facts = json.loads(record.body)
            key = (facts["run"], facts["round"])
            assert key not in books.combined, f"{where}: {key} was closed before"
            books.combined[key] = tuple(facts["contributors"])
        elif record.kind is Kind.FINISH:
            books.finished.add(json.loads(record.body)["run"])
        overdrawn = {p for p in books.granted if books.granted[p] < books.spent[p] + books.held[p]}
        assert not overdrawn, f"{where}: {overdrawn} spent or hold more than they were granted"
    assert sum(debits.values()) == sum(credits.values()), "debits and credits differ"
    return books


def _transfer(books: Books, facts: Mapping[str, Any], where: str) -> None:
    amount = facts["amount_micro"]
    match facts["type"]:
        case "grant":
            books.granted[facts["partner"]] += amount
        case "hold":
            assert facts["id"] not in books.open_holds and not books.ended[facts["id"]], (
                f"{where}: held twice"
            )
            books.open_holds[facts["id"]] = (facts["payer"], amount)
        case "settle" | "release" | "expire":
            payer, held = books.open_holds.pop(facts["hold"])
            books.ended[facts["hold"]] += 1
            assert books.ended[facts["hold"]] == 1, f"{where}: ended twice"
            if facts["type"] == "settle":
                assert amount <= held, f"{where}: charged {amount} of a hold of {held}"
                books.spent[payer] += amount
                _, run, number, site, *_ = facts["hold"].split("/")
                books.charged_for[run, int(number), site] += 1
        case "contribution":
            books.contributed[facts["partner"]] += amount
        case other:
            raise AssertionError(f"{where}: a transfer of type {other!r}")


def _lines(note: Record) -> dict[str, str]:
    text = note.body.decode().split("\n\n")[0]
    return dict(line.split(" ", 1) for line in text.split("\n")[1:])


def check_promises(books: Books, acknowledged: Mapping[tuple[str, int, str], int]) -> None:
    """What partners were told holds: no update lost, none charged twice, none charged that was not combined."""
    for key, index in acknowledged.items():
        assert books.admitted.get(key) == index, f"update of {key} was acknowledged as {index} and is lost"
    for run, number, site in books.admitted:
        if (run, number) in books.combined:
            assert site in books.combined[run, number], (
                f"{site} was admitted to round {number} and left out of it"
            )
            assert books.charged_for[run, number, site] == 1, (
                f"{site}: {books.charged_for} charges of one round"
            )
    for key, times in books.charged_for.items():
        assert times == 1 and key in books.admitted, (
            f"{key} was charged {times} times, admitted: {key in books.admitted}"
        )
    if books.finished:
        assert not books.open_holds, f"every hold ends with its run: {books.open_holds}"
