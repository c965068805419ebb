"""A statement's file is checked by anybody, offline: an honest one holds, and whatever is changed in it is found."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from commons import statement_proof
from commons.notes import NoteError, Signer, parse
from commons.records import Record
from commons.statement import AccountLine, Line, LinesDigest, StatementNote, Sums, amount_of
from commons.statement_proof import LEFT_OUT, Bundle, Check, Opening, verify
from governance.statements import issuing
from tests.support.chamber import LOG, MEMBERS
from tests.support.months import Months, told

PERIODS = ("2026-10", "2026-11", "2027-01", "2027-q1", "2027-q2")
Forge = Callable[[Bundle], Bundle]


@pytest.fixture(scope="module")
def books(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Months]:
    """`told`, and coop has countersigned November."""
    books = told(tmp_path_factory.mktemp("books"))
    books.countersign(books.note("coop", "2026-11"))
    yield books
    books.journal.close()


@pytest.fixture(scope="module")
def november(books: Months) -> Bundle:
    """coop's: a refund of an October charge, holds from October, two rate cards, and its countersignature."""
    return books.bundle("coop", "2026-11")


def checks(bundle: Bundle, log: Signer = LOG) -> list[Check]:
    return list(verify(bundle, log.verifier))


def problem(bundle: Bundle) -> str:
    """What is wrong with it: the last check; empty when it holds."""
    *before, last = checks(bundle)
    assert not any(check.problem for check in before)
    return last.problem


def changed(bundle: Bundle, **parts: Any) -> Bundle:
    return Bundle(**{**dict(bundle), **parts})


def resigned(bundle: Bundle, lines: tuple[Line, ...] | None = None, **changes: Any) -> Bundle:
    """What a coordinator that lies signs: other fields, or other lines with their own digest."""
    parts: dict[str, Any] = {}
    if lines is not None:
        changes |= {"lines": len(lines), "lines_digest": LinesDigest(lines).digest}
        parts["lines"] = lines
    note = replace(bundle.note, **changes)
    return changed(bundle, statement=LOG.sign(note.text).decode(), **parts)


def summed(bundle: Bundle, lines: tuple[Line, ...]) -> dict[str, int]:
    """The sums that a statement of these lines states."""
    sums = Sums(bundle.note.partner)
    for _, leaf in lines:
        sums.add(Record.parse(leaf.encode()).facts)
    return sums.stated()


@pytest.mark.parametrize("period", PERIODS)
@pytest.mark.parametrize("partner", MEMBERS)
def test_an_honest_statement_holds_and_its_file_has_one_writing(
    books: Months, partner: str, period: str
) -> None:
    bundle = books.bundle(partner, period)
    assert problem(bundle) == ""
    assert len(checks(bundle)) == 8
    assert Bundle.read(bundle.data) == bundle
    assert Bundle.read(bundle.data).note == books.note(partner, period)


def test_every_check_says_what_it_found(books: Months, november: Bundle) -> None:
    assert [check.what.split(" micro")[0] for check in checks(november)] == [
        f"signed by {LOG.vkey.rpartition('+')[0]}: coop, 2026-11",
        "11 lines, 5 earlier records: the signed ones",
        "charged 732, closing 999936",
        f"3 accounts in the balance tree {november.note.balances_root[:16]}",
        "2026-11 sealed by record 66",
        "opening 999609",
        f"16 records in the journal of 67, root {november.note.journal_root[:16]}",
        f"countersigned by coop in record {books.consortium.book.countersigned['coop', '2026-11'][0]}",
    ]


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_a_changed_byte_anywhere_is_found(november: Bundle, data: st.DataObject) -> None:
    file = november.data
    at = data.draw(st.integers(0, len(file) - 1))
    other = data.draw(st.integers(0, 255).filter(lambda byte: byte != file[at]))
    assert found_in(file[:at] + bytes([other]) + file[at + 1 :])


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_byte_more_or_less_is_found(november: Bundle, data: st.DataObject) -> None:
    file = november.data
    at = data.draw(st.integers(0, len(file) - 1))
    assert found_in(file[:at] + file[at + 1 :]), f"byte {at} left out"
    more = bytes([data.draw(st.integers(0, 255))])
    assert found_in(file[:at] + more + file[at:]), f"{more!r} before byte {at}"


