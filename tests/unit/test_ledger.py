"""The life of a charge: held, topped up, settled or given back; asked twice it is done once."""

from __future__ import annotations

from typing import Any

import pytest

from commons.errors import Code, Refusal, StoreError
from commons.records import Kind, Record, fact
from governance.budgets import budgets_view
from governance.ledger import decide_expire, decide_failed, decide_hold, decide_release, decide_settle
from governance.ratecard import rate_card_digest
from tests.support.books import CARD, HOLD, NOW, Books, charge, request, topup, usage_note
from tests.support.chamber import charter, signer


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


def test_a_charge_takes_the_hold_first_then_its_top_ups_and_gives_back_what_is_not_needed(
    books: Books,
) -> None:
    books.hold()
    for number in (1, 2, 3):
        books.hold(topup(number))
    assert books.state("acme") == (900_000, 0, 100_000, 0)
    ended = [r.facts for r in books.settle(HOLD, 650_000) if r.facts["type"] != "contribution"]
    assert [(f["id"], f["amount_micro"], f.get("returned_micro")) for f in ended] == [
        ("settle/r/1/berlin", 600_000, 0),
        ("settle/r/1/berlin/top1", 50_000, 50_000),
        ("release/r/1/berlin/top2", 100_000, None),
        ("release/r/1/berlin/top3", 100_000, None),
    ]
    assert books.state("acme") == (0, 650_000, 350_000, 650_000)
    assert decide_settle(books.ledger, HOLD, charge(650_000), 9_999) == []
    assert not books.ledger.open


def test_the_measure_of_the_work_stands_once_beside_the_first_part_of_its_charge(books: Books) -> None:
    books.hold()
    books.hold(topup())
    measure = {
        "device": "cpu", "precision": "bf16", "gflop": 7, "device_ms": 8, "tokens": 9, "energy_j": None,
        "percent": 100,
    }  # fmt: skip
    base, top = (r.facts for r in books.settle(HOLD, 700_000, **measure) if r.facts["type"] == "settle")
    assert measure.items() <= base.items()
    assert not measure.keys() & top.keys()
    assert base["usage"] == top["usage"] == charge(1).usage


def test_a_hold_and_its_top_up_may_come_together(books: Books) -> None:
    assert len(books.hold(request(), topup())) == 2
    books.take(decide_release(books.ledger, HOLD, "left the round", NOW))
    assert books.state("acme") == (0, 0, 1_000_000, 0)


def test_a_released_top_up_leaves_its_hold_as_it_is(books: Books) -> None:
    books.hold(request(), topup())
    books.take(decide_release(books.ledger, f"{HOLD}/top1", "not needed", NOW))
    books.settle(HOLD, 600_000)
    assert books.state("acme") == (0, 600_000, 400_000, 600_000)


def test_what_rounding_added_is_booked_once_in_its_own_unit(books: Books) -> None:
    books.hold()
    rounding = books.settle(HOLD, 3, rounded_pico=999_999)[-1].facts
    assert (rounding["id"], rounding["unit"], rounding["amount"]) == ("rounding/r/1/berlin", "pico", 999_999)
    assert (rounding["debit"], rounding["credit"]) == ("partner/acme/rounding", "rounding")
    assert books.ledger.accounts["rounding"].credits_posted == 999_999


@pytest.mark.parametrize(
    ("percent", "charged", "beta", "coop"),
    [(100, 101, 101, 0), (0, 101, 0, 101), (70, 101, 71, 30), (33, 1, 1, 0), (99, 100, 99, 1)],
)
def test_owner_and_payer_share_the_contribution_by_the_charters_rule(
    percent: int, charged: int, beta: int, coop: int
) -> None:
    books = Books(charter(accounting={"contribution_owner_percent": percent}))
    books.hold(request(site="turin", payer="coop"))
    books.settle("hold/r/1/turin", charged)
    assert (books.budget("beta").contributed_micro, books.budget("coop").contributed_micro) == (beta, coop)


def test_a_rejected_update_is_charged_its_share_and_contributes_nothing(books: Books) -> None:
    books.hold()
    (settle,) = books.settle(HOLD, 250, accepted=False, percent=50)
    assert (settle.facts["accepted"], settle.facts["percent"]) == (False, 50)
    assert books.state("acme") == (0, 250, 999_750, 0)


