"""Whatever is asked of the ledger, in whatever order, the books are what an independent auditor says."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from commons import charter_file
from commons.errors import Code, Refusal
from commons.records import Kind, Record
from governance.ledger import (
    HoldRequest,
    decide_claim,
    decide_expire,
    decide_failed,
    decide_grants,
    decide_hold,
    decide_release,
    decide_reverse,
    decide_rulings,
    decide_settle,
    next_expiry_ms,
)
from governance.ledger.periods import balance_lines
from tests.support.auditing import Auditor
from tests.support.books import (
    Books,
    charge,
    closings,
    conversion,
    dispute,
    request,
    ruling,
    signed,
    usage_note,
)
from tests.support.chamber import charter, signer

START_MS = 1_795_910_400_000
"""2026-11-29: the month ends soon."""
HOUR_MS, DAY_MS = 3_600_000, 86_400_000
SOME = st.integers(0, 10**6)
"""Picks one of what is there."""
AMOUNTS = st.one_of(*[st.integers(1, 200_000)] * 4, st.sampled_from([0, 1, 2, 3, 999_999, 2**63]))
SHARES = st.sampled_from([0, 1, 33, 33, 50, 50, 99, 100, 100, 101])
"""Percent of what there is."""
CARDS = (
    ({"device": "cpu", "micro_per_gflop": 3, "micro_per_device_second": 7},),
    (
        {"device": "cpu", "precision": "fp32", "micro_per_gflop": 3, "micro_per_device_second": 333},
        {"device": "cpu", "precision": "bf16", "micro_per_gflop": 2, "micro_per_device_second": 11},
    ),
    ({"device": "cpu", "micro_per_gflop": 3},),
)
Decide = Callable[[], Sequence[Record] | Refusal]


class LedgerMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now = START_MS
        self.version = 1
        self.changes: dict[str, Any] = {
            "rate_card": {"currency": "EUR", "rates": CARDS[0]},
            "grants": (
                {"name": "time-a", "member": "acme", "unit": "device_ms:cpu", "amount": 10**7},
                {"name": "time-c", "member": "coop", "unit": "device_ms:cpu", "amount": 10**7},
                {"name": "soon", "member": "acme", "amount": 90_000, "expires_ms": START_MS + 3 * DAY_MS},
                {"name": "first", "member": "coop", "amount": 90_001, "priority": 1},
            ),
        }
        self.auditor = Auditor()
        self.books = Books(charter(**self.changes), START_MS)
        self.auditor.take(self.books.records)
        self.asked: list[Decide] = []
        """Commands that were carried out: asked again, nothing happens."""
        self.failed: dict[str, HoldRequest] = {}

    def ask(self, decide: Decide, *, once: bool = True) -> list[Record] | Refusal:
        """Decide and carry out, as the coordinator does; deciding alone changes nothing."""
        before = fingerprint(self.books)
        answer = decide()
        assert fingerprint(self.books) == before
        if isinstance(answer, Refusal):
            assert answer.message
            return answer
        took = self.books.take(answer)
        self.auditor.take(took)
        if once:
            self.asked.append(decide)
            assert decide() == []
        return took

    def pick(self, which: int, state: str = "") -> str:
        """Id of one of the holds."""
        holds = [h.request.id for h in self.books.ledger.charges() if state in ("", h.state)]
        return holds[which % len(holds)]

    @property
    def has_holds(self) -> bool:
        return bool(self.auditor.claims)

    def has(self, state: str) -> bool:
        return any(claim.state == state for claim in self.auditor.claims.values())

    @rule(
        asked=st.lists(
            st.builds(
                request,
                st.integers(1, 6),
                st.sampled_from(["berlin", "turin"]),
                st.sampled_from(["acme", "beta", "coop"]),
                amount_micro=AMOUNTS,
                expires_ms=st.sampled_from([HOUR_MS, 2 * DAY_MS, 40 * DAY_MS, 90 * DAY_MS]),
            ),
            min_size=1,
            max_size=4,
        ),
        attempt=st.integers(1, 3),
        fail=st.booleans(),
    )
    def hold(self, asked: list[HoldRequest], attempt: int, fail: bool) -> None:
        card = self.books.ledger.cards_since[-1][1]
        asked = [
            replace(r, id=f"{r.id}/{attempt}", expires_ms=self.now + r.expires_ms, rate_card=card)
            for r in asked
        ]
        now = self.now
        answer = self.ask(lambda: decide_hold(self.books.ledger, asked, now))
        if isinstance(answer, Refusal):
            self.fail(asked, answer) if fail else None
            return
        new = {r.id for r in asked} - (self.auditor.seen - {r.facts["id"] for r in answer})
        assert {r.facts["id"] for r in answer} == new, "all that did not stand before, or none"

    def fail(self, asked: Sequence[HoldRequest], refusal: Refusal) -> None:
        ids = [r.id for r in asked]
        for record in self.ask(lambda: decide_failed(self.books.ledger, ids, refusal, self.now)):
            assert isinstance(record, Record)
            self.failed[record.facts["id"]] = next(r for r in asked if r.id == record.facts["id"])

    @precondition(lambda self: self.failed)
    @rule(which=SOME)
    def ask_again_for_what_failed(self, which: int) -> None:
        wanted = list(self.failed.values())[which % len(self.failed)]
        answer = decide_hold(self.books.ledger, [replace(wanted, amount_micro=0)], self.now)
        assert isinstance(answer, Refusal) and answer.code is Code.ID_ALREADY_FAILED

    @precondition(lambda self: self.has("held"))
    @rule(which=SOME, number=st.integers(1, 3), amount=AMOUNTS)
    def top_up(self, which: int, number: int, amount: int) -> None:
        hold = self.books.ledger.hold(self.pick(which, "held"))
        assert hold is not None
        name = hold.request.id
        more = replace(hold.request, id=f"{name}/top{number}", tops=name, amount_micro=amount)
        now = self.now
        answer = self.ask(lambda: decide_hold(self.books.ledger, [more], now))
        assert isinstance(answer, Refusal) or not hold.request.tops, "what tops up is not topped up"

    @precondition(lambda self: self.has("held"))
    @rule(which=SOME)
    def deliver(self, which: int) -> None:
        """The site's usage comes in: its holds wait for their settle."""
        hold = self.books.ledger.hold(self.pick(which, "held"))
        assert hold is not None
        note = usage_note(hold.request.round, hold.request.site)
        self.ask(lambda: [Record(Kind.USAGE, self.now, note)], once=False)

    @precondition(lambda self: self.has("held"))
    @rule(which=SOME, share=SHARES, accepted=st.booleans(), rounded=st.sampled_from([0, 1, 999_999]))
    def settle(self, which: int, share: int, accepted: bool, rounded: int) -> None:
        hold = self.books.ledger.hold(self.pick(which, "held"))
        assert hold is not None
        name, now = hold.request.tops or hold.request.id, self.now
        held = sum(h.request.amount_micro for h in self.books.ledger.family(hold))
        due = charge(
            held * share // 100, accepted=accepted, percent=100 if accepted else 50, rounded_pico=rounded
        )
        self.ask(lambda: decide_settle(self.books.ledger, name, due, now))

    @precondition(lambda self: self.has_holds)
    @rule(which=SOME, amount=AMOUNTS)
    def settle_whatever(self, which: int, amount: int) -> None:
        hold, now = self.books.ledger.hold(self.pick(which)), self.now
        assert hold is not None
        name = hold.request.tops or hold.request.id
        self.ask(lambda: decide_settle(self.books.ledger, name, charge(amount), now))

    @precondition(lambda self: self.has_holds)
    @rule(which=SOME)
    def release(self, which: int) -> None:
        name, now = self.pick(which), self.now
        self.ask(lambda: decide_release(self.books.ledger, name, "the round was closed", now))

    @rule(ms=st.sampled_from([0, 500, 1_000, HOUR_MS, HOUR_MS, 2 * HOUR_MS, DAY_MS, 3 * DAY_MS, 70 * DAY_MS]))
    def wait_and_tidy_up(self, ms: int) -> None:
        self.now += ms
        now = self.now
        self.ask(lambda: decide_expire(self.books.ledger, now), once=False)
        assert decide_expire(self.books.ledger, now) == []
        upcoming = next_expiry_ms(self.books.ledger)
        assert upcoming is None or upcoming > now, "what is due has been done"
        self.ask(lambda: closings(self.books.ledger, now))

    @rule(ms=st.integers(0, 3 * HOUR_MS))
    def wait(self, ms: int) -> None:
        self.now += ms

    @precondition(lambda self: self.has("settled"))
    @rule(which=SOME, share=SHARES, token=st.integers(0, 30))
    def reverse(self, which: int, share: int, token: int) -> None:
        hold, now = self.books.ledger.hold(self.pick(which, "settled")), self.now
        assert hold is not None
        own, amount = f"reversal/op-{token}", hold.correctable_micro * share // 100
        self.ask(
            lambda: decide_reverse(self.books.ledger, own, hold.settle_id, amount, "metering_error", now)
        )

    @precondition(lambda self: self.has("settled"))
    @rule(which=SOME, share=SHARES, wording=st.integers(0, 30))
    def raise_dispute(self, which: int, share: int, wording: int) -> None:
        hold = self.books.ledger.hold(self.pick(which, "settled"))
        assert hold is not None
        amount, why = hold.correctable_micro * share // 100, f"It was idle {wording} times."
        self.claim(dispute(hold.settle_id, amount, hold.request.payer, why=why))

    @precondition(lambda self: self.books.ledger.disputes)
    @rule(which=SOME, outcome=st.sampled_from(["withdrawn", "conceded"]))
    def end_dispute(self, which: int, outcome: str) -> None:
        found = list(self.books.ledger.disputes.values())[which % len(self.books.ledger.disputes)]
        hold = self.books.ledger.settled(found.settle)
        assert hold is not None
        self.claim(ruling(found.id, outcome, hold.partner if outcome == "conceded" else found.partner))

    @rule(
        amount_ms=st.integers(1, 10**6) | st.sampled_from([0, 10**8, 2**63]),
        partner=st.sampled_from(["acme", "coop"]),
        nonce=st.integers(0, 3),
    )
    def convert(self, amount_ms: int, partner: str, nonce: int) -> None:
        self.claim(conversion(amount_ms, partner, nonce=str(nonce)))

    def claim(self, words: Any) -> None:
        note, of, now = signed(words), self.books.charter, self.now
        self.ask(lambda: decide_claim(self.books.ledger, note, of, now))

    @rule(
        card=st.none() | st.sampled_from(CARDS),
        percent=st.none() | st.sampled_from([0, 33, 100]),
        period=st.none() | st.sampled_from(["month", "quarter"]),
        dispute_days=st.sampled_from([1, 30]),
        grant=st.none()
        | st.builds(
            lambda *values: dict(
                zip(("member", "unit", "amount", "priority", "begins", "ends"), values, strict=True)
            ),
            st.sampled_from(["acme", "beta", "coop"]),
            st.sampled_from(["micro", "micro", "device_ms:cpu"]),
            st.integers(1, 500_000),
            st.sampled_from([50, 100, 100, 200]),
            st.sampled_from([0, 0, DAY_MS]),
            st.sampled_from([0, 2 * HOUR_MS, 5 * DAY_MS, 60 * DAY_MS]),
        ),
        coop=st.sampled_from([True, True, False]),
        upheld=st.none() | AMOUNTS,
        raised=st.none() | st.integers(1, 300_000),
    )
    def vote(
        self,
        card: Any,
        percent: int | None,
        period: str | None,
        dispute_days: int,
        grant: dict[str, Any] | None,
        coop: bool,
        upheld: int | None,
        raised: int | None,
    ) -> None:
        """A new charter: rules, rates, a grant, rulings on the open disputes; coop leaves or comes back."""
        self.version += 1
        rules = self.changes.get("accounting", {}) | {"dispute_days": dispute_days}
        rules |= {"contribution_owner_percent": percent} if percent is not None else {}
        rules |= {"period": period} if period else {}
        names = ("acme", "beta", "coop") if coop else ("acme", "beta")
        grants = list(self.changes.get("grants", ()))
        if grant is not None:
            begins, ends = grant.pop("begins"), grant.pop("ends")
            dates = {"not_before_ms": self.now + begins if begins else 0}
            dates |= {"expires_ms": self.now + begins + ends if ends else 0}
            grants.append(grant | dates | {"name": f"g{self.version}"})
        rulings = [
            {"dispute": d.id, "upheld_micro": min(upheld, 2**62)}
            for d in self.books.ledger.disputes.values()
            if d.open and upheld is not None
        ]
        self.changes |= {
            "accounting": rules,
            "grants": tuple(g for g in grants if g["member"] in names),
            "members": tuple(
                {"name": m, "key": signer(m).vkey, "budget_micro": 1_000_000 + (raised or 0)} for m in names
            ),
            "sites": tuple(
                vars(s) | {"payer": s.payer if s.payer in names else "beta"} for s in charter().sites
            ),
            "rulings": tuple(rulings),
            "rate_card": {"currency": "EUR", "rates": card} if card else self.changes["rate_card"],
        }
        of, now = charter(version=self.version, **self.changes), self.now
        self.ask(lambda: [Record(Kind.CHARTER, now, charter_file.canonical(of))], once=False)
        self.books.charter = of
        self.ask(lambda: decide_grants(self.books.ledger, of, now), once=False)
        assert decide_grants(self.books.ledger, of, now) == []
        self.ask(lambda: decide_rulings(self.books.ledger, of, now), once=False)
        assert decide_rulings(self.books.ledger, of, now) == []
        assert upheld is None or not any(d.open for d in self.books.ledger.disputes.values())

    @precondition(lambda self: self.asked)
    @rule(which=SOME)
    def repeat(self, which: int) -> None:
        assert self.asked[which % len(self.asked)]() == [], "asked twice is done once"

    @rule()
    def replay(self) -> None:
        again = self.books.replayed()
        assert again == self.books.ledger
        self.books.ledger = again

    @invariant()
    def the_books_are_what_the_auditor_says(self) -> None:
        ledger = self.books.ledger
        assert list(balance_lines(ledger.accounts)) == self.auditor.lines()
        for budget in ledger.budgets():
            shown = {name: value for name, value in vars(budget).items() if name != "partner"}
            assert shown == self.auditor.budget(budget.partner), budget.partner
        states = {name: (c.state, c.charged) for name, c in self.auditor.claims.items()}
        assert {h.request.id: (h.state, h.charged_micro) for h in ledger.charges()} == states
        assert set(ledger.open) == {name for name, (state, _) in states.items() if state == "held"}
        boundaries = {name: (size, list(lines)) for name, (_, size, lines) in ledger.boundaries.items()}
        assert boundaries == self.auditor.snapshots

    def teardown(self) -> None:
        """In the end every hold ends: what was delivered is settled, what was not expires."""
        for hold in list(self.books.ledger.open.values()):
            if hold.claimed and not hold.request.tops:
                self.ask(
                    lambda name=hold.request.id: decide_settle(self.books.ledger, name, charge(0), self.now)
                )
        self.now += 100 * DAY_MS
        self.ask(lambda: decide_expire(self.books.ledger, self.now), once=False)
        assert not self.books.ledger.open
        again = self.books.replayed()
        assert again == self.books.ledger


def fingerprint(books: Books) -> str:
    """All that a decision could have changed."""
    ledger = books.ledger
    holds = [(h.request.id, h.state, h.claimed, h.reversed_micro) for h in ledger.open.values()]
    return json.dumps(
        [balance_lines(ledger.accounts), holds, len(ledger.booked), ledger.size, sorted(ledger.failed)]
    )


TestLedgerMachine = LedgerMachine.TestCase
TestLedgerMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