def found_in(file: bytes) -> bool:
    try:
        return problem(Bundle.read(file)) != ""
    except ValueError:
        return True


@settings(max_examples=100, deadline=None)
@given(st.data())
@pytest.mark.parametrize("part", ["lines", "earlier"])
def test_lines_in_another_order_missing_or_repeated_are_found(
    november: Bundle, part: str, data: st.DataObject
) -> None:
    lines = list(getattr(november, part))
    at = data.draw(st.integers(0, len(lines) - 1))
    drop = lines[:at] + lines[at + 1 :]
    for other in (drop, lines[: at + 1] + lines[at:], data.draw(st.permutations(lines))):
        if other != lines:
            assert "digest" in problem(changed(november, **{part: tuple(other)}))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_coordinator_that_signs_other_lines_is_found(november: Bundle, data: st.DataObject) -> None:
    """It may leave out a line, repeat it or put it elsewhere, and sign digest, sums and identity to fit."""
    lines = november.lines
    at = data.draw(st.integers(0, len(lines) - 1))
    where = data.draw(st.integers(0, len(lines) - 2))
    without = lines[:at] + lines[at + 1 :]
    for other in (without, lines[: at + 1] + lines[at:], (*without[:where], lines[at], *without[where:])):
        if other == lines:
            continue
        stated = summed(november, other)
        come = november.note.opening_micro + sum(
            stated[f"{name}_micro"] for name in ("granted", "refunded", "converted")
        )
        closing = come - stated["expired_micro"] - stated["charged_micro"]
        assert problem(resigned(november, other, **stated, closing_micro=closing))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"charged_micro": 731}, "charged: the lines give 732"),
        ({"contributed_micro": 220}, "contributed: the lines give 219"),
        ({"closing_micro": 999_937}, "is not expired + charged + closing"),
        ({"opening_micro": 999_610, "closing_micro": 999_937}, "the budget's balance is 999936"),
        ({"held_micro": 1}, "0 held"),
        ({"accounts": 1}, "a tree of 1"),
        ({"balances_root": "00" * 32}, "root"),
        ({"begin_ms": 0}, "closes 2026-11"),
        ({"period": "2026-12"}, "closes 2026-11"),
        ({"closed": "no"}, "closes 2026-11"),
        ({"journal_size": 68}, "journal of 67"),
        ({"journal_root": "00" * 32}, "journal of 67"),
        ({"consortium": "other"}, "other"),
        ({"partner": "acme"}, ""),
        ({"rate_cards": 3}, "countersigns another statement"),
        ({"end_ms": 1}, "not after it begins"),
    ],
)
def test_a_coordinator_that_signs_another_fact_is_found(
    november: Bundle, changes: dict[str, Any], says: str
) -> None:
    found = problem(resigned(november, **changes))
    assert found and says in found, found


@pytest.mark.parametrize("period", ["2026-10", "2027-01", "2027-q2"])
@pytest.mark.parametrize("partner", ["coop", "acme"])
@pytest.mark.parametrize("part", [n for n in Bundle.model_fields if n != "format"])
def test_a_part_of_another_statement_is_found(
    books: Months, november: Bundle, part: str, partner: str, period: str
) -> None:
    other = getattr(books.bundle(partner, period), part)
    if part == "countersign":
        assert other is None and problem(changed(november, countersign=None)) == ""
        return
    assert problem(changed(november, **{part: other}))


def test_another_key_is_not_the_logs(november: Bundle) -> None:
    for other in (Signer("demo", bytes(32)), Signer("other", bytes(32))):
        (only,) = checks(november, other)
        assert only.problem


