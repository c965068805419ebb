"""What a partner is told about three months and two quarters of its money, to the last micro, and who may ask."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from commons.certificates import Subject
from commons.errors import Code, Refusal
from commons.notes import Signer, digest, parse
from commons.records import Kind, Record
from commons.statement import StatementNote
from governance.ledger import Charge, decide_settle
from governance.statements import issuing
from governance.statements.reading import read_statement
from governance.statements.statement import Statement
from tests.support.chamber import MEMBERS
from tests.support.months import OPERATOR, Months, law, ms, told

PERIODS = ("2026-10", "2026-11", "2027-01", "2027-q1", "2027-q2")


@pytest.fixture(scope="module")
def books(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Months]:
    books = told(tmp_path_factory.mktemp("books"))
    yield books
    books.journal.close()


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Months]:
    """A founded consortium on 5 October 2026."""
    books = Months(tmp_path)
    yield books
    books.journal.close()


def read(books: Months, partner: str, period: str) -> Statement:
    found = books.bundle(partner, period)
    return read_statement(found.note, found.lines, found.earlier)


@pytest.mark.parametrize(
    ("partner", "period", "money"),
    [
        ("acme", "2026-10", (0, 1_005_000, 40, 7, 0, 562, 1_004_485)),
        ("acme", "2026-11", (1_004_485, 0, 30, 0, 3_927, 511, 1_000_077)),
        ("acme", "2027-01", (1_000_077, 0, 0, 0, 0, 511, 999_566)),
        ("acme", "2027-q1", (999_566, 0, 0, 0, 0, 0, 999_566)),
        ("acme", "2027-q2", (999_566, 0, 0, 0, 0, 311, 999_255)),
        ("coop", "2026-10", (0, 1_000_000, 0, 0, 0, 391, 999_609)),
        ("coop", "2026-11", (999_609, 999, 60, 0, 0, 732, 999_936)),
        ("coop", "2027-q1", (999_936, 0, 0, 0, 0, 311, 999_625)),
        ("beta", "2026-11", (1_000_000, 0, 0, 0, 0, 0, 1_000_000)),
    ],
)
def test_opening_and_what_came_is_what_went_and_closing(
    books: Months, partner: str, period: str, money: tuple[int, ...]
) -> None:
    note = books.note(partner, period)
    names = ("opening", "granted", "refunded", "converted", "expired", "charged", "closing")
    assert tuple(getattr(note, f"{name}_micro") for name in names) == money
    assert note.adds_up


@pytest.mark.parametrize(
    ("partner", "period", "contributed", "reversed_"),
    [
        ("acme", "2026-10", 562, 40),
        ("acme", "2026-11", 511, 30),
        ("beta", "2026-10", 311 - 93, 0),
        ("beta", "2026-11", 221 - 66 + 511 - 153, 42),
        ("coop", "2026-10", 93, 0),
        ("coop", "2026-11", 66 + 153, 17),
    ],
)
def test_contributions_are_shared_and_go_back_with_the_charge(
    books: Months, partner: str, period: str, contributed: int, reversed_: int
) -> None:
    note = books.note(partner, period)
    assert (note.contributed_micro, note.contribution_reversed_micro) == (contributed, reversed_)


@pytest.mark.parametrize("partner", MEMBERS)
def test_each_period_opens_with_what_the_last_one_closed_with(books: Months, partner: str) -> None:
    found = [books.note(partner, period) for period in PERIODS]
    assert found[0].opening_micro == 0
    for before, after in pairwise(found):
        assert after.opening_micro == before.closing_micro
        assert after.begin_ms >= before.end_ms
    account = books.ledger.accounts[f"partner/{partner}/budget"]
    assert found[-1].closing_micro == account.credits_posted - account.debits_posted
    assert found[-1].held_micro == account.debits_pending
    budget = next(b for b in books.ledger.budgets() if b.partner == partner)
    assert sum(n.charged_micro for n in found) == budget.spent_micro
    assert sum(n.contributed_micro - n.contribution_reversed_micro for n in found) == budget.contributed_micro


@pytest.mark.parametrize("partner", MEMBERS)
@pytest.mark.parametrize("period", PERIODS)
def test_the_read_lines_come_to_the_note_and_fit_the_rate_cards(
    books: Months, partner: str, period: str
) -> None:
    found = read(books, partner, period)
    assert sum(u.charged_micro for u in found.usages) == found.note.charged_micro
    assert sum(t.charged_micro for t in found.totals) == found.note.charged_micro
    assert sum(r.amount_micro for r in found.refunds) == found.note.refunded_micro
    assert sum(e.amount for e in found.expired) == found.note.expired_micro
    assert sum(c.amount for c in found.conversions) == found.note.converted_micro
    assert sum(g.amount for g in found.grants if g.unit == "micro") == found.note.granted_micro
    assert sum(h.amount_micro for h in found.holds) == found.note.held_micro
    assert found.problems() == []


def test_a_charge_with_top_ups_is_one_usage_and_a_rejected_one_says_so(books: Months) -> None:
    own = read(books, "acme", "2026-10").usages
    assert [(u.id, u.charged_micro, u.gflop, u.percent) for u in own] == [
        ("settle/r/1/berlin", 311, 100, 100),
        ("settle/r/2/berlin", 251, 80, 100),
    ]
    rejected = read(books, "coop", "2026-10").usages[1]
    assert (rejected.charged_micro, rejected.percent, rejected.accepted) == (80, 50, False)
    assert (rejected.energy_j, rejected.owner, rejected.payer) == (None, "beta", "coop")


def test_usage_is_summed_by_site_device_and_outcome(books: Months) -> None:
    (total,) = read(books, "acme", "2026-10").totals
    assert (total.site, total.experts, total.device, total.precision) == ("berlin", ("law-0",), "cpu", "fp32")
    assert (total.rounds, total.gflop, total.device_ms, total.tokens) == (2, 180, 3_000, 1_280)
    assert (total.energy_j, total.charged_micro) == (24, 562)
    taken, rejected = read(books, "coop", "2026-10").totals
    assert (taken.accepted, taken.energy_j) == (True, 12)
    assert (rejected.accepted, rejected.energy_j) == (False, None)


def test_what_was_charged_in_a_closed_period_is_corrected_in_a_later_one(books: Months) -> None:
    (same,) = read(books, "acme", "2026-10").refunds
    (late,) = read(books, "acme", "2026-11").refunds
    (upheld,) = read(books, "coop", "2026-11").refunds
    assert (same.id, same.amount_micro, same.correction) == ("reversal/same-month", 40, False)
    assert (late.id, late.amount_micro, late.correction) == ("reversal/late", 30, True)
    assert (upheld.reason, upheld.amount_micro, upheld.correction) == ("dispute_upheld", 60, True)
    assert late.settle == same.settle == "settle/r/1/berlin"
    assert late.charged_ms == ms("2026-10-06")


def test_a_dispute_is_told_in_every_period_in_which_it_is_open(books: Months) -> None:
    told_ = {
        (who, period): [
            (d.amount_micro, d.upheld_micro, d.ended_ms) for d in read(books, who, period).disputes
        ]
        for who, period in (
            ("coop", "2026-10"),
            ("coop", "2026-11"),
            ("coop", "2027-01"),
            ("acme", "2026-11"),
            ("acme", "2027-01"),
            ("beta", "2026-11"),
        )
    }
    assert told_ == {
        ("coop", "2026-10"): [(100, 0, None)],
        ("coop", "2026-11"): [(100, 60, ms("2026-11-10"))],
        ("coop", "2027-01"): [],
        ("acme", "2026-11"): [(10, 0, None)],
        ("acme", "2027-01"): [(10, 0, ms("2027-01-05"))],
        ("beta", "2026-11"): [],
    }


def test_partners_agree_on_what_they_owe_each_other(books: Months) -> None:
    for period, net in (("2026-10", 391), ("2026-11", 732 - 60), ("2027-q1", 311)):
        (owed,) = read(books, "beta", period).clearing
        (owes,) = read(books, "coop", period).clearing
        assert (owed.other, owed.net_micro) == ("coop", net)
        assert (owes.other, owes.net_micro) == ("beta", -net)
        assert (owed.owed_micro, owed.owes_micro) == (owes.owes_micro, owes.owed_micro)
    assert read(books, "acme", "2026-10").clearing == (), "its own work on its own sites is nobody's debt"


def test_pledged_time_becomes_money_rounded_down_and_an_expired_grant_is_named(books: Months) -> None:
    october = read(books, "acme", "2026-10")
    (conversion,) = october.conversions
    assert (conversion.amount, conversion.about) == (7, "1001 ms of cpu")
    assert {(g.id, g.unit, g.amount) for g in october.grants} == {
        ("grant/1/acme", "micro", 1_000_000),
        ("grant/short", "micro", 5_000),
        ("grant/pledge", "device_ms:cpu", 100_000),
    }
    (lost,) = read(books, "acme", "2026-11").expired
    assert (lost.amount, lost.about) == (3_927, "grant/short")


def test_holds_across_the_end_of_a_month_are_held_in_the_one_and_end_in_the_other(books: Months) -> None:
    for partner, site in (("acme", "berlin"), ("coop", "turin")):
        (hold,) = read(books, partner, "2026-10").holds
        assert (hold.id, hold.amount_micro) == (f"hold/r/3/{site}", 1_000)
        after = read(books, partner, "2026-11")
        assert (after.held_before_micro, after.holds, after.note.held_micro) == (1_000, (), 0)
    assert [u.id for u in read(books, "coop", "2026-11").usages] == ["settle/r/3/turin", "settle/r/4/turin"]
    settled = read(books, "coop", "2026-11").usages[0]
    assert settled.held_ms < ms("2026-11-01") <= settled.at_ms
    assert settled.rate_card != books.note("coop", "2026-11").rate_card, "priced by the card of its hold"


def test_every_rate_card_in_force_is_named_with_its_day(books: Months) -> None:
    assert [c.since_ms for c in read(books, "acme", "2026-10").cards] == [ms("2026-10-05")]
    november = read(books, "acme", "2026-11")
    assert [c.since_ms for c in november.cards] == [ms("2026-10-05"), ms("2026-11-10")]
    assert november.note.rate_card == november.cards[1].digest
    assert november.cards[1].card.rates[0].micro_per_gflop == 5
    assert [c.since_ms for c in read(books, "acme", "2027-q1").cards] == [ms("2027-01-20")]


def test_a_silent_month_has_no_statement_and_a_quarter_follows_the_month_in_which_it_was_chosen(
    books: Months,
) -> None:
    assert tuple(books.consortium.book.periods) == PERIODS
    refused = books.statements.read(OPERATOR, "acme/2026-12")
    assert isinstance(refused, Refusal) and refused.code is Code.REQUEST_INVALID
    assert "2026-11, 2027-01, 2027-q1" in refused.message
    quarter = books.note("acme", "2027-q1")
    assert (quarter.begin_ms, quarter.end_ms) == (ms("2027-02-01"), ms("2027-04-01"))


def test_a_statement_of_a_closed_period_never_changes(books: Months, tmp_path: Path) -> None:
    was = {(m, p): books.bundle(m, p).data for m in MEMBERS for p in PERIODS[:-1]}
    again = told(tmp_path)
    again.at("2027-05-05").work(8)
    again.reopen()
    assert {(m, p): again.bundle(m, p).data for m, p in was} == was
    assert again.bundle("acme", "2027-q2").data != books.bundle("acme", "2027-q2").data
    again.journal.close()


def test_current_and_last_are_periods_and_reading_closes_what_is_over(fresh: Months) -> None:
    assert (fresh.note("acme", "current").period, fresh.note("acme", "current").closed) == ("2026-10", "no")
    refused = fresh.statements.read(OPERATOR, "acme/last")
    assert isinstance(refused, Refusal) and refused.code is Code.REQUEST_INVALID
    fresh.at("2026-11-02")
    assert (fresh.note("acme", "last").period, fresh.note("acme", "last").closed) == ("2026-10", "yes")
    assert (fresh.note("acme", "current").period, fresh.note("acme", "current").closed) == ("2026-11", "no")


def test_a_partner_reads_its_own_statements_and_the_operator_every_one(books: Months) -> None:
    for key in ("acme/2026-10", "acme/2026-10/80/lines/0", "acme/2026-10/80"):
        reader = {1: "statement", 4: "statement-lines", 2: "statement-proof"}[key.count("/")]
        ask = books.statements.readers[reader]
        for who in (OPERATOR, Subject("member", "acme"), Subject("site", "acme", "berlin")):
            assert not isinstance(ask(who, key), Refusal)
        for who in (Subject("member", "beta"), Subject("site", "beta", "turin"), Subject("coordinator")):
            refused = ask(who, key)
            assert isinstance(refused, Refusal) and refused.code is Code.NOT_AUTHORISED


@pytest.mark.parametrize(
    ("view", "key", "code"),
    [
        ("statement", "nobody/2026-10", Code.ACCOUNT_NOT_FOUND),
        ("statement", "acme", Code.REQUEST_INVALID),
        ("statement", "acme/", Code.REQUEST_INVALID),
        ("statement", "acme/2026-10/x", Code.REQUEST_INVALID),
        ("statement", "acme/2025-01", Code.REQUEST_INVALID),
        ("statement-lines", "acme/2026-10/80/lines", Code.REQUEST_INVALID),
        ("statement-lines", "acme/2026-10/80/rows/0", Code.REQUEST_INVALID),
        ("statement-lines", "acme/2026-10/80/lines/-1", Code.REQUEST_INVALID),
        ("statement-lines", "acme/2026-10/80/lines/²", Code.REQUEST_INVALID),
        ("statement-lines", "acme/2026-10/80/lines/" + "9" * 5_000, Code.REQUEST_INVALID),
        ("statement-lines", "acme/2026-10/0/lines/0", Code.REQUEST_INVALID),
        ("statement-lines", "acme/2026-10/99999/lines/0", Code.REQUEST_INVALID),
        ("statement-lines", "nobody/2026-10/80/lines/0", Code.ACCOUNT_NOT_FOUND),
        ("statement-proof", "acme/2026-10", Code.REQUEST_INVALID),
        ("statement-proof", "acme/2026-10/" + "9" * 19, Code.REQUEST_INVALID),
        ("statement-proof", "acme/2025-10/80", Code.REQUEST_INVALID),
    ],
)
def test_what_is_no_key_is_refused(books: Months, view: str, key: str, code: Code) -> None:
    refused = books.statements.readers[view](OPERATOR, key)
    assert isinstance(refused, Refusal) and refused.code is code


@pytest.mark.parametrize(("limit", "most"), [("PAGE_LINES_MAX", 3), ("PAGE_CHARS_MAX", 1)])
def test_lines_come_in_pages(books: Months, monkeypatch: pytest.MonkeyPatch, limit: str, most: int) -> None:
    whole = books.bundle("acme", "2026-10")
    monkeypatch.setattr(issuing, limit, most)
    assert books.bundle("acme", "2026-10") == whole
    past = books.statements.read_lines(OPERATOR, "acme/2026-10/80/lines/9999")
    assert past == issuing.LinesView(lines=(), following=None)


def test_the_open_period_is_told_as_of_the_size_that_was_asked_for(fresh: Months) -> None:
    fresh.at("2026-10-06").work(1)
    before = fresh.bundle("acme", "current")
    fresh.work(2)
    asked = f"acme/2026-10/{before.note.journal_size}"
    assert fresh.pages(f"{asked}/lines") == before.lines
    assert fresh.pages(f"{asked}/earlier") == before.earlier
    assert fresh.note("acme", "current").lines > before.note.lines


def test_a_partner_countersigns_once_and_its_statement_shows_it(fresh: Months) -> None:
    fresh.work(1)
    fresh.at("2026-11-02").close()
    note = fresh.note("acme", "2026-10")
    assert fresh.view("acme", "2026-10").countersign is None
    (index,) = fresh.countersign(note)
    assert fresh.journal.record(index).kind is Kind.COUNTERSIGN
    assert fresh.countersign(note) == []
    assert fresh.view("acme", "2026-10").countersign is not None
    assert fresh.note("acme", "2026-10") == note, "the statement is the same, countersigned or not"
    assert fresh.view("beta", "2026-10").countersign is None


@pytest.mark.parametrize(
    ("changes", "by", "code"),
    [
        ({"consortium": "other"}, None, Code.REQUEST_INVALID),
        ({"period": "2026-11"}, None, Code.REQUEST_INVALID),
        ({"period": "2026-09"}, None, Code.REQUEST_INVALID),
        ({"partner": "nobody"}, None, Code.NOT_AUTHORISED),
        ({}, "beta", Code.SIGNATURE_INVALID),
        ({"partner": "beta"}, None, Code.STATEMENT_MISMATCH),
        ({"statement": "sha256:" + "0" * 64}, None, Code.STATEMENT_MISMATCH),
    ],
)
def test_what_is_no_agreement_with_this_statement_is_refused(
    fresh: Months, changes: dict[str, Any], by: str | None, code: Code
) -> None:
    fresh.work(1)
    fresh.at("2026-11-02").close()
    refused = fresh.countersign(fresh.note("acme", "2026-10"), by, **changes)
    assert isinstance(refused, Refusal) and refused.code is code, refused


def test_a_note_of_another_kind_is_no_countersignature(fresh: Months) -> None:
    note = parse(Signer("acme", bytes(32)).sign("hansa-other/v1\n\nperiod 2026-10\n"))
    refused = fresh.statements.decide_countersign(note, fresh.ms)
    assert isinstance(refused, Refusal) and refused.code is Code.NOTE_MALFORMED


def test_a_member_that_left_keeps_its_statements(fresh: Months) -> None:
    left = {
        "members": tuple(m.model_dump() for m in law().members if m.name != "coop"),
        "sites": tuple(vars(s) | {"payer": s.partner} for s in law().sites),
    }
    fresh.at("2026-10-06").work(1, "turin")
    fresh.at("2026-11-01").enact(law(2, **left))
    assert fresh.note("coop", "2026-10").charged_micro == 311
    assert fresh.note("coop", "2026-11").opening_micro == 1_000_000 - 311


@pytest.mark.parametrize(("amount", "says"), [(310, ""), (311, ""), (312, "its price is 311")])
def test_a_charge_above_its_rate_card_is_a_problem(fresh: Months, amount: int, says: str) -> None:
    hold = fresh.hold(1)
    work = {"device": "cpu", "precision": "fp32", "gflop": 100, "device_ms": 1_500}
    charge = Charge(amount_micro=amount, usage=digest(b"usage"), **work)  # type: ignore[arg-type]
    fresh.take(lambda now: decide_settle(fresh.ledger, hold, charge, now))
    found = read(fresh, "acme", "current").problems()
    assert (len(found) == 1 and says in found[0]) if says else not found


@pytest.mark.parametrize(
    "changes", [{"rate_card": "sha256:" + "0" * 64}, {"rate_card_since_ms": 5}, {"rate_cards": 3}]
)
def test_a_rate_card_that_was_not_in_force_is_a_problem(books: Months, changes: dict[str, Any]) -> None:
    found = books.bundle("acme", "2026-11")
    note: StatementNote = replace(found.note, **changes)
    (problem,) = read_statement(note, found.lines, found.earlier).problems()
    assert "was not in force" in problem


def test_lines_without_what_they_refer_to_are_no_statement(books: Months) -> None:
    found = books.bundle("coop", "2026-11")
    kinds = [Record.parse(leaf.encode()).kind for _, leaf in found.earlier]
    assert kinds == [Kind.CHARTER, Kind.TRANSFER, Kind.TRANSFER, Kind.TRANSFER, Kind.CHARTER]
    read_with = partial(read_statement, found.note, found.lines)
    for at, (_, leaf) in enumerate(found.earlier):
        if '"type":"hold"' in leaf or '"type":"settle"' in leaf:
            with pytest.raises(KeyError):
                read_with(found.earlier[:at] + found.earlier[at + 1 :])