def test_every_rate_card_is_known_with_the_times_since_when_it_is_in_force(books: Books) -> None:
    dearer = {"currency": "EUR", "rates": ({"device": "cpu", "micro_per_gflop": 4},)}
    books.enact(charter(version=2, rate_card=dearer), 2_000)
    books.enact(charter(version=3, rate_card=dearer, features={}), 3_000)
    books.enact(charter(version=4), 4_000)
    new = rate_card_digest(charter(rate_card=dearer).rate_card)
    assert books.ledger.cards_since == [(0, CARD), (2_000, new), (4_000, CARD)]
    books.hold(request(rate_card=new), now_ms=4_000)


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
        {"id": "top/r/1/berlin"},
        {"credit": "run/other/consumed"},
        {"payer": "coop"},
        {"tops": HOLD},
        {"payer": 5},
        {"amount_micro": 2**63},
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


def after_a_charge() -> Books:
    """Of coop's for beta's site, with a contribution of both and a rounding."""
    books = Books(charter(accounting={"contribution_owner_percent": 70}))
    books.hold(request(site="turin", payer="coop"), request(2, "turin", "coop", amount_micro=10))
    books.settle("hold/r/1/turin", 500, rounded_pico=5)
    return books


def of_open(kind: str, **changes: Any) -> dict[str, Any]:
    """About the hold that has not ended."""
    return {"id": f"{kind}/r/2/turin", "hold": "hold/r/2/turin", "amount_micro": 10, **changes}


@pytest.mark.parametrize(
    ("kind", "changes", "says"),
    [
        ("hold", {}, "made before"),
        ("settle", {}, "hold/r/1/turin"),
        ("settle", {"hold": "hold/r/2/turin"}, "is not settle/r/2/turin"),
        ("settle", of_open("settle", amount_micro=11), "is for 10"),
        ("settle", of_open("settle", debit="partner/beta/budget"), "other accounts"),
        ("settle", of_open("settle", credit="breakage"), "other accounts"),
        ("contribution", {}, "brings no contribution"),
        ("contribution", {"hold": "hold/r/2/turin"}, "is not contribution/r/2/turin"),
        ("contribution", of_open("contribution", partner="coop"), "is not contribution/r/2/turin/payer"),
        ("contribution", of_open("contribution", partner="acme"), "no part in"),
        ("contribution", of_open("contribution", credit="partner/acme/contributed"), "other accounts"),
        ("contribution", of_open("contribution", credit="partner/beta/budget"), "other accounts"),
        ("rounding", {}, "rounded before"),
        ("rounding", of_open("rounding"), "rounded before"),
        ("rounding", {"hold": "hold/r/2/turin"}, "is not rounding/r/2/turin"),
        ("rounding", {"unit": "micro", "amount_micro": 5}, "rounding"),
        ("rounding", {"amount": 10**6}, "rounding"),
    ],
)
def test_a_journal_that_charges_twice_or_elsewhere_is_not_folded(
    kind: str, changes: dict[str, Any], says: str
) -> None:
    books = after_a_charge()
    facts = [r.facts for r in books.records if r.kind is Kind.TRANSFER]
    forged = next(f for f in facts if f["type"] == kind) | changes
    with pytest.raises(StoreError, match=says):
        books.ledger.apply(99, fact(Kind.TRANSFER, NOW, **forged))


@pytest.mark.parametrize(
    "changes",
    [
        {"tops": "hold/r/1/turin"},
        {"tops": "hold/r/2/turin/top1"},
        {"round": 3},
        {"payer": "beta", "debit": "partner/beta/budget"},
    ],
)
def test_a_journal_that_tops_up_something_else_is_not_folded(changes: dict[str, Any]) -> None:
    books = after_a_charge()
    base = request(2, "turin", "coop", amount_micro=10)
    (top,) = books.hold(topup(1, base))
    forged = top.facts | {"id": f"{base.id}/top2"} | changes
    with pytest.raises(StoreError, match="tops up nothing"):
        books.ledger.apply(99, fact(Kind.TRANSFER, NOW, **forged))


def test_a_contribution_is_not_credited_twice_before_its_settle(books: Books) -> None:
    books.hold()
    decided = decide_settle(books.ledger, HOLD, charge(5), NOW)
    assert isinstance(decided, list)
    books.take(decided[:1])
    with pytest.raises(StoreError, match="twice"):
        books.ledger.apply(99, decided[0])


