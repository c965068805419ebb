"""The ledger keeps every invariant of double entry, whatever is asked of it, and refuses by name."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, multiple, rule

from commons import charter_file
from commons.errors import Code, Refusal, StoreError
from commons.names import Digest
from commons.records import Kind, Record, fact
from commons.work import UpdateNote
from governance.budgets import budgets_view
from governance.ledger import HoldRequest, Ledger
from governance.ratecard import price_micro, rate_card_digest
from tests.support.chamber import charter, signer

CARD = Digest("sha256:" + "c" * 64)
NOW = 1_000


def request(round_number: int = 1, site: str = "berlin", payer: str = "acme", **changes: Any) -> HoldRequest:
    fields: dict[str, Any] = {
        "id": f"hold/r/{round_number}/{site}",
        "payer": payer,
        "site": site,
        "run": "r",
        "round": round_number,
        "amount_micro": 600_000,
        "expires_ms": 5_000,
        "rate_card": CARD,
    }
    return HoldRequest(**{**fields, **changes})


def update_note(round_number: int, site: str) -> bytes:
    words = UpdateNote(
        consortium="demo",
        run="r",
        round=round_number,
        site=site,
        base="b",
        manifest="m",
        payload="p",
        payload_bytes=1,
        steps=1,
        tokens=1,
        loss=1.0,
        held_out_loss=None,
    )
    return signer(f"acme/{site}").sign(words.text)


class Books:
    """A ledger and the records it was folded from."""

    def __init__(self) -> None:
        self.ledger = Ledger()
        self.records: list[Record] = []
        self.take([Record(Kind.CHARTER, 0, charter_file.canonical(charter()))])
        self.take(self.ledger.decide_grants(charter(), NOW))

    def take(self, decided: list[Record] | Refusal) -> list[Record]:
        assert not isinstance(decided, Refusal), decided
        for record in decided:
            self.ledger.apply(len(self.records), record)
            self.records.append(record)
        return decided

    def budget(self, partner: str) -> tuple[int, int, int, int]:
        """(held, spent, available, contributed)"""
        b = next(b for b in self.ledger.budgets() if b.partner == partner)
        return b.held_micro, b.spent_micro, b.available_micro, b.contributed_micro


@pytest.fixture
def books() -> Books:
    return Books()


HOLD = "hold/r/1/berlin"


def test_members_get_their_budget_once(books: Books) -> None:
    assert {b.partner: b.granted_micro for b in books.ledger.budgets()} == dict.fromkeys(
        ("acme", "beta", "coop"), 1_000_000
    )
    assert books.ledger.decide_grants(charter(), NOW) == []


def test_a_raised_budget_grants_the_difference_and_a_lowered_one_takes_nothing_back(books: Books) -> None:
    members = tuple(
        {"name": m, "key": signer(m).vkey, "budget_micro": micro}
        for m, micro in (("acme", 1_500_000), ("beta", 10), ("coop", 1_000_000))
    )
    (grant,) = books.take(books.ledger.decide_grants(charter(version=2, members=members), NOW))
    assert (grant.facts["id"], grant.facts["amount_micro"]) == ("grant/2/acme", 500_000)
    assert books.ledger.available_micro("beta") == 1_000_000


def test_a_hold_counts_at_once_a_settle_charges_and_gives_the_rest_back(books: Books) -> None:
    books.take(books.ledger.decide_hold([request()], NOW))
    assert books.budget("acme") == (600_000, 0, 400_000, 0)
    books.take(books.ledger.decide_settle(HOLD, 250_000, NOW, "u"))
    assert books.budget("acme") == (0, 250_000, 750_000, 250_000)


def test_a_sponsor_pays_and_the_owner_of_the_site_contributes(books: Books) -> None:
    books.take(books.ledger.decide_hold([request(site="turin", payer="coop")], NOW))
    books.take(books.ledger.decide_settle("hold/r/1/turin", 100, NOW, "u"))
    assert books.budget("coop") == (0, 100, 999_900, 0)
    assert books.budget("beta") == (0, 0, 1_000_000, 100)


def test_released_and_expired_holds_charge_nothing(books: Books) -> None:
    books.take(
        books.ledger.decide_hold([request(1, amount_micro=400_000), request(2, amount_micro=400_000)], NOW)
    )
    books.take(books.ledger.decide_release(HOLD, "left the round", NOW))
    assert books.ledger.decide_expire(4_999) == []
    (expired,) = books.take(books.ledger.decide_expire(5_000))
    assert expired.facts["hold"] == "hold/r/2/berlin"
    assert books.ledger.decide_expire(9_999) == []
    assert books.budget("acme") == (0, 0, 1_000_000, 0)


def test_an_admitted_update_keeps_its_hold_from_expiring(books: Books) -> None:
    books.take(books.ledger.decide_hold([request(amount_micro=10), request(2, amount_micro=10)], NOW))
    books.take([Record(Kind.UPDATE, 4_000, update_note(1, "berlin"))])
    assert [r.facts["hold"] for r in books.take(books.ledger.decide_expire(6_000))] == ["hold/r/2/berlin"]
    books.take(books.ledger.decide_settle(HOLD, 7, 9_000, "u"))
    assert books.budget("acme") == (0, 7, 999_993, 7)


def test_every_repeat_gives_the_first_answer_and_changes_nothing(books: Books) -> None:
    ask = [request(), request(2, amount_micro=1)]
    assert len(books.take(books.ledger.decide_hold(ask, NOW))) == 2
    assert books.ledger.decide_hold(ask, NOW + 1) == []
    assert books.ledger.decide_hold(ask, 9_999) == [], "even when a new one would be late"
    books.take(books.ledger.decide_settle(HOLD, 5, NOW, "u"))
    assert books.ledger.decide_settle(HOLD, 5, 9_999, "u") == []
    books.take(books.ledger.decide_release("hold/r/2/berlin", "why", NOW))
    assert books.ledger.decide_release("hold/r/2/berlin", "another why", NOW) == []


def test_holds_are_linked_one_that_lacks_refuses_all_and_all_who_lack_are_named(books: Books) -> None:
    refused = books.ledger.decide_hold(
        [
            request(),
            request(2),
            request(1, "turin", "coop", amount_micro=1_000_001),
            request(2, "turin", "beta"),
        ],
        NOW,
    )
    assert isinstance(refused, Refusal)
    assert refused.code is Code.EXCEEDS_BUDGET
    assert refused.details["lacking"] == {
        "acme": {"needs": 1_200_000, "available": 1_000_000},
        "coop": {"needs": 1_000_001, "available": 1_000_000},
    }
    assert "acme needs 1200000 micro and has 1000000" in refused.message
    assert books.budget("beta") == (0, 0, 1_000_000, 0)


def held(books: Books) -> None:
    books.take(books.ledger.decide_hold([request()], NOW))


def settled(books: Books) -> None:
    held(books)
    books.take(books.ledger.decide_settle(HOLD, 5, NOW, "u"))


def released(books: Books) -> None:
    held(books)
    books.take(books.ledger.decide_release(HOLD, "why", NOW))


def expired(books: Books) -> None:
    held(books)
    books.take(books.ledger.decide_expire(5_000))


def failed(books: Books) -> None:
    refusal = books.ledger.decide_hold([request(amount_micro=2_000_000)], NOW)
    assert isinstance(refusal, Refusal)
    books.take(books.ledger.decide_failed([HOLD, HOLD], refusal, NOW))
    assert books.ledger.decide_failed([HOLD], refusal, NOW) == []


def nothing(_books: Books) -> None:
    pass


HOLD_AGAIN, SETTLE, RELEASE = "decide_hold", "decide_settle", "decide_release"
REFUSALS: list[tuple[Any, str, tuple[Any, ...], Code]] = [
    (nothing, HOLD_AGAIN, ([request(payer="nobody")], NOW), Code.ACCOUNT_NOT_FOUND),
    (nothing, HOLD_AGAIN, ([request(site="nowhere")], NOW), Code.ACCOUNT_NOT_FOUND),
    (nothing, HOLD_AGAIN, ([request(amount_micro=-1)], NOW), Code.AMOUNT_INVALID),
    (nothing, HOLD_AGAIN, ([request(amount_micro=2**63)], NOW), Code.AMOUNT_INVALID),
    (nothing, HOLD_AGAIN, ([request(amount_micro=1.5)], NOW), Code.AMOUNT_INVALID),
    (nothing, HOLD_AGAIN, ([request(amount_micro=True)], NOW), Code.AMOUNT_INVALID),
    (nothing, HOLD_AGAIN, ([request(expires_ms=NOW)], NOW), Code.HOLD_EXPIRED),
    (nothing, HOLD_AGAIN, ([request(amount_micro=1_000_001)], NOW), Code.EXCEEDS_BUDGET),
    (nothing, HOLD_AGAIN, ([request(), request(amount_micro=1)], NOW), Code.EXISTS_WITH_DIFFERENT_FIELDS),
    (held, HOLD_AGAIN, ([request(amount_micro=1)], NOW), Code.EXISTS_WITH_DIFFERENT_FIELDS),
    (held, HOLD_AGAIN, ([request(payer="beta")], NOW), Code.EXISTS_WITH_DIFFERENT_FIELDS),
    (settled, HOLD_AGAIN, ([request(expires_ms=6_000)], NOW), Code.EXISTS_WITH_DIFFERENT_FIELDS),
    (failed, HOLD_AGAIN, ([request(amount_micro=1)], NOW), Code.ID_ALREADY_FAILED),
    (nothing, SETTLE, (HOLD, 1, NOW, "u"), Code.HOLD_NOT_FOUND),
    (held, SETTLE, (HOLD, -1, NOW, "u"), Code.AMOUNT_INVALID),
    (held, SETTLE, (HOLD, 600_001, NOW, "u"), Code.EXCEEDS_HOLD),
    (held, SETTLE, (HOLD, 1, 5_000, "u"), Code.HOLD_EXPIRED),
    (expired, SETTLE, (HOLD, 1, NOW, "u"), Code.HOLD_EXPIRED),
    (released, SETTLE, (HOLD, 1, NOW, "u"), Code.HOLD_ALREADY_RELEASED),
    (settled, SETTLE, (HOLD, 6, NOW, "u"), Code.HOLD_ALREADY_SETTLED),
    (settled, SETTLE, (HOLD, 5, NOW, "other"), Code.HOLD_ALREADY_SETTLED),
    (nothing, RELEASE, (HOLD, "why", NOW), Code.HOLD_NOT_FOUND),
    (settled, RELEASE, (HOLD, "why", NOW), Code.HOLD_ALREADY_SETTLED),
    (expired, RELEASE, (HOLD, "why", NOW), Code.HOLD_EXPIRED),
]


@pytest.mark.parametrize(("before", "command", "arguments", "code"), REFUSALS)
def test_what_may_not_be_is_refused_by_name(
    books: Books, before: Any, command: str, arguments: tuple[Any, ...], code: Code
) -> None:
    before(books)
    refused = getattr(books.ledger, command)(*arguments)
    assert isinstance(refused, Refusal)
    assert refused.code is code
    assert refused.message


def test_the_same_records_give_the_same_books(books: Books) -> None:
    settled(books)
    again = Ledger()
    for index, record in enumerate(books.records):
        again.apply(index, record)
    assert again == books.ledger


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
    decided = books.ledger.decide_hold([request()], NOW)
    assert isinstance(decided, list)
    forged = {**decided[0].facts, **changes}
    if changes.get("id", "") is None:
        del forged["id"]
    with pytest.raises(StoreError, match="record 7 of the journal is no lawful transfer"):
        books.ledger.apply(7, fact(Kind.TRANSFER, NOW, **forged))


def test_a_settle_cannot_be_booked_twice_nor_from_another_account(books: Books) -> None:
    held(books)
    decided = books.ledger.decide_settle(HOLD, 5, NOW, "u")
    assert isinstance(decided, list)
    with pytest.raises(StoreError, match="other accounts"):
        books.ledger.apply(
            8, fact(Kind.TRANSFER, NOW, **{**decided[-1].facts, "debit": "partner/beta/budget"})
        )


def test_the_view_shows_what_the_ledger_holds(books: Books) -> None:
    settled(books)
    view = budgets_view(books.ledger, "EUR")
    assert view.budgets[0].available_micro == 999_995
    (charge,) = view.charges
    assert (charge.id, charge.state, charge.held_micro, charge.charged_micro) == (HOLD, "settled", 600_000, 5)


def test_work_is_priced_by_the_charters_rate_card_in_whole_micro() -> None:
    assert price_micro(charter(), "cpu", 7) == 21
    for device, gflop, code in (
        ("h100", 1, Code.RATE_UNKNOWN),
        ("cpu", -1, Code.AMOUNT_INVALID),
        ("cpu", 2**62, Code.AMOUNT_INVALID),
    ):
        refused = price_micro(charter(), device, gflop)
        assert isinstance(refused, Refusal)
        assert refused.code is code
    other = {"currency": "EUR", "rates": ({"device": "cpu", "micro_per_gflop": 4},)}
    assert rate_card_digest(charter().rate_card) != rate_card_digest(charter(rate_card=other).rate_card)


@dataclass
class Auditor:
    """What must be true of any ledger, kept from what was asked and answered, not from the ledger's code."""

    granted: dict[str, int]
    holds: dict[str, tuple[str, str, int]] = field(default_factory=dict)
    """id -> (payer, owner of the site, amount)"""
    ends: dict[str, list[tuple[str, int]]] = field(default_factory=dict)
    """id -> every (how, charged) it ended by"""

    def expected(self, partner: str) -> tuple[int, int, int]:
        """(held, spent, contributed)"""
        held = sum(a for i, (p, _, a) in self.holds.items() if p == partner and not self.ends[i])
        spent = sum(c for i, (p, _, _) in self.holds.items() if p == partner for _, c in self.ends[i])
        earned = sum(c for i, (_, o, _) in self.holds.items() if o == partner for _, c in self.ends[i])
        return held, spent, earned