def test_an_open_period_holds_and_says_that_it_is_not_sealed(books: Months) -> None:
    bundle = books.bundle("acme", "2027-q2")
    said = [check.what for check in checks(bundle)]
    assert "2027-q2 is open: signed as of record" in said[4] and said[4].endswith("not sealed")
    assert said[7] == "an open period cannot be countersigned"
    assert "PERIOD record is missing" in problem(resigned(bundle, closed="yes"))
    march = books.bundle("acme", "2027-q1")
    assert problem(changed(bundle, period=march.period))
    assert "PERIOD record is missing" in problem(changed(march, period=None))


def test_a_record_of_another_kind_seals_and_countersigns_nothing(books: Months, november: Bundle) -> None:
    size = november.note.journal_size
    charter = books.tlog_proof(1, size)
    assert "not period" in problem(changed(november, period=charter)).lower()
    assert "not countersign" in problem(changed(november, countersign=charter)).lower()
    assert november.opening is not None
    wrong = Opening(period=charter, balances=november.opening.balances)
    assert "not period" in problem(changed(november, opening=wrong)).lower()


def test_a_countersignature_of_another_statement_is_none(books: Months, november: Bundle) -> None:
    other = books.bundle("acme", "2026-11")
    assert "countersigns another" in problem(changed(other, countersign=november.countersign))


def test_a_first_period_needs_no_opening_and_a_later_one_does(books: Months, november: Bundle) -> None:
    assert books.bundle("coop", "2026-10").opening is None
    assert "opens with 999609" in problem(changed(november, opening=None))
    itself = Opening(period=november.period or "", balances=november.balances)
    assert "no earlier period" in problem(changed(november, opening=itself))


def test_too_many_lines_are_not_proven_one_by_one_and_it_is_said(
    books: Months, november: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "the proof of the lines" in problem(changed(november, proof=LEFT_OUT))
    for module in (statement_proof, issuing):
        monkeypatch.setattr(module, "LINES_PROVEN_MAX", 15)
    large = books.bundle("coop", "2026-11")
    assert (large.proof, large.lines) == (LEFT_OUT, november.lines)
    assert "not proven one by one: 16 records are more than 15" in [c.what for c in checks(large)]
    assert problem(large) == ""
    assert "yet it claims to" in problem(november)
    small = books.bundle("coop", "2026-10")
    assert small.proof != LEFT_OUT and problem(small) == ""


@pytest.mark.parametrize(
    "file",
    [b"", b"{}", b"[]", b"null", b"\xff", b"[" * 100_000, b'{"format":"hansa-statement-bundle/v2"}'],
)
def test_what_is_no_bundle_is_refused_in_a_sentence(file: bytes) -> None:
    with pytest.raises(ValueError, match="no statement bundle"):
        Bundle.read(file)


def test_a_bundle_without_a_statement_has_one_check_that_fails(november: Bundle) -> None:
    broken = changed(november, statement="hansa-statement/v1\n")
    assert [bool(check.problem) for check in checks(broken)] == [True]
    with pytest.raises(NoteError):
        _ = broken.note


@pytest.mark.parametrize(
    "text",
    ["", "a micro 1 2 3", "a micro 1 2 3 4 5", "a micro 1 2 3 -4", "a micro 01 2 3 4", "a micro 1 2 3 ²"],
)
def test_what_is_no_line_of_a_balance_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no line of a balance"):
        AccountLine.parse(text)


@pytest.mark.parametrize("amount", [-1, 1.0, True, "1", None])
def test_an_amount_is_a_whole_number(amount: object) -> None:
    with pytest.raises(ValueError, match="no whole amount"):
        amount_of({"id": "x", "amount_micro": amount})


def test_a_transfer_of_an_unknown_type_is_not_summed() -> None:
    moved = {"id": "x", "type": "gift", "debit": "partner/acme/budget", "credit": "x", "amount_micro": 1}
    with pytest.raises(KeyError):
        Sums("acme").add(moved)


def test_the_note_is_read_as_it_is_written(november: Bundle) -> None:
    note = november.note
    assert StatementNote.from_note(parse(LOG.sign(note.text))) == note
