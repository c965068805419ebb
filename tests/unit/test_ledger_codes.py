"""Every refusal of the ledger: the exact situation, its name, and its status on the wire."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from commons.accounting import Rate, RateCard
from commons.claims import CountersignNote
from commons.errors import GRPC_STATUS, Code, Refusal
from commons.names import Digest
from commons.notes import parse
from commons.records import Kind, Record
from governance.ledger import (
    decide_claim,
    decide_expire,
    decide_failed,
    decide_hold,
    decide_release,
    decide_reverse,
    decide_settle,
)
from governance.ledger.correcting import DAY_MS
from governance.ratecard import price
from tests.support.books import (
    HOLD,
    NOW,
    SETTLE,
    Books,
    charge,
    closings,
    conversion,
    dispute,
    request,
    ruling,
    signed,
    topup,
    usage_note,
)
from tests.support.chamber import charter, signer

UNKNOWN = "sha256:" + "0" * 64
LATER = 40 * DAY_MS
"""In the month after the one of `NOW`."""
OTHER = "hold/r/2/berlin"
HELD_OTHER = request(2, amount_micro=100)
Situation = Callable[[Books], object]
Answer = Sequence[Record] | Refusal
PLEDGE = {"name": "pledge", "member": "acme", "unit": "device_ms:cpu", "amount": 1_000}


def nothing(_books: Books) -> None:
    pass


def held(books: Books) -> None:
    books.hold()


def topped_up(books: Books) -> None:
    books.hold()
    books.hold(topup())


def settled(books: Books) -> None:
    books.hold()
    books.settle(HOLD, 500)


def released(books: Books) -> None:
    books.hold()
    books.take(decide_release(books.ledger, HOLD, "why", NOW))


def expired(books: Books) -> None:
    books.hold()
    books.take(decide_expire(books.ledger, 5_000))


def delivered(books: Books) -> None:
    books.hold()
    books.take([Record(Kind.USAGE, NOW, usage_note())])


def failed(books: Books) -> None:
    refusal = decide_hold(books.ledger, [request(amount_micro=2_000_000)], NOW)
    assert isinstance(refusal, Refusal)
    assert len(books.take(decide_failed(books.ledger, [HOLD, HOLD, "reversal/x"], refusal, NOW))) == 2
    assert decide_failed(books.ledger, [HOLD], refusal, NOW) == []


def without_coop(books: Books) -> None:
    members = tuple(m.model_dump() for m in charter().members if m.name != "coop")
    sites = tuple(vars(s) | {"payer": s.partner} for s in charter().sites)
    books.enact(charter(version=2, members=members, sites=sites))


def reversed_once(books: Books) -> None:
    settled(books)
    books.take(decide_reverse(books.ledger, "reversal/x", SETTLE, 400, "duplicate", NOW))


def disputed(books: Books) -> None:
    settled(books)
    books.claim(dispute(amount_micro=450))


def withdrawn(books: Books) -> None:
    disputed(books)
    books.claim(ruling(the_dispute(books), "withdrawn"))


def closed_long_ago(books: Books) -> None:
    settled(books)
    books.take(closings(books.ledger, LATER))


def pledged(books: Books, micro_per_device_second: int = 0, **grant: Any) -> None:
    rates = ({"device": "cpu", "micro_per_gflop": 3, "micro_per_device_second": micro_per_device_second},)
    card = {"currency": "EUR", "rates": rates}
    books.enact(charter(version=2, rate_card=card, grants=(PLEDGE | grant,)))


def priced(books: Books) -> None:
    pledged(books, 5)


def dear(books: Books) -> None:
    pledged(books, 2**62, amount=10**6)


def the_dispute(books: Books) -> Digest:
    return next(iter(books.ledger.disputes))


def hold(*requests: Any, now_ms: int = NOW) -> Callable[[Books], Answer]:
    return lambda books: decide_hold(books.ledger, requests, now_ms)


def settle(
    amount_micro: Any, now_ms: int = NOW, name: str = HOLD, **changes: Any
) -> Callable[[Books], Answer]:
    return lambda books: decide_settle(books.ledger, name, charge(amount_micro, **changes), now_ms)


def release(now_ms: int = NOW) -> Callable[[Books], Answer]:
    return lambda books: decide_release(books.ledger, HOLD, "why", now_ms)


def reverse(amount_micro: Any, name: str = "reversal/x", of: str = SETTLE) -> Callable[[Books], Answer]:
    return lambda books: decide_reverse(books.ledger, name, of, amount_micro, "duplicate", NOW)


def claim(make: Callable[[Books], Any], now_ms: int = NOW, by: str = "") -> Callable[[Books], Answer]:
    return lambda books: books.try_claim(make(books), now_ms, by)


def disputes(now_ms: int = NOW, by: str = "", **fields: Any) -> Callable[[Books], Answer]:
    return claim(lambda _books: dispute(**fields), now_ms, by)


def rules(outcome: str, partner: str) -> Callable[[Books], Answer]:
    return claim(lambda books: ruling(the_dispute(books), outcome, partner))


def converts(amount_ms: int, **fields: Any) -> Callable[[Books], Answer]:
    return claim(lambda _books: conversion(amount_ms, **fields))


def reverses_what_a_dispute_would(books: Books) -> Answer:
    tail = the_dispute(books).partition(":")[2][:32]
    return reverse(1, f"reversal/{tail}")(books)


def disputes_in_the_words_of_a_reversal(books: Books) -> Answer:
    """The operator saw the note before it was recorded, and took the id its reversal would have."""
    tail = dispute().digest.partition(":")[2][:32]
    books.take(decide_reverse(books.ledger, f"reversal/{tail}", SETTLE, 1, "duplicate", NOW))
    return books.try_claim(dispute())


def countersigns(books: Books) -> Answer:
    words = CountersignNote(consortium="demo", partner="acme", period="1970-01", statement=UNKNOWN)
    return decide_claim(books.ledger, parse(signer("acme").sign(words.text)), books.charter, NOW)


CASES: list[tuple[Code, Situation, Callable[[Books], Answer], str]] = [
    # the same id, other words
    (Code.EXISTS_WITH_DIFFERENT_FIELDS, nothing, hold(request(), request(amount_micro=1)), "amount_micro 600000"),
    (Code.EXISTS_WITH_DIFFERENT_FIELDS, held, hold(request(amount_micro=1)), "not 1"),
    (Code.EXISTS_WITH_DIFFERENT_FIELDS, held, hold(request(payer="beta")), "payer acme"),
    (Code.EXISTS_WITH_DIFFERENT_FIELDS, settled, hold(request(expires_ms=6_000)), "expires_ms 5000"),
    (Code.EXISTS_WITH_DIFFERENT_FIELDS, topped_up, hold(topup(amount_micro=5)), "amount_micro 100000"),
    (Code.EXISTS_WITH_DIFFERENT_FIELDS, reversed_once, reverse(399), "400 micro"),
    (Code.EXISTS_WITH_DIFFERENT_FIELDS, withdrawn, rules("conceded", "acme"), "was withdrawn"),
    (Code.EXISTS_WITH_DIFFERENT_FIELDS, disputed, reverses_what_a_dispute_would, "another id"),
    (Code.EXISTS_WITH_DIFFERENT_FIELDS, settled, disputes_in_the_words_of_a_reversal, "anew"),
    # an id that failed
    (Code.ID_ALREADY_FAILED, failed, hold(request(amount_micro=1)), "new id"),
    (Code.ID_ALREADY_FAILED, failed, reverse(1), "budget exceeded"),
    # accounts
    (Code.ACCOUNT_NOT_FOUND, nothing, hold(request(payer="nobody")), "nobody has no budget"),
    (Code.ACCOUNT_NOT_FOUND, nothing, hold(request(site="nowhere")), "no site nowhere"),
    (Code.ACCOUNT_NOT_FOUND, priced, converts(1, device="h100"), "no pledged time of h100"),
    (Code.ACCOUNT_CLOSED, without_coop, hold(request(payer="coop")), "coop has left"),
    # units
    (Code.UNIT_MISMATCH, nothing, hold(request(unit="device_ms:cpu")), "converts pledged device time"),
    (Code.RATE_UNKNOWN, nothing, hold(request(unit="device_ms:h100")), "no rate card"),
    (Code.RATE_UNKNOWN, nothing, hold(request(unit="gflop")), "no rate card"),
    (Code.RATE_UNKNOWN, pledged, converts(1), "no price for a second of cpu"),
    (Code.RATE_UNKNOWN, nothing, lambda _books: as_answer(price(CARD_OF_TWO, "cpu", "fp8", gflop=1)), "cpu at fp8"),
    (Code.RATE_CARD_UNKNOWN, nothing, hold(request(rate_card=Digest(UNKNOWN))), "never was in force"),
    # more than there is
    (Code.EXCEEDS_BUDGET, nothing, hold(request(amount_micro=1_000_001)), "acme needs 1000001"),
    (Code.EXCEEDS_BUDGET, held, hold(topup(amount_micro=400_001)), "has 400000"),
    (Code.EXCEEDS_BUDGET, priced, converts(1_001), "1000 ms of cpu"),
    (Code.EXCEEDS_HOLD, held, settle(600_001), "600000 micro"),
    (Code.EXCEEDS_HOLD, topped_up, settle(700_001), "700000 micro"),
    (Code.REVERSAL_EXCEEDS_ORIGINAL, settled, reverse(501), "charged 500"),
    (Code.REVERSAL_EXCEEDS_ORIGINAL, reversed_once, reverse(101, "reversal/y"), "400 are reversed"),
    (Code.REVERSAL_EXCEEDS_ORIGINAL, disputed, reverse(51), "450 disputed"),
    (Code.REVERSAL_EXCEEDS_ORIGINAL, disputed, disputes(amount_micro=51, why="Also."), "450 disputed"),
    # no such hold, no such charge
    (Code.HOLD_NOT_FOUND, nothing, settle(1), HOLD),
    (Code.HOLD_NOT_FOUND, nothing, release(), HOLD),
    (Code.TRANSFER_NOT_FOUND, held, reverse(1), SETTLE),
    (Code.TRANSFER_NOT_FOUND, settled, reverse(1, of=HOLD), HOLD),
    (Code.TRANSFER_NOT_FOUND, settled, reverse(1, of="settle/"), "settle/"),
    (Code.TRANSFER_NOT_FOUND, released, disputes(), SETTLE),
    (Code.TRANSFER_NOT_FOUND, settled, claim(lambda _: ruling(UNKNOWN, "withdrawn")), UNKNOWN),
    # a hold ends once
    (Code.HOLD_ALREADY_SETTLED, settled, settle(501), "500 micro"),
    (Code.HOLD_ALREADY_SETTLED, settled, settle(500, usage="another"), "ends once"),
    (Code.HOLD_ALREADY_SETTLED, settled, release(), "500 micro"),
    (Code.HOLD_ALREADY_RELEASED, released, settle(1), "was released"),
    (Code.HOLD_EXPIRED, expired, settle(1), "expired at 5000"),
    (Code.HOLD_EXPIRED, expired, release(), "expired at 5000"),
    (Code.HOLD_EXPIRED, held, settle(1, 5_000), "expired at 5000"),
    (Code.HOLD_EXPIRED, nothing, hold(request(expires_ms=NOW)), "before it is made"),
    # a top-up fails with its hold
    (Code.LINKED_FAILED, nothing, hold(topup()), "not open"),
    (Code.LINKED_FAILED, nothing, hold(topup(), request()), "not open"),
    (Code.LINKED_FAILED, settled, hold(topup()), "not open"),
    (Code.LINKED_FAILED, expired, hold(topup(expires_ms=9_000), now_ms=5_000), "not open"),
    (Code.LINKED_FAILED, delivered, hold(topup()), "not open"),
    (Code.LINKED_FAILED, held, hold(topup(payer="beta")), "payer acme"),
    (Code.LINKED_FAILED, held, hold(topup(round=2)), "round 1"),
    (Code.LINKED_FAILED, topped_up, hold(topup(1, topup())), "top-up itself"),
    # amounts
    *[
        (Code.AMOUNT_INVALID, nothing, hold(request(amount_micro=amount)), "2^63")
        for amount in (-1, 2**63, 1.5, True, None, "1")
    ],
    (Code.AMOUNT_INVALID, held, hold(topup(amount_micro=0)), "whole numbers, 1"),
    *[(Code.AMOUNT_INVALID, held, settle(amount), "2^63") for amount in (-1, 2**63, 1.5)],
    *[(Code.AMOUNT_INVALID, settled, reverse(amount), "1 to 2^63") for amount in (-1, 0, 2**63, True)],
    *[(Code.AMOUNT_INVALID, settled, disputes(amount_micro=amount), "1 to 2^63") for amount in (0, 2**63)],
    *[(Code.AMOUNT_INVALID, priced, converts(amount), "1 to 2^63") for amount in (0, 2**63)],
    (Code.AMOUNT_INVALID, dear, converts(10**6), "convert less"),
    (Code.AMOUNT_INVALID, nothing, lambda _: as_answer(price(CARD_OF_TWO, "cpu", "fp32", gflop=-1)), "no work"),
    (Code.AMOUNT_INVALID, nothing, lambda _: as_answer(price(CARD_OF_TWO, "cpu", "fp32", gflop=2**62)), "no work"),
    # who may
    (Code.NOT_AUTHORISED, settled, disputes(partner="beta"), "charged to acme"),
    (Code.NOT_AUTHORISED, settled, disputes(partner="nobody"), "no member"),
    (Code.NOT_AUTHORISED, disputed, rules("withdrawn", "beta"), "by acme"),
    (Code.NOT_AUTHORISED, disputed, rules("conceded", "beta"), "by acme"),
    (Code.SIGNATURE_INVALID, settled, disputes(by="beta"), "not signed by acme"),
    (Code.REQUEST_INVALID, settled, disputes(consortium="other"), "for consortium 'other'"),
    (Code.NOTE_MALFORMED, settled, countersigns, "hansa-countersign"),
    # too late
    (Code.PERIOD_CLOSED, closed_long_ago, disputes(LATER + 31 * DAY_MS), "1970-01"),
]  # fmt: skip
CARD_OF_TWO = RateCard(
    currency="EUR",
    rates=(
        Rate(device="cpu", precision="fp32", micro_per_gflop=3),
        Rate(device="cpu", precision="bf16", micro_per_gflop=2),
    ),
)


def as_answer(found: Any) -> Refusal:
    assert isinstance(found, Refusal)
    return found


@pytest.mark.parametrize(
    ("code", "before", "command", "says"), CASES, ids=[f"{i}-{case[0]}" for i, case in enumerate(CASES)]
)
def test_what_may_not_be_is_refused_by_name(
    code: Code, before: Situation, command: Callable[[Books], Answer], says: str
) -> None:
    books = Books()
    before(books)
    refused = command(books)
    assert isinstance(refused, Refusal), refused
    assert (refused.code, says in refused.message) == (code, True), refused.message
    assert books.replayed() == books.ledger


STATUSES = {
    "exists_with_different_fields": "ALREADY_EXISTS",
    "id_already_failed": "FAILED_PRECONDITION",
    "account_not_found": "NOT_FOUND",
    "account_closed": "FAILED_PRECONDITION",
    "unit_mismatch": "INVALID_ARGUMENT",
    "exceeds_budget": "FAILED_PRECONDITION",
    "hold_not_found": "NOT_FOUND",
    "hold_already_settled": "FAILED_PRECONDITION",
    "hold_already_released": "FAILED_PRECONDITION",
    "hold_expired": "FAILED_PRECONDITION",
    "exceeds_hold": "FAILED_PRECONDITION",
    "linked_failed": "FAILED_PRECONDITION",
    "period_closed": "FAILED_PRECONDITION",
    "rate_card_unknown": "FAILED_PRECONDITION",
    "rate_unknown": "FAILED_PRECONDITION",
    "usage_overlap": "ALREADY_EXISTS",
    "usage_outside_lease": "FAILED_PRECONDITION",
    "usage_implausible": "INVALID_ARGUMENT",
    "reversal_exceeds_original": "FAILED_PRECONDITION",
    "not_authorised": "PERMISSION_DENIED",
    "transfer_not_found": "NOT_FOUND",
    "amount_invalid": "INVALID_ARGUMENT",
}
"""The design's codes of the ledger, and how a caller over gRPC sees them."""
AT_INTAKE = {"usage_overlap", "usage_outside_lease", "usage_implausible"}
"""Decided before the ledger hears of a usage: tests/unit/test_intake.py."""


