"""Real accounting programs read the books of every period and come to the statement's balances, to the micro."""

from __future__ import annotations

import csv
import io
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from governance.statements.beancount import beancount_file
from governance.statements.hledger import hledger_journal
from governance.statements.note_page import statement_page
from governance.statements.postings import balances, entries
from governance.statements.reading import read_statement
from governance.statements.statement import Statement
from tests.support.chamber import MEMBERS
from tests.support.months import Months, told

PERIODS = ("2026-10", "2026-11", "2027-01", "2027-q1", "2027-q2")
HLEDGER = shutil.which("hledger")
BEAN_CHECK = shutil.which("bean-check", path=Path(sys.executable).parent) or shutil.which("bean-check")
with_hledger = pytest.mark.skipif(HLEDGER is None, reason="hledger is not installed (package hledger)")
with_beancount = pytest.mark.skipif(BEAN_CHECK is None, reason="bean-check is not installed (PyPI beancount)")


@pytest.fixture(scope="module")
def books(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Months]:
    books = told(tmp_path_factory.mktemp("books"))
    yield books
    books.journal.close()


@pytest.fixture(params=[(partner, period) for partner in MEMBERS for period in PERIODS], ids="/".join)
def statement(books: Months, request: pytest.FixtureRequest) -> Statement:
    bundle = books.bundle(*request.param)
    return read_statement(bundle.note, bundle.lines, bundle.earlier)


def run(*command: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)


def micro(amount: str) -> int:
    """0.000511 EUR -> 511"""
    whole, _, rest = amount.removesuffix(" EUR").partition(".")
    assert not rest or len(rest) == 6, amount
    return int(whole + rest.ljust(6, "0"))


def spoilt(text: str) -> str:
    """The charge of some run is a micro more than it was, and so is what paid for it."""
    found = re.search(r"(?i)expenses:runs:\S+ +0\.(\d{6}) EUR\n +\S+ +-0\.\1 EUR", text)
    assert found, "there is a charge"
    amount = found.group(1)
    return text.replace(found.group(), found.group().replace(amount, f"{int(amount) + 1:06d}"))


def test_every_entry_adds_up_to_nothing_and_all_of_them_to_the_statement(statement: Statement) -> None:
    assert all(sum(amount for _, amount in entry.moves) == 0 for entry in entries(statement))
    own = [b.amount_micro for b in balances(statement) if b.account[0] == "assets"]
    assert own == [statement.note.closing_micro - statement.note.held_micro, statement.note.held_micro]


@with_hledger
def test_hledger_agrees_and_has_the_same_balances(statement: Statement, tmp_path: Path) -> None:
    file = tmp_path / "books.journal"
    file.write_text(hledger_journal(statement))
    checked = run(HLEDGER, "-f", file, "check", "--strict")
    assert checked.returncode == 0, checked.stderr
    told = run(HLEDGER, "-f", file, "balance", "--flat", "--empty", "--no-total", "-O", "csv").stdout
    found = {row["account"]: micro(row["balance"]) for row in csv.DictReader(io.StringIO(told))}
    for balance in balances(statement):
        name = ":".join(balance.account)
        below = (amount for account, amount in found.items() if f"{account}:".startswith(f"{name}:"))
        assert sum(below) == balance.amount_micro, name


@with_beancount
def test_beancount_agrees(statement: Statement, tmp_path: Path) -> None:
    file = tmp_path / "books.beancount"
    file.write_text(beancount_file(statement))
    checked = run(BEAN_CHECK, "-C", file)
    assert checked.returncode == 0, checked.stdout + checked.stderr


@with_hledger
@with_beancount
def test_both_programs_find_one_micro_too_much(books: Months, tmp_path: Path) -> None:
    bundle = books.bundle("coop", "2026-11")
    statement = read_statement(bundle.note, bundle.lines, bundle.earlier)
    journal, file = tmp_path / "books.journal", tmp_path / "books.beancount"
    journal.write_text(spoilt(hledger_journal(statement)))
    file.write_text(spoilt(beancount_file(statement)))
    assert run(HLEDGER, "-f", journal, "check").returncode != 0
    assert run(BEAN_CHECK, "-C", file).returncode != 0


def test_a_page_for_a_person_names_every_amount_of_the_balance(statement: Statement) -> None:
    page, note = statement_page(statement), statement.note
    assert page.startswith(f"{note.partner}, consortium {note.consortium}: {note.period} ")
    for amount in (note.opening_micro, note.charged_micro, note.closing_micro):
        assert f"{amount // 10**6}.{amount % 10**6:06d}" in page
    assert all(clearing.other in page for clearing in statement.clearing)
    assert all(total.site in page for total in statement.totals)
