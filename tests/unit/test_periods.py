"""Closing the books: sealed once, the same however late it is done, over a tree that proves every balance."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from commons import merkle
from commons.log import read_hash
from commons.records import Kind
from governance.ledger.periods import balance_lines
from governance.statements.balances import BalanceTree
from governance.statements.closing import decide_close
from tests.support.months import Months, law, ms


@pytest.fixture
def books(tmp_path: Path) -> Iterator[Months]:
    """A founded consortium on 5 October 2026."""
    books = Months(tmp_path)
    yield books
    books.journal.close()


def root_of(lines: list[str]) -> str:
    """RFC 6962, by its definition."""
    leaves = [line.encode() for line in lines]
    return _root(leaves).hex()


def _root(leaves: list[bytes]) -> bytes:
    if len(leaves) <= 1:
        return hashlib.sha256(b"\x00" + leaves[0] if leaves else b"").digest()
    half = 1
    while half * 2 < len(leaves):
        half *= 2
    return hashlib.sha256(b"\x01" + _root(leaves[:half]) + _root(leaves[half:])).digest()


def test_a_period_is_closed_once_it_is_over_and_only_once(books: Months) -> None:
    books.at("2026-10-31T23:59:59.999")
    assert books.close() == []
    (index,) = books.at("2026-11-01").close()
    record = books.journal.record(index)
    assert (record.kind, record.at_ms) == (Kind.PERIOD, ms("2026-11-01"))
    assert books.close() == []
    assert books.at("2026-11-30T23:59:59.999").close() == []


def test_it_is_sealed_with_the_root_over_every_account(books: Months) -> None:
    books.at("2026-10-06").work(1, "turin")
    size, lines = books.journal.size, list(balance_lines(books.ledger.accounts))
    (index,) = books.at("2026-11-03").close()
    assert books.journal.record(index).facts == {
        "period": "2026-10",
        "begin_ms": ms("2026-10-01"),
        "end_ms": ms("2026-11-01"),
        "records": size,
        "balances": root_of(lines),
        "accounts": len(lines),
    }
    assert lines == sorted(lines, key=lambda line: line.split(" ")[0])
    assert "partner/coop/budget micro 0 311 0 1000000" in lines


def test_what_is_sealed_does_not_depend_on_when(books: Months, tmp_path: Path) -> None:
    books.work(1)
    (early,) = books.at("2026-11-01").close()
    books.at("2026-11-02").work(2)
    late = Months(tmp_path / "late")
    late.work(1)
    late.at("2026-11-02").work(2)
    (index,) = late.at("2027-03-03").close()[:1]
    assert late.journal.record(index).facts == books.journal.record(early).facts
    late.journal.close()


def test_periods_that_nobody_closed_are_closed_in_order_and_silent_months_are_none(books: Months) -> None:
    books.at("2026-11-05").work(1)
    indices = books.at("2027-02-05").close()
    assert [books.journal.record(i).facts["period"] for i in indices] == ["2026-10", "2026-11"]
    assert list(books.ledger.closed) == list(books.consortium.book.sealed) == ["2026-10", "2026-11"]
    indices = books.at("2027-03-01").close()
    assert [books.journal.record(i).facts["period"] for i in indices] == ["2027-02"]


def test_a_consortium_by_quarters_closes_quarters(tmp_path: Path) -> None:
    books = Months(tmp_path, law(accounting={"period": "quarter"}))
    assert books.at("2026-12-31").close() == []
    (index,) = books.at("2027-01-01").close()
    found = books.journal.record(index).facts
    assert (found["period"], found["begin_ms"], found["end_ms"]) == (
        "2026-q4",
        ms("2026-10-01"),
        ms("2027-01-01"),
    )
    books.journal.close()


def test_a_restarted_coordinator_closes_what_its_predecessor_left(books: Months) -> None:
    books.work(1)
    books.at("2026-11-01")
    due = decide_close(books.ledger, books.ms)
    books.reopen()
    assert decide_close(books.ledger, books.ms) == due
    books.close()
    books.reopen()
    assert books.close() == []
    assert books.note("acme", "2026-10").closed == "yes"


@given(st.integers(0, 40), st.data())
def test_every_account_of_a_partner_is_proven_under_the_root(count: int, data: st.DataObject) -> None:
    names = sorted(f"partner/{'abc'[n % 3]}/budget{n:02}" for n in range(count))
    lines = [f"{name} micro 0 {data.draw(st.integers(0, 9))} 0 7" for name in names]
    tree = BalanceTree(lines)
    assert tree.root.hex() == root_of(lines)
    for partner in "abcd":
        proven = tree.prove(partner)
        assert list(proven.lines) == tree.of(partner) == [n for n in lines if f"/{partner}/" in n]
        for line, index, path in zip(proven.lines, proven.indices, proven.paths, strict=True):
            leaf = merkle.leaf_hash(line.encode())
            merkle.verify_inclusion(leaf, index, count, [read_hash(h, "a hash") for h in path], tree.root)
