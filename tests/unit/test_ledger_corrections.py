"""What was wrong about a charge is put right by further transfers: reversals, disputes, and how they end."""

from __future__ import annotations

from typing import Any

import pytest

from commons.errors import Code, Refusal, StoreError
from commons.names import Digest
from commons.records import Kind, Record, fact
from governance.ledger import decide_reverse, decide_rulings
from governance.ledger.correcting import DAY_MS
from tests.support.books import HOLD, NOW, SETTLE, Books, closings, dispute, request, ruling, topup
from tests.support.chamber import charter, signer

SHARED = {"contribution_owner_percent": 70}
"""The owner of a site is credited 70 % of what another member pays for."""
OCTOBER_MS, NOVEMBER_MS, DECEMBER_MS = 1_790_812_800_000, 1_793_491_200_000, 1_796_083_200_000


@pytest.fixture
def books() -> Books:
    return Books()


@pytest.fixture
def sponsored() -> Books:
    """coop paid 1,001 micro for the work of beta's turin: 600 from the hold and 401 from a top-up."""
    books = Books(charter(accounting=SHARED))
    base = request(site="turin", payer="coop", amount_micro=600)
    books.hold(base)
    books.hold(topup(1, base, amount_micro=500))
    books.settle(base.id, 1_001)
    return books


def contributed(books: Books) -> tuple[int, int]:
    """(beta, coop)"""
    return books.budget("beta").contributed_micro, books.budget("coop").contributed_micro


def reverse(books: Books, name: str, settle: str, amount_micro: int, now_ms: int = NOW) -> list[Record]:
    return books.take(decide_reverse(books.ledger, name, settle, amount_micro, "metering_error", now_ms))


def the_dispute(books: Books) -> Digest:
    return next(iter(books.ledger.disputes))


def test_a_reversal_gives_back_and_names_what_it_corrects(books: Books) -> None:
    books.hold()
    books.settle(HOLD, 500)
    reversal, back = reverse(books, "reversal/x", SETTLE, 200)
    found = reversal.facts
    assert (found["reverses"], found["reason"]) == (SETTLE, "metering_error")
    assert (found["debit"], found["credit"]) == ("run/r/consumed", "partner/acme/budget")
    assert back.facts["id"] == "contribution-reversal/x/acme"
    budget = books.budget()
    assert (budget.granted_micro, budget.refunded_micro, budget.spent_micro) == (1_000_000, 200, 500)
    assert (budget.available_micro, budget.contributed_micro) == (999_700, 300)
    assert decide_reverse(books.ledger, "reversal/x", SETTLE, 200, "metering_error", 9_999) == []


