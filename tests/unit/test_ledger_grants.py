"""Where budget comes from and where it goes: grants in order, with a first and a last day; pledged time as money."""

from __future__ import annotations

from typing import Any

import pytest

from commons.charter import Charter
from commons.errors import StoreError
from commons.records import Kind, Record, fact
from governance.ledger import decide_expire, decide_grants, decide_release, next_expiry_ms
from tests.support.books import HOLD, NOW, Books, conversion, request, topup, usage_note
from tests.support.chamber import charter, signer

DAY_MS = 86_400_000


def of(*grants: dict[str, Any], version: int = 1, **changes: Any) -> Charter:
    """acme's whole budget is these grants; `budget_micro` is 0."""
    members = tuple(m.model_dump() | {"budget_micro": 0} for m in charter().members)
    return charter(
        version=version,
        grants=tuple({"member": "acme", **g} for g in grants),
        **{"members": members, **changes},
    )


def members(*names: str, **micro: int) -> dict[str, Any]:
    """The sections that follow from who is a member; sites stay with acme and beta."""
    return {
        "members": tuple(
            {"name": m, "key": signer(m).vkey, "budget_micro": micro.get(m, 1_000_000)} for m in names
        ),
        "sites": tuple(vars(s) | {"payer": s.partner} for s in charter().sites),
    }


def free(books: Books, partner: str = "acme") -> dict[str, int]:
    return {lot.id.removeprefix("grant/"): lot.free for lot in books.ledger.purses[partner].lots}


def expire(books: Books, now_ms: int) -> list[dict[str, Any]]:
    taken = [r.facts for r in books.take(decide_expire(books.ledger, now_ms))]
    assert decide_expire(books.ledger, now_ms) == []
    return taken


def test_members_get_their_budget_once() -> None:
    books = Books()
    assert {b.partner: b.granted_micro for b in books.ledger.budgets()} == dict.fromkeys(
        ("acme", "beta", "coop"), 1_000_000
    )
    assert decide_grants(books.ledger, charter(), NOW) == []


def test_a_raised_budget_grants_the_difference_and_a_lowered_one_takes_nothing_back() -> None:
    books = Books()
    after = members("acme", "beta", "coop", acme=1_500_000, beta=10)
    (grant,) = books.enact(charter(version=2, **after))
    assert (grant.facts["id"], grant.facts["amount_micro"]) == ("grant/2/acme", 500_000)
    assert books.ledger.available_micro("beta") == 1_000_000


def test_a_voted_grant_comes_on_top_of_the_founding_budget() -> None:
    books = Books()
    extra = {"name": "extra", "member": "acme", "amount": 7}
    (grant,) = books.enact(charter(version=2, grants=(extra,)))
    assert grant.facts["id"] == "grant/extra"
    assert books.budget().granted_micro == 1_000_007
    after = members("acme", "beta", "coop", acme=1_000_010)
    (raised,) = books.enact(charter(version=3, grants=(extra,), **after))
    assert raised.facts["amount_micro"] == 10, "a vote for more does not count against the founding budget"


