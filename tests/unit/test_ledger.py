"""The life of a charge: held, topped up, settled or given back; asked twice it is done once."""

from __future__ import annotations

from typing import Any

import pytest

from commons.errors import Code, Refusal, StoreError
from commons.records import Kind, Record, fact
from governance.ledger import decide_expire, decide_hold, decide_release, decide_settle
from tests.support.books import HOLD, NOW, Books, charge, request, usage_note


@pytest.fixture
def books() -> Books:
    return Books()


def test_a_hold_counts_at_once_a_settle_charges_and_gives_the_rest_back(books: Books) -> None:
    books.hold()
    assert books.state("acme") == (600_000, 0, 400_000, 0)
    books.settle(HOLD, 250_000)
    assert books.state("acme") == (0, 250_000, 750_000, 250_000)


def test_a_sponsor_pays_and_the_owner_of_the_site_contributes(books: Books) -> None:
    books.hold(request(site="turin", payer="coop"))
    books.settle("hold/r/1/turin", 100)
    assert books.state("coop") == (0, 100, 999_900, 0)
    assert books.state("beta") == (0, 0, 1_000_000, 100)


def test_released_and_expired_holds_charge_nothing(books: Books) -> None:
    books.hold(request(1, amount_micro=400_000), request(2, amount_micro=400_000))
    books.take(decide_release(books.ledger, HOLD, "left the round", NOW))
    assert decide_expire(books.ledger, 4_999) == []
    (expired,) = books.take(decide_expire(books.ledger, 5_000))
    assert expired.facts["hold"] == "hold/r/2/berlin"
    assert decide_expire(books.ledger, 9_999) == []
    assert books.state("acme") == (0, 0, 1_000_000, 0)


def test_a_usage_in_the_journal_keeps_its_hold_from_expiring(books: Books) -> None:
    books.hold(request(amount_micro=10), request(2, amount_micro=10))
    books.take([Record(Kind.USAGE, 4_000, usage_note(1, "berlin"))])
    assert [r.facts["hold"] for r in books.take(decide_expire(books.ledger, 6_000))] == ["hold/r/2/berlin"]
    books.settle(HOLD, 7, 9_000)
    assert books.state("acme") == (0, 7, 999_993, 7)


def test_every_repeat_gives_the_first_answer_and_changes_nothing(books: Books) -> None:
    ask = [request(), request(2, amount_micro=1)]
    assert len(books.hold(*ask)) == 2
    assert decide_hold(books.ledger, ask, NOW + 1) == []
    assert decide_hold(books.ledger, ask, 9_999) == [], "even when a new one would be late"
    books.settle(HOLD, 5)
    assert decide_settle(books.ledger, HOLD, charge(5), 9_999) == []
    books.take(decide_release(books.ledger, "hold/r/2/berlin", "why", NOW))
    assert decide_release(books.ledger, "hold/r/2/berlin", "another why", NOW) == []


def test_holds_are_linked_one_that_lacks_refuses_all_and_all_who_lack_are_named(books: Books) -> None:
    asked = [
        request(),
        request(2),
        request(1, "turin", "coop", amount_micro=1_000_001),
        request(2, "turin", "beta"),
    ]
    refused = decide_hold(books.ledger, asked, NOW)
    assert isinstance(refused, Refusal)
    assert refused.code is Code.EXCEEDS_BUDGET
    assert refused.details["lacking"] == {
        "acme": {"needs": 1_200_000, "available": 1_000_000},
        "coop": {"needs": 1_000_001, "available": 1_000_000},
    }
    assert "acme needs 1200000 micro and has 1000000" in refused.message
    assert books.state("beta") == (0, 0, 1_000_000, 0)


def test_the_same_records_give_the_same_books(books: Books) -> None:
    books.hold()
    books.settle()
    assert books.replayed() == books.ledger


@pytest.mark.parametrize(
    "changes",
    [
        {"amount_micro": 1_000_001},
        {"amount_micro": -5},
        {"amount_micro": 1.0},
        {"debit": "partner/nobody/budget"},
        {"type": "gift"},
        {"id": None},
    ],
)
def test_a_journal_with_an_unlawful_transfer_is_not_folded(books: Books, changes: dict[str, Any]) -> None:
    decided = decide_hold(books.ledger, [request()], NOW)
    assert isinstance(decided, list)
    forged = {**decided[0].facts, **changes}
    if changes.get("id", "") is None:
        del forged["id"]
    with pytest.raises(StoreError, match="record 7 of the journal is no lawful transfer"):
        books.ledger.apply(7, fact(Kind.TRANSFER, NOW, **forged))


def test_a_settle_is_not_folded_from_another_account(books: Books) -> None:
    books.hold()
    decided = decide_settle(books.ledger, HOLD, charge(5), NOW)
    assert isinstance(decided, list)
    with pytest.raises(StoreError, match="other accounts"):
        books.ledger.apply(
            8, fact(Kind.TRANSFER, NOW, **{**decided[-1].facts, "debit": "partner/beta/budget"})
        )