@pytest.mark.parametrize("code", STATUSES)
def test_every_code_of_the_design_has_its_situation_and_its_status(code: str) -> None:
    assert GRPC_STATUS[Code(code)] == STATUSES[code]
    assert code in AT_INTAKE or any(case[0] == code for case in CASES)


def test_only_a_hold_and_a_charge_may_be_of_nothing() -> None:
    """A rate may be 0: the round of such a site is held, settled and contributed like any other."""
    books = Books()
    books.hold(request(amount_micro=0))
    books.settle(HOLD, 0)
    assert books.state("acme") == (0, 0, 1_000_000, 0)
    assert books.replayed() == books.ledger


def test_a_dispute_in_time_is_taken_though_its_period_is_closed() -> None:
    books = Books()
    closed_long_ago(books)
    books.claim(dispute(), LATER + 30 * DAY_MS)
    assert books.budget().disputed_micro == 1


def test_a_note_must_have_the_one_signature_of_who_speaks() -> None:
    books = Books()
    settled(books)
    twice = parse(signed(dispute()).data + signed(dispute(), "beta").signatures[0].line.encode())
    refused = decide_claim(books.ledger, twice, books.charter, NOW)
    assert isinstance(refused, Refusal) and refused.code is Code.NOTE_MALFORMED