def test_budget_is_spent_by_priority_then_by_expiry_then_by_age() -> None:
    books = Books(
        of(
            {"name": "old", "amount": 10},
            {"name": "late", "amount": 10, "expires_ms": 9_000},
            {"name": "soon", "amount": 10, "expires_ms": 8_000},
            {"name": "last", "amount": 10, "priority": 200, "expires_ms": 7_000},
            {"name": "first", "amount": 10, "priority": 1},
            {"name": "young", "amount": 10},
        )
    )
    order = ["first", "soon", "late", "old", "young", "last"]
    assert list(free(books)) == order
    for number in range(12):
        left = [name for name, amount in free(books).items() if amount]
        assert left[0] == order[number // 2]
        books.hold(request(number + 1, amount_micro=5))


def test_a_charge_takes_the_first_grants_of_its_hold_and_the_rest_returns_to_its_own() -> None:
    books = Books(of({"name": "a", "amount": 10}, {"name": "b", "amount": 10}, {"name": "c", "amount": 10}))
    books.hold(request(amount_micro=25))
    books.settle(HOLD, 12)
    assert free(books) == {"b": 8, "c": 10}, "what is empty is not carried along"


def test_what_is_not_there_yet_cannot_be_held_and_later_can() -> None:
    books = Books(of({"name": "next-year", "amount": 100, "not_before_ms": 4_000}))
    assert (books.budget().later_micro, books.budget().available_micro) == (100, 0)
    assert decide_expire(books.ledger, 2_000) == []
    assert books.ledger.available_micro("acme", 3_999) == 0
    assert books.ledger.available_micro("acme", 4_000) == 100
    books.hold(request(amount_micro=100), now_ms=4_000)


def test_what_an_expired_grant_had_left_is_lost_to_breakage() -> None:
    books = Books(of({"name": "short", "amount": 100, "expires_ms": 4_000}, {"name": "long", "amount": 1}))
    assert next_expiry_ms(books.ledger) == 4_000
    assert decide_expire(books.ledger, 3_999) == []
    (lost,) = expire(books, 4_000)
    assert (lost["id"], lost["debit"], lost["credit"]) == (
        "breakage/short/1",
        "partner/acme/budget",
        "breakage",
    )
    assert (lost["amount_micro"], lost["grant"]) == (100, "grant/short")
    assert (books.budget().expired_micro, books.budget().available_micro) == (100, 1)
    assert next_expiry_ms(books.ledger) is None


def test_a_hold_keeps_what_it_took_of_a_grant_that_expires_meanwhile() -> None:
    books = Books(of({"name": "short", "amount": 100, "expires_ms": 4_000}))
    books.hold(request(amount_micro=60))
    assert [f["amount_micro"] for f in expire(books, 4_000)] == [40]
    books.settle(HOLD, 45, 4_500)
    budget = books.budget()
    assert (budget.spent_micro, budget.available_micro, budget.expired_micro) == (45, 0, 55)
    assert next_expiry_ms(books.ledger) == 4_000, "at once: 15 came back to a grant that is over"
    (rest,) = expire(books, 4_500)
    assert (rest["id"], rest["amount_micro"]) == ("breakage/short/2", 15)
    assert books.budget().expired_micro == 55


def test_a_hold_that_ends_in_the_same_breath_as_its_grant_gives_back_to_breakage() -> None:
    books = Books(of({"name": "short", "amount": 100, "expires_ms": 5_000}))
    books.hold(request(amount_micro=60))
    assert [(f["type"], f["amount_micro"]) for f in expire(books, 5_000)] == [
        ("expire", 60),
        ("breakage", 100),
    ]


def test_a_delivered_hold_of_an_expired_grant_waits_for_its_settle() -> None:
    books = Books(of({"name": "short", "amount": 100, "expires_ms": 4_000}))
    books.hold(request(amount_micro=100), request(2, amount_micro=0))
    books.take([Record(Kind.USAGE, 3_000, usage_note())])
    assert [f["type"] for f in expire(books, 9_000)] == ["expire"]
    books.settle(HOLD, 100, 9_000)
    assert books.budget().expired_micro == 0


def test_a_vote_may_come_after_the_last_day_of_what_it_grants() -> None:
    books = Books()
    books.enact(of({"name": "late", "amount": 5, "expires_ms": 500}, version=2))
    assert books.budget().available_micro == 1_000_000
    assert [f["id"] for f in expire(books, NOW)] == ["breakage/late/1"]


def test_a_member_who_leaves_keeps_its_books_and_comes_back_to_them() -> None:
    books = Books(charter(grants=({"name": "gift", "member": "coop", "amount": 50, "expires_ms": 4_000},)))
    books.hold(request(site="turin", payer="coop", amount_micro=100))
    assert books.enact(charter(version=2, **members("acme", "beta"))) == []
    books.settle("hold/r/1/turin", 30, 2_000)
    assert books.state("coop") == (0, 30, 1_000_020, 0), "an open hold still ends"
    assert [f["id"] for f in expire(books, 4_000)] == ["breakage/gift/1"]
    again = charter(
        version=3, grants=({"name": "gift", "member": "coop", "amount": 50, "expires_ms": 9_000},)
    )
    assert books.enact(again, 5_000) == [], "nothing is granted a second time"
    books.hold(request(2, "turin", "coop", amount_micro=1_000_000, expires_ms=9_000), now_ms=5_000)
    assert books.state("coop") == (1_000_000, 30, 0, 0)
    assert books.replayed() == books.ledger


def pledged(rates: tuple[dict[str, Any], ...], amount_ms: int = 10_000) -> Books:
    card = {"currency": "EUR", "rates": ({"device": "cpu", "micro_per_gflop": 1}, *rates)}
    grant = {"name": "hours", "unit": "device_ms:h100", "amount": amount_ms}
    return Books(of(grant, rate_card=card))


@pytest.mark.parametrize(
    ("rates", "amount_ms", "micro", "rest_pico"),
    [
        ((("any", 1_000),), 1_500, 1_500, 0),
        ((("any", 1_001),), 1_500, 1_501, 500_000),
        ((("any", 3),), 333, 0, 999_000),
        ((("any", 1),), 1, 0, 1_000),
        ((("bf16", 7_000), ("any", 9_000)), 1, 9, 0),
        ((("bf16", 7_000), ("fp32", 9_000)), 1, 7, 0),
    ],
)
def test_pledged_time_becomes_money_at_the_price_of_a_second_rounded_down(
    rates: tuple[tuple[str, int], ...], amount_ms: int, micro: int, rest_pico: int
) -> None:
    books = pledged(
        tuple(
            {"device": "h100", "precision": p, "micro_per_gflop": 1, "micro_per_device_second": m}
            for p, m in rates
        )
    )
    note, *legs = books.claim(conversion(amount_ms, device="h100"))
    assert note.kind is Kind.CONVERT
    found = {
        (f["debit"], f["credit"]): f.get("amount", f.get("amount_micro")) for f in (r.facts for r in legs)
    }
    wanted = {
        ("partner/acme/pledge/h100", "fx/device_ms:h100"): amount_ms,
        ("fx/micro", "partner/acme/budget"): micro,
        ("fx/pico", "rounding"): rest_pico,
    }
    assert found == {accounts: amount for accounts, amount in wanted.items() if amount}
    assert len({r.facts["linked"] for r in legs}) == 1
    assert books.budget().granted_micro == books.budget().available_micro == micro
    assert books.try_claim(conversion(amount_ms, device="h100"), 9_999) == []
    assert books.replayed() == books.ledger


def test_conversions_take_no_more_than_was_pledged() -> None:
    rate = {"device": "h100", "micro_per_gflop": 1, "micro_per_device_second": 1_000}
    books = pledged((rate,), 100)
    for nonce in ("1", "2"):
        books.claim(conversion(50, device="h100", nonce=nonce))
    assert books.budget().available_micro == 100
    refused = books.try_claim(conversion(1, device="h100", nonce="3"))
    assert "has 0 ms of h100" in str(refused)


def test_a_conversion_is_at_the_card_in_force_when_it_is_taken() -> None:
    books = pledged(({"device": "h100", "micro_per_gflop": 1, "micro_per_device_second": 1_000},))
    books.claim(conversion(1_000, device="h100"))
    rates = (
        {"device": "cpu", "micro_per_gflop": 1},
        {"device": "h100", "micro_per_gflop": 1, "micro_per_device_second": 2_000},
    )
    books.enact(of(version=2, rate_card={"currency": "EUR", "rates": rates}))
    assert books.try_claim(conversion(1_000, device="h100")) == []
    books.claim(conversion(1_000, device="h100", nonce="2"))
    assert books.budget().available_micro == 3_000


def test_a_journal_that_converts_more_than_was_pledged_is_not_folded() -> None:
    rate = {"device": "h100", "micro_per_gflop": 1, "micro_per_device_second": 1_000}
    books = pledged((rate,), 100)
    _, time, money = books.claim(conversion(60, device="h100"))
    with pytest.raises(StoreError, match="overdrawn"):
        books.ledger.apply(9, fact(Kind.TRANSFER, NOW, **time.facts | {"id": "convert/y/time"}))
    with pytest.raises(StoreError, match="there is no convert/z"):
        books.ledger.apply(
            9, fact(Kind.TRANSFER, NOW, **money.facts | {"id": "convert/z/money", "linked": "convert/z"})
        )


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, "booked before"),
        ({"id": "grant/y", "credit": "partner/beta/budget"}, "other accounts"),
        ({"id": "grant/y", "debit": "breakage"}, "other accounts"),
        ({"id": "grant/y", "partner": "nobody", "credit": "partner/nobody/budget"}, "nobody"),
        ({"id": "grant/y", "unit": "pico", "amount": 5}, "other accounts"),
    ],
)
def test_a_journal_with_an_unlawful_grant_is_not_folded(changes: dict[str, Any], says: str) -> None:
    books = Books(of({"name": "x", "amount": 5}))
    with pytest.raises(StoreError, match=says):
        books.ledger.apply(9, fact(Kind.TRANSFER, NOW, **books.records[-1].facts | changes))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, "no grant/short to lose"),
        ({"id": "breakage/long/1", "grant": "grant/long"}, "no grant/long to lose"),
        ({"id": "breakage/half/2", "grant": "grant/half", "amount_micro": 5}, "is not breakage/half/1"),
        ({"id": "breakage/half/1", "grant": "grant/half", "amount_micro": 6}, "has 5 left"),
    ],
)
def test_a_journal_with_an_unlawful_breakage_is_not_folded(changes: dict[str, Any], says: str) -> None:
    books = Books(
        of(
            {"name": "short", "amount": 5, "expires_ms": 4_000},
            {"name": "half", "amount": 5, "expires_ms": 6_000},
            {"name": "long", "amount": 5},
        )
    )
    (lost,) = expire(books, 4_000)
    with pytest.raises(StoreError, match=says):
        books.ledger.apply(9, fact(Kind.TRANSFER, 6_000, **lost | changes))


def test_a_released_hold_gives_back_to_the_grants_it_took_from() -> None:
    books = Books(of({"name": "a", "amount": 10}, {"name": "b", "amount": 10}))
    books.hold(request(amount_micro=15))
    books.hold(topup(amount_micro=5))
    assert free(books) == {"a": 0, "b": 0}, "held, not gone"
    books.take(decide_release(books.ledger, HOLD, "why", NOW))
    assert free(books) == {"a": 10, "b": 10}