def test_a_reversal_of_a_top_up_is_a_reversal_of_its_part_of_the_charge(sponsored: Books) -> None:
    assert contributed(sponsored) == (701, 300)
    top = "settle/r/1/turin/top1"
    refused = decide_reverse(sponsored.ledger, "reversal/y", top, 402, "duplicate", NOW)
    assert isinstance(refused, Refusal) and refused.code is Code.REVERSAL_EXCEEDS_ORIGINAL
    reverse(sponsored, "reversal/x", top, 401)
    assert sponsored.budget("coop").available_micro == 999_400
    assert contributed(sponsored) == (701 - 401 * 701 // 1_001, 300 - 401 * 300 // 1_001)


@pytest.mark.parametrize("parts", [(600,), (1, 599), (1, 1, 1, 597), (200, 399, 1)])
def test_contributions_go_back_in_proportion_and_end_at_nothing(
    sponsored: Books, parts: tuple[int, ...]
) -> None:
    reverse(sponsored, "reversal/top", "settle/r/1/turin/top1", 401)
    for number, part in enumerate(parts):
        reverse(sponsored, f"reversal/{number}", "settle/r/1/turin", part)
    assert contributed(sponsored) == (0, 0)
    assert sponsored.budget("coop").available_micro == 1_000_000


def test_the_share_at_the_time_of_the_charge_goes_back_whatever_the_rule_is_now(sponsored: Books) -> None:
    sponsored.enact(charter(version=2, accounting={"contribution_owner_percent": 0}))
    reverse(sponsored, "reversal/x", "settle/r/1/turin", 600)
    reverse(sponsored, "reversal/y", "settle/r/1/turin/top1", 401)
    assert contributed(sponsored) == (0, 0)


def test_a_charged_rejected_update_is_reversed_without_a_contribution(books: Books) -> None:
    books.hold()
    books.settle(HOLD, 500, accepted=False, percent=50)
    assert books.budget().contributed_micro == 0
    (only,) = reverse(books, "reversal/x", SETTLE, 500)
    assert only.facts["type"] == "reversal"


def test_what_came_back_may_be_spent_even_when_its_grant_has_expired() -> None:
    books = Books(
        charter(
            members=tuple(m.model_dump() | {"budget_micro": 0} for m in charter().members),
            grants=({"name": "short", "member": "acme", "amount": 1_000, "expires_ms": 2_000},),
        )
    )
    books.hold(request(amount_micro=1_000))
    books.settle(HOLD, 1_000)
    reverse(books, "reversal/x", SETTLE, 400, 3_000)
    assert books.budget().available_micro == 400
    books.hold(request(2, amount_micro=400), now_ms=3_000)


def test_disputed_money_rests_in_suspense_until_the_dispute_ends(books: Books) -> None:
    books.hold()
    books.settle(HOLD, 500)
    note, moved = books.claim(dispute(amount_micro=200))
    assert note.kind is Kind.DISPUTE
    tail = the_dispute(books).removeprefix("sha256:")[:32]
    assert (moved.facts["id"], moved.facts["credit"]) == (f"dispute/{tail}", f"suspense/{tail}")
    budget = books.budget()
    assert (budget.disputed_micro, budget.spent_micro, budget.available_micro) == (200, 500, 999_500)
    assert books.try_claim(dispute(amount_micro=200), 9_999) == []


@pytest.mark.parametrize(
    ("outcome", "available", "credited"), [("withdrawn", 999_500, 500), ("conceded", 999_700, 300)]
)
def test_a_party_ends_a_dispute(books: Books, outcome: str, available: int, credited: int) -> None:
    books.hold()
    books.settle(HOLD, 500)
    books.claim(dispute(amount_micro=200))
    words = ruling(the_dispute(books), outcome)
    assert books.claim(words)[0].kind is Kind.RULING
    budget = books.budget()
    assert (budget.disputed_micro, budget.available_micro, budget.contributed_micro) == (
        0,
        available,
        credited,
    )
    assert books.try_claim(words, 9_999) == []
    assert not books.ledger.disputes[the_dispute(books)].open


def test_the_owner_concedes_and_the_payer_withdraws(sponsored: Books) -> None:
    sponsored.claim(dispute("settle/r/1/turin", 100, "coop"))
    found = the_dispute(sponsored)
    for outcome, wrong in (("conceded", "coop"), ("withdrawn", "beta")):
        refused = sponsored.try_claim(ruling(found, outcome, wrong))
        assert isinstance(refused, Refusal) and refused.code is Code.NOT_AUTHORISED
    sponsored.claim(ruling(found, "conceded", "beta"))
    assert sponsored.budget("coop").refunded_micro == 100


@pytest.mark.parametrize("upheld", [0, 1, 30, 99, 100, 2**62])
def test_members_uphold_a_part_and_the_rest_stays_charged(sponsored: Books, upheld: int) -> None:
    sponsored.claim(dispute("settle/r/1/turin", 100, "coop"))
    found = the_dispute(sponsored)
    voted = charter(version=2, accounting=SHARED, rulings=({"dispute": found, "upheld_micro": upheld},))
    sponsored.enact(voted)
    records = sponsored.take(decide_rulings(sponsored.ledger, voted, NOW))
    back = min(upheld, 100)
    wanted = [
        ("reversal", back),
        ("contribution-reversal", back * 701 // 1_001),
        ("contribution-reversal", back * 300 // 1_001),
        ("dismiss", 100 - back),
    ]
    assert [(r.facts["type"], r.facts["amount_micro"]) for r in records] == [(t, a) for t, a in wanted if a]
    assert sponsored.ledger.disputes[found].outcome == f"upheld {back}"
    assert (sponsored.budget("coop").disputed_micro, sponsored.budget("coop").refunded_micro) == (0, back)
    assert decide_rulings(sponsored.ledger, voted, NOW) == []
    for words in (ruling(found, "withdrawn", "coop"), ruling(found, "conceded", "beta")):
        refused = sponsored.try_claim(words)
        assert isinstance(refused, Refusal) and "decided by vote" in refused.message


def test_what_the_members_decided_as_a_party_would_is_still_not_the_partys_note(books: Books) -> None:
    """Else a party's note would count as taken and stand nowhere."""
    books.hold()
    books.settle(HOLD, 500)
    books.claim(dispute(amount_micro=200))
    voted = charter(version=2, rulings=({"dispute": the_dispute(books), "upheld_micro": 0},))
    books.enact(voted)
    books.take(decide_rulings(books.ledger, voted, NOW))
    refused = books.try_claim(ruling(the_dispute(books), "withdrawn"))
    assert isinstance(refused, Refusal) and refused.code is Code.EXISTS_WITH_DIFFERENT_FIELDS


def test_two_disputes_of_one_charge_decided_at_once_take_back_no_less_than_one(sponsored: Books) -> None:
    words = [
        dispute("settle/r/1/turin", amount, "coop", why=why)
        for amount, why in ((1, "One."), (2, "Two."), (597, "The rest."))
    ]
    for wish in words:
        sponsored.claim(wish)
    rulings = tuple({"dispute": wish.digest, "upheld_micro": 2**62} for wish in words)
    voted = charter(version=2, accounting=SHARED, rulings=rulings)
    sponsored.enact(voted)
    sponsored.take(decide_rulings(sponsored.ledger, voted, NOW))
    assert sponsored.budget("coop").refunded_micro == 600
    assert contributed(sponsored) == (701 - 600 * 701 // 1_001, 300 - 600 * 300 // 1_001)
    assert sponsored.replayed() == sponsored.ledger


def test_a_ruling_on_a_dispute_that_nobody_raised_moves_nothing(books: Books) -> None:
    voted = charter(version=2, rulings=({"dispute": "sha256:" + "0" * 64, "upheld_micro": 5},))
    books.enact(voted)
    assert decide_rulings(books.ledger, voted, NOW) == []


def after_closing(rule_then: str, rule_later: str) -> Books:
    """A charge of 20 November 2026 whose period was closed; then the members chose another length of periods."""
    begin = NOVEMBER_MS + 19 * DAY_MS
    books = Books(charter(accounting={"period": rule_then}), begin)
    books.hold(request(expires_ms=begin + DAY_MS), now_ms=begin)
    books.settle(HOLD, 500, begin)
    end = DECEMBER_MS + (31 * DAY_MS if rule_then == "quarter" else 0)
    (closed,) = books.take(closings(books.ledger, end))
    assert closed.facts["period"] == ("2026-q4" if rule_then == "quarter" else "2026-11")
    books.enact(charter(version=2, accounting={"period": rule_later}), end)
    return books


@pytest.mark.parametrize("rules", [("month", "month"), ("month", "quarter"), ("quarter", "month")])
def test_the_last_day_for_a_dispute_follows_from_the_period_the_charge_was_in(rules: tuple[str, str]) -> None:
    books = after_closing(*rules)
    last_ms = next(iter(books.ledger.closed.values())) + 30 * DAY_MS
    refused = books.try_claim(dispute(), last_ms + 1)
    assert isinstance(refused, Refusal) and refused.code is Code.PERIOD_CLOSED
    books.claim(dispute(), last_ms)


def test_a_charge_whose_period_nobody_closed_may_be_disputed_for_ever(books: Books) -> None:
    books.hold()
    books.settle(HOLD, 500)
    books.claim(dispute(), DECEMBER_MS)


def reversed_and_disputed() -> Books:
    books = Books()
    books.hold()
    books.settle(HOLD, 500)
    reverse(books, "reversal/x", SETTLE, 100)
    books.claim(dispute(amount_micro=200))
    return books


@pytest.mark.parametrize(
    ("kind", "changes", "says"),
    [
        ("reversal", {}, "booked before"),
        ("reversal", {"id": "reversal/y", "amount_micro": 201}, "has 200 left"),
        ("reversal", {"id": "reversal/y", "credit": "partner/beta/budget"}, "other accounts"),
        ("reversal", {"id": "reversal/y", "debit": "run/q/consumed"}, "other accounts"),
        ("reversal", {"id": "reversal/y", "reverses": "settle/r/2/berlin"}, "there is no settle/r/2"),
        ("contribution-reversal", {"id": "contribution-reversal/y/acme", "amount_micro": 401}, "overdrawn"),
        (
            "contribution-reversal",
            {"id": "contribution-reversal/y/beta", "partner": "beta"},
            "credited nothing",
        ),
        ("dispute", {}, "booked before"),
        ("dispute", {"id": "dispute/y"}, "in use"),
        ("dispute", {"id": "dispute/y", "dispute": "sha256:00", "amount_micro": 201}, "has 200 left"),
        ("dispute", {"id": "dispute/y", "dispute": "sha256:00", "partner": "beta"}, "does not pay"),
    ],
)
def test_a_journal_with_an_unlawful_correction_is_not_folded(
    kind: str, changes: dict[str, Any], says: str
) -> None:
    books = reversed_and_disputed()
    facts = [r.facts for r in books.records if r.kind is Kind.TRANSFER]
    forged = next(f for f in facts if f["type"] == kind) | changes
    with pytest.raises(StoreError, match=says):
        books.ledger.apply(99, fact(Kind.TRANSFER, NOW, **forged))


def test_a_dispute_does_not_end_twice() -> None:
    books = reversed_and_disputed()
    _, dismissal = books.claim(ruling(the_dispute(books), "withdrawn"))
    with pytest.raises(StoreError, match="overdrawn"):
        books.ledger.apply(99, fact(Kind.TRANSFER, NOW, **dismissal.facts | {"id": "dismiss/again"}))


def test_a_left_member_cannot_dispute_and_the_members_can_still_rule() -> None:
    books = Books()
    books.hold(request(site="turin", payer="coop"))
    books.settle("hold/r/1/turin", 500)
    words = dispute("settle/r/1/turin", 200, "coop")
    books.claim(words)
    without = {
        "members": tuple(m.model_dump() for m in charter().members if m.name != "coop"),
        "sites": tuple(vars(s) | {"payer": s.partner} for s in charter().sites),
    }
    books.enact(charter(version=2, **without))
    refused = books.try_claim(ruling(words.digest, "withdrawn", "coop"))
    assert isinstance(refused, Refusal) and refused.code is Code.NOT_AUTHORISED
    voted = charter(version=3, rulings=({"dispute": words.digest, "upheld_micro": 50},), **without)
    books.enact(voted)
    books.take(decide_rulings(books.ledger, voted, NOW))
    assert books.budget("coop").refunded_micro == 50
    assert signer("coop").vkey not in [m.key for m in voted.members]
