"""How the books look in MLflow: one run per partner and period, a step per booking, the statement as files once it is closed.

Pure: folds records into items, beside a ledger that somebody else folds first. RUNNING means the period goes on, FINISHED
that it is closed. ``period/*`` counts what was booked in the period, ``budget/*`` is how the budget then stands,
``forecast/*`` what `governance.forecast` makes of it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from commons import charter_file, notes
from commons.claims import CountersignNote
from commons.records import Kind, Record
from commons.statement import Sums
from governance.forecast import RECENT_ROUNDS, Free, Spent, by_round, forecast
from governance.ledger import Ledger
from governance.ledger.periods import Period
from governance.tracking.items import End, Item, Log, Point, Start, Statement


@dataclass
class _Purse:
    """One partner's."""

    sums: Sums
    """Of the period."""
    bookings: int = 0
    """In the period."""
    recent: deque[Spent] = field(default_factory=lambda: deque(maxlen=RECENT_ROUNDS))


class Books:
    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._consortium = self._currency = ""
        self._period = ""
        self._purses: dict[str, _Purse] = {}
        self._members: dict[str, list[str]] = {}
        """Period -> partners who have a run of it."""
        self._run_rounds = self._rounds_left = 0

    def apply(self, index: int, record: Record) -> list[Item]:
        """The ledger has folded this record already."""
        items = self._turn(record)
        match record.kind:
            case Kind.RUN:
                self._run_rounds = self._rounds_left = record.facts["rounds"]
            case Kind.ROUND:
                self._rounds_left = self._run_rounds - record.facts["round"]
            case Kind.FINISH:
                self._run_rounds = self._rounds_left = 0
            case Kind.TRANSFER:
                items += self._transfer(record)
            case Kind.PERIOD:
                items += self._close(record)
            case Kind.COUNTERSIGN:
                signed = CountersignNote.from_note(notes.parse(record.body))
                run = _run(signed.partner, signed.period)
                items.append(Log(run, tags={"hansa.statement.countersigned": str(index)}))
            case _:
                pass
        return items

    def _turn(self, record: Record) -> list[Item]:
        """Runs of a period that begins with this record, or of partners whom it brings."""
        if record.kind is Kind.CHARTER:
            charter = charter_file.from_canonical(record.body)
            self._consortium, self._currency = charter.consortium.name, charter.rate_card.currency
        period = self._ledger.period()
        if period is None or not self._currency:
            return []
        if period.name != self._period:
            self._period, self._members[period.name] = period.name, []
            for name, purse in self._purses.items():
                purse.sums, purse.bookings = Sums(name), 0
        known = self._members[period.name]
        new = [name for name in self._ledger.purses if name not in known]
        known += new
        return [self._start(name, period, record.at_ms) for name in new]

    def _start(self, partner: str, period: Period, at_ms: int) -> Start:
        self._purses.setdefault(partner, _Purse(Sums(partner)))
        tags = {
            "hansa.consortium": self._consortium,
            "hansa.role": "ledger",
            "hansa.partner": partner,
            "hansa.period": period.name,
            "hansa.period.begin_ms": str(period.begin_ms),
            "hansa.period.end_ms": str(period.end_ms),
            "hansa.currency": self._currency,
            "mlflow.note.content": (
                f"The budget of **{partner}** in {period.name}, amounts in micro of {self._currency}; one step per booking. "
                "The signed statement is among the artifacts once the period is closed."
            ),
        }
        return Start(_run(partner, period.name), "ledger", f"{partner} {period.name}", at_ms, tags=tags)

    def _transfer(self, record: Record) -> list[Item]:
        facts, items = record.facts, list[Item]()
        if facts["type"] == "settle":
            self._remember(facts, record.at_ms)
        for partner in sorted(_concerned(facts)):
            purse = self._purses[partner]
            purse.sums.add(facts)
            purse.bookings += 1
            values = self._values(partner, purse, record.at_ms)
            if facts["type"] == "hold":
                values = {key: value for key, value in values.items() if key.startswith("budget/")}
            points = (Point(key, value, purse.bookings, record.at_ms) for key, value in values.items())
            items.append(Log(_run(partner, self._period), tuple(points)))
        return items

    def _remember(self, facts: Mapping[str, Any], at_ms: int) -> None:
        recent = self._purses[facts["payer"]].recent
        hold = self._ledger.hold(facts["hold"])
        assert hold is not None, "the ledger settled it"
        merged = by_round([*recent, Spent(facts["run"], facts["round"], at_ms, hold.charged_micro)])
        recent.clear()
        recent.extend(merged)

    def _values(self, partner: str, purse: _Purse, at_ms: int) -> dict[str, float]:
        budget, sums = self._ledger.budget(partner), purse.sums
        lots = self._ledger.purses[partner].lots
        ahead = forecast(
            partner,
            tuple(purse.recent),
            [Free(lot.free, lot.not_before_ms, lot.expires_ms) for lot in lots],
            available_micro=budget.available_micro,
            run_rounds=self._rounds_left,
            now_ms=at_ms,
        )
        values: dict[str, float] = {
            "period/granted_micro": sums.granted_micro + sums.converted_micro,
            "period/charged_micro": sums.charged_micro,
            "period/refunded_micro": sums.refunded_micro,
            "period/contributed_micro": sums.contributed_micro,
            "budget/granted_micro": budget.granted_micro,
            "budget/held_micro": budget.held_micro,
            "budget/spent_micro": budget.spent_micro,
            "budget/available_micro": budget.available_micro,
            "forecast/round_micro": ahead.round_micro,
            "forecast/lacking_micro": ahead.lacking_micro,
        }
        if ahead.rounds_left is not None:
            values["forecast/rounds_left"] = ahead.rounds_left
        return values

    def _close(self, record: Record) -> list[Item]:
        facts, items = record.facts, list[Item]()
        period = facts["period"]
        for partner in self._members.pop(period, []):
            run = _run(partner, period)
            tags = {"hansa.balances.root": facts["balances"]}
            items += [
                Log(run, tags=tags),
                Statement(run, partner, period),
                End(run, "FINISHED", record.at_ms),
            ]
        return items


def _run(partner: str, period: str) -> str:
    return f"ledger/{partner}/{period}"


def _concerned(facts: Mapping[str, Any]) -> set[str]:
    accounts = (facts["debit"], facts["credit"])
    partners = {account.split("/")[1] for account in accounts if account.startswith("partner/")}
    return partners | {facts[name] for name in ("payer", "partner") if name in facts}