def test_an_id_that_failed_is_not_folded_as_a_hold(books: Books) -> None:
    decided = decide_hold(books.ledger, [request()], NOW)
    assert isinstance(decided, list)
    refusal = Refusal(Code.EXCEEDS_BUDGET, "not enough")
    books.take(decide_failed(books.ledger, [HOLD], refusal, NOW))
    with pytest.raises(StoreError, match="failed before"):
        books.ledger.apply(99, decided[0])


def test_the_view_shows_budgets_with_their_lots_charges_and_rate_cards() -> None:
    books = Books(charter(grants=({"name": "gift", "member": "acme", "amount": 5, "expires_ms": 9_000},)))
    books.hold(request(), topup())
    books.settle(HOLD, 7)
    view = budgets_view(books.ledger, "EUR")
    acme = view.budgets[0]
    assert (acme.partner, acme.spent_micro, acme.available_micro, acme.closed) == ("acme", 7, 999_998, False)
    assert [(lot.id, lot.amount_micro, lot.free_micro, lot.expires_ms) for lot in acme.lots] == [
        ("grant/1/acme", 1_000_000, 999_998, 0)
    ], "the gift is spent, and first"
    assert acme.lots_total == 1
    base, top = view.charges
    assert (base.id, base.state, base.held_micro, base.charged_micro) == (HOLD, "settled", 600_000, 7)
    assert (top.tops, top.state, top.at_ms, top.ended_ms) == (HOLD, "released", NOW, NOW)
    (card,) = view.cards
    assert (card.digest, card.since_ms, card.rates[0].micro_per_gflop) == (CARD, 0, 3)


def test_the_largest_view_fits_in_one_message() -> None:
    """Of as many members, grants and rates as a charter may have, with the longest names and amounts."""
    names = [f"m{n}".ljust(32, "x") for n in range(256)]
    rates = tuple({"device": n, "micro_per_gflop": 2**62, "micro_per_pflop": 2**62} for n in names)
    books = Books()
    for version in range(2, 14):
        later = {"rates": ({**rates[0], "peak_gflops": version}, *rates[1:])}
        books.enact(
            charter(
                version=version,
                members=tuple(
                    {"name": n, "key": signer(n).vkey, "budget_micro": version * 2**58} for n in names
                ),
                sites=tuple(
                    vars(s) | {"partner": names[0], "payer": names[0], "device": names[0]}
                    for s in charter().sites
                ),
                rate_card={"currency": "EUR", **later},
                grants=tuple(
                    {
                        "name": f"g{version}-{i}",
                        "member": names[i % 256],
                        "amount": 2**50,
                        "expires_ms": 2**42,
                    }
                    for i in range(1024)
                ),
            )
        )
    card = books.ledger.cards_since[-1][1]
    for number in range(1_001):
        books.hold(
            request(
                number,
                payer=names[0],
                id=f"hold/{'r' * 64}/{number}/berlin",
                amount_micro=2**40 + 1,
                rate_card=card,
            )
        )
    view = budgets_view(books.ledger, "EUR")
    assert (len(view.charges), view.charges_total) == (1_000, 1_001)
    assert len(view.model_dump_json()) < 4 * 2**20


def test_the_view_is_bounded_and_counts_what_it_leaves_out(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CHARGES_SHOWN", "LOTS_SHOWN", "CARDS_SHOWN"):
        monkeypatch.setattr(f"governance.budgets.{name}", 2)
    books = Books()
    for number in range(1, 6):
        books.hold(request(number, amount_micro=number))
        rates = ({"device": "cpu", "micro_per_gflop": number},)
        grants = tuple({"name": f"g{n}", "member": "acme", "amount": 1} for n in range(number))
        books.enact(charter(version=number + 1, rate_card={"currency": "EUR", "rates": rates}, grants=grants))
    view = budgets_view(books.ledger, "EUR")
    assert ([c.held_micro for c in view.charges], view.charges_total) == ([4, 5], 5)
    assert (len(view.budgets[0].lots), view.budgets[0].lots_total) == (2, 6)
    assert [c.rates[0].micro_per_gflop for c in view.cards] == [4, 5]
