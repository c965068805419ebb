"""The books are cut at the end of every month or quarter, whenever somebody comes to close them."""

from __future__ import annotations

from datetime import datetime, timezone
from itertools import pairwise
from typing import Any

import pytest

from commons.errors import StoreError
from commons.records import Kind, Record, fact
from governance.ledger import Ledger
from governance.ledger.periods import Period, balance_lines
from tests.support.books import Books, closings, request
from tests.support.chamber import charter


def ms(text: str) -> int:
    """Of a UTC date, with or without a time."""
    return int(datetime.fromisoformat(text).replace(tzinfo=timezone.utc).timestamp() * 1000)


def ruled(period: str, version: int = 1) -> Any:
    return charter(version=version, accounting={"period": period})


def spans(ledger: Ledger) -> list[tuple[str, int, int]]:
    return [(p.name, p.begin_ms, p.end_ms) for p, _, _ in ledger.boundaries.values()]


@pytest.mark.parametrize(
    ("at", "rule", "name", "begin", "end"),
    [
        ("2026-11-24T12:00:00", "month", "2026-11", "2026-11-01", "2026-12-01"),
        ("2026-12-31T23:59:59.999", "month", "2026-12", "2026-12-01", "2027-01-01"),
        ("2027-01-01T00:00:00", "month", "2027-01", "2027-01-01", "2027-02-01"),
        ("2028-02-29T00:00:00", "month", "2028-02", "2028-02-01", "2028-03-01"),
        ("2026-11-24T12:00:00", "quarter", "2026-q4", "2026-10-01", "2027-01-01"),
        ("2026-09-30T23:59:59.999", "quarter", "2026-q3", "2026-07-01", "2026-10-01"),
        ("2027-01-01T00:00:00", "quarter", "2027-q1", "2027-01-01", "2027-04-01"),
    ],
)
def test_periods_are_calendar_months_or_quarters_by_utc(
    at: str, rule: str, name: str, begin: str, end: str
) -> None:
    found = Period.of(ms(at), rule)
    assert found == Period(name, ms(begin), ms(end))


def test_a_period_ends_with_the_first_record_after_it_and_silent_months_are_none() -> None:
    books = Books(at_ms=ms("2026-09-10"))
    before = balance_lines(books.ledger.accounts)
    size = len(books.records)
    assert books.ledger.due_periods(ms("2026-09-30T23:59:59.999")) == []
    (due,) = books.ledger.due_periods(ms("2026-12-24"))
    assert due == (Period("2026-09", ms("2026-09-01"), ms("2026-10-01")), size, before)
    books.hold(request(expires_ms=ms("2027-01-01")), now_ms=ms("2026-12-24"))
    assert spans(books.ledger) == [("2026-09", ms("2026-09-01"), ms("2026-10-01"))]
    assert books.ledger.due_periods(ms("2026-12-24")) == [due], "as it was then, not as it is now"
    current = books.ledger.period()
    assert current == Period("2026-12", ms("2026-12-01"), ms("2027-01-01"))


def test_a_period_closes_once_and_the_record_that_closes_it_is_of_the_next() -> None:
    books = Books(at_ms=ms("2026-11-10"))
    (closed,) = books.take(closings(books.ledger, ms("2026-12-01")))
    assert (closed.facts["period"], closed.facts["records"]) == ("2026-11", 4)
    assert closings(books.ledger, ms("2026-12-31")) == []
    assert books.ledger.closed == {"2026-11": ms("2026-12-01")}
    assert books.ledger.period_at(ms("2026-11-10")) == Period("2026-11", ms("2026-11-01"), ms("2026-12-01"))
    assert books.ledger.period_at(ms("2026-12-01")) == books.ledger.period()
    assert books.ledger.period_at(ms("2026-08-01")) is None


def test_two_late_periods_are_closed_in_order() -> None:
    books = Books(at_ms=ms("2026-10-10"))
    books.hold(request(expires_ms=ms("2027-01-01")), now_ms=ms("2026-11-10"))
    names = [r.facts["period"] for r in books.take(closings(books.ledger, ms("2026-12-05")))]
    assert names == ["2026-10", "2026-11"]
    assert books.replayed() == books.ledger


def test_a_founding_charter_rules_the_period_it_is_signed_in() -> None:
    books = Books(ruled("quarter"), ms("2026-11-10"))
    assert books.ledger.period() == Period("2026-q4", ms("2026-10-01"), ms("2027-01-01"))
    ledger = Ledger()
    ledger.apply(0, fact(Kind.GENESIS, ms("2026-11-10"), consortium="demo", log_key="x"))
    ledger.apply(1, Record(Kind.CHARTER, ms("2026-11-10"), books.records[0].body))
    assert ledger.period() == books.ledger.period()


def test_a_new_rule_begins_where_the_running_period_ends_and_no_day_is_in_two() -> None:
    books = Books(ruled("month"), ms("2026-11-10"))
    books.enact(ruled("quarter", 2), ms("2026-11-20"))
    assert books.ledger.period() == Period("2026-11", ms("2026-11-01"), ms("2026-12-01"))
    books.enact(ruled("quarter", 3), ms("2026-12-20"))
    assert books.ledger.period() == Period("2026-q4", ms("2026-12-01"), ms("2027-01-01"))
    books.enact(ruled("month", 4), ms("2027-02-10"))
    assert books.ledger.period() == Period("2027-q1", ms("2027-01-01"), ms("2027-04-01"))
    books.enact(ruled("month", 5), ms("2027-06-10"))
    found = spans(books.ledger)
    assert [name for name, _, _ in found] == ["2026-11", "2026-q4", "2027-q1"]
    assert all(before[2] <= after[1] for before, after in pairwise(found))
    assert books.ledger.period() == Period("2027-06", ms("2027-06-01"), ms("2027-07-01"))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"period": "2026-10"}, "2026-10"),
        ({"records": 3}, "ended with 4 records"),
        ({"accounts": 3}, "ended with 4 records"),
    ],
)
def test_a_journal_with_an_unlawful_closing_is_not_folded(changes: dict[str, Any], says: str) -> None:
    books = Books(at_ms=ms("2026-11-10"))
    (closed,) = closings(books.ledger, ms("2026-12-01"))
    with pytest.raises(StoreError, match=says):
        books.ledger.apply(4, fact(Kind.PERIOD, ms("2026-12-01"), **closed.facts | changes))
    assert books.take([closed])
    with pytest.raises(StoreError, match="closed before"):
        books.ledger.apply(5, closed)


def test_a_record_of_no_calendar_day_is_not_folded() -> None:
    with pytest.raises(StoreError, match="record 0 of the journal"):
        Ledger().apply(0, Record(Kind.RELEASE, 10**18, b""))