OWNERS = {"berlin": "acme", "turin": "beta"}
amounts = st.integers(min_value=-1, max_value=700_000)


class LedgerMachine(RuleBasedStateMachine):
    ids = Bundle("ids")

    def __init__(self) -> None:
        super().__init__()
        self.books = Books()
        self.now = NOW
        self.auditor = Auditor(dict.fromkeys(("acme", "beta", "coop"), 1_000_000))

    @rule(
        target=ids,
        asked=st.lists(
            st.builds(
                request,
                st.integers(1, 4),
                st.sampled_from(list(OWNERS)),
                st.sampled_from(["acme", "beta", "coop"]),
                amount_micro=amounts,
                expires_ms=st.sampled_from([2_000, 5_000, 50_000]),
            ),
            max_size=4,
        ),
    )
    def hold(self, asked: list[HoldRequest]) -> Any:
        before = counters(self.books.ledger)
        answer = self.books.ledger.decide_hold(asked, self.now)
        if isinstance(answer, Refusal):
            assert counters(self.books.ledger) == before
            return multiple()
        made = {r.facts["id"] for r in self.books.take(answer)}
        new = {r.id: r for r in asked if r.id not in self.auditor.holds}
        assert made == set(new), "all that did not stand before, or none"
        for i, r in new.items():
            self.auditor.holds[i] = (r.payer, OWNERS[r.site], r.amount_micro)
            self.auditor.ends[i] = []
        return multiple(*made)

    @rule(hold=ids, amount=amounts)
    def settle(self, hold: str, amount: int) -> None:
        answer = self.books.ledger.decide_settle(hold, amount, self.now, "u")
        if isinstance(answer, Refusal):
            return
        if self.books.take(answer):
            self.auditor.ends[hold].append(("settled", amount))

    @rule(hold=ids)
    def release(self, hold: str) -> None:
        answer = self.books.ledger.decide_release(hold, "why", self.now)
        if not isinstance(answer, Refusal) and self.books.take(answer):
            self.auditor.ends[hold].append(("released", 0))

    @rule(ms=st.integers(0, 3_000))
    def wait_and_expire(self, ms: int) -> None:
        self.now += ms
        for record in self.books.take(self.books.ledger.decide_expire(self.now)):
            self.auditor.ends[record.facts["hold"]].append(("expired", 0))

    @rule()
    def replay(self) -> None:
        again = Ledger()
        for index, record in enumerate(self.books.records):
            again.apply(index, record)
        assert again == self.books.ledger
        self.books.ledger = again

    @invariant()
    def debits_equal_credits(self) -> None:
        accounts = self.books.ledger.accounts.values()
        assert sum(a.debits_posted for a in accounts) == sum(a.credits_posted for a in accounts)
        assert sum(a.debits_pending for a in accounts) == sum(a.credits_pending for a in accounts)
        assert all(min(vars(a).values()) >= 0 for a in accounts)

    @invariant()
    def no_budget_is_overdrawn_and_each_is_what_the_auditor_says(self) -> None:
        for partner, granted in self.auditor.granted.items():
            held, spent, earned = self.auditor.expected(partner)
            assert held + spent <= granted
            assert self.books.budget(partner) == (held, spent, granted - held - spent, earned)

    @invariant()
    def every_hold_ends_at_most_once_and_by_at_most_its_amount(self) -> None:
        for hold, ends in self.auditor.ends.items():
            assert len(ends) <= 1
            assert all(0 <= charged <= self.auditor.holds[hold][2] for _, charged in ends)

    def teardown(self) -> None:
        self.now += 10_000_000
        self.wait_and_expire(0)
        assert all(len(ends) == 1 for ends in self.auditor.ends.values()), "every hold ended"


def counters(ledger: Ledger) -> dict[str, Any]:
    return {name: replace(account) for name, account in ledger.accounts.items()}


TestLedgerMachine = LedgerMachine.TestCase
TestLedgerMachine.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
