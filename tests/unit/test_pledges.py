"""Pledges: money that members promise for a proposal is held at once, paid with the charter it makes, or given back."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from commons.chain import VerifiedCharter, Wanted, verify_chain
from commons.course import ENDED
from commons.errors import Code, Refusal
from commons.notes import NoteError, parse
from commons.opening import Opening
from commons.pledging import PLEDGES_MAX, Pledge
from commons.records import Kind, Record, fact
from commons.statement_proof import verify
from governance.fsck import judge
from governance.ledger import Ledger, decide_expire, decide_grants
from governance.ledger.periods import balance_lines
from governance.pledging import decide_pledge
from governance.proof import chain_bundle
from governance.statements.focus import focus_csv
from governance.statements.hledger import hledger_journal
from governance.statements.note_page import statement_page
from governance.statements.reading import read_statement
from governance.tracking.items import File, Log
from governance.tracking.votes import Votes
from tests.support.chamber import LOG, MEMBERS, START_MS, Chamber, ballot, charter, proposal, sign, signer
from tests.support.months import Months

DAY_MS = 86_400_000
ALL = 1_000_000
"""What each member has."""


class Bank(Chamber):
    """A chamber with books."""

    def __init__(self, **changes: Any) -> None:
        self.ledger = Ledger()
        super().__init__(charter(**changes))
        self.take(decide_grants(self.ledger, self.charter, self.now_ms))

    def take(self, decided: Sequence[Record] | Refusal) -> list[int]:
        indices = super().take(decided)
        assert not isinstance(decided, Refusal)
        for index, record in zip(indices, decided, strict=True):
            self.ledger.apply(index, record)
        return indices

    def try_pledge(self, opening: Opening, **changes: Any) -> list[Record] | Refusal:
        """By default acme pledges 300,000 micro for beta, for a day."""
        fields = {
            "consortium": "demo", "proposal": opening.proposal, "member": "acme", "to": "beta",
            "amount_micro": 300_000, "expires_ms": self.now_ms + DAY_MS, "nonce": "0" * 16,
        }  # fmt: skip
        by = changes.pop("by", None)
        words = Pledge(**{**fields, **changes})
        note = signer(by or words.member).sign(words.text)
        return decide_pledge(self.ledger, self.proposals, parse(note), self.charter, self.now_ms)

    def pledge(self, opening: Opening, **changes: Any) -> list[int]:
        return self.take(self.try_pledge(opening, **changes))

    def available(self) -> dict[str, int]:
        return {name: self.ledger.available_micro(name, self.now_ms) for name in MEMBERS}

    def proven(self) -> VerifiedCharter | Refusal:
        bundle = chain_bundle(self, Wanted())  # type: ignore[arg-type]
        assert not isinstance(bundle, Refusal)
        checkpoint, entries, consistency = bundle
        return verify_chain(entries, checkpoint, consistency, trust=self.trust)

    def kinds(self, kind: str) -> list[str]:
        return [
            r.facts["id"] for r in self.journal.all if r.kind is Kind.TRANSFER and r.facts["type"] == kind
        ]


@pytest.fixture
def bank() -> Bank:
    return Bank()


def refused(answer: list[Record] | Refusal, code: Code, why: str) -> None:
    assert isinstance(answer, Refusal) and answer.code is code and why in answer.message, answer


def test_mlflow_shows_what_was_pledged_on_the_proposals_run(bank: Bank) -> None:
    opening, votes = bank.propose(needs_micro=300_000), Votes()
    bank.pledge(opening)
    bank.pledge(opening, amount_micro=50_000, nonce="1" * 16)
    told = [item for index, record in enumerate(bank.journal.all) for item in votes.apply(index, record)]
    points = [p for item in told if isinstance(item, Log) for p in item.points if p.key == "pledges/micro"]
    assert [(p.value, p.step) for p in points] == [(300_000, 1), (350_000, 2)]
    files = {
        item.path: item.text
        for item in told
        if isinstance(item, File) and item.path.startswith("pledges/acme-")
    }
    assert sorted(files.values()) == sorted(
        record.body.decode() for record in bank.journal.all if record.kind is Kind.PLEDGE
    )


def test_a_pledge_is_held_at_once_and_paid_in_the_transaction_that_makes_the_charter(bank: Bank) -> None:
    opening = bank.propose(needs_micro=300_000)
    bank.pledge(opening)
    assert bank.available() == {"acme": 700_000, "beta": ALL, "coop": ALL}
    bank.vote(opening, acme="for", beta="for", coop="for")
    bank.close()
    made = [bank.journal.record(i) for i in bank.execute()]
    assert [r.kind for r in made] == [Kind.EXECUTION, Kind.CHARTER, Kind.TRANSFER]
    assert made[-1].facts["type"] == "pledge-paid"
    assert bank.available() == {"acme": 700_000, "beta": 1_300_000, "coop": ALL}
    (view,) = bank.proposals.views(bank.now_ms)
    assert (view.pledged_micro, [p.state for p in view.pledges]) == (300_000, ["paid"])
    assert judge(bank.journal.all) == ()
    verified = bank.proven()
    assert isinstance(verified, VerifiedCharter) and verified.version == 2


def test_defeated_it_is_given_back(bank: Bank) -> None:
    opening = bank.propose()
    bank.pledge(opening)
    bank.vote(opening, acme="for", beta="against", coop="against")
    bank.close()
    assert bank.available()["acme"] == ALL
    assert bank.close() == []
    assert bank.journal.all[-1].facts["why"] == "its proposal is defeated"
    assert judge(bank.journal.all) == ()


def test_its_own_time_over_it_is_given_back_and_no_longer_counts(bank: Bank) -> None:
    opening = bank.propose(needs_micro=1)
    bank.pledge(opening, expires_ms=bank.now_ms + 1000)
    assert bank.proposals.next_moment_ms(bank.now_ms) == bank.now_ms + 1000
    bank.now_ms += 1000
    assert bank.proposals.views(bank.now_ms)[0].pledged_micro == 0
    bank.close()
    assert bank.available()["acme"] == ALL
    bank.vote(opening, acme="for", beta="for", coop="for")
    bank.close()
    bank.execute()
    (failed,) = [r.facts for r in bank.journal.all if r.kind is Kind.OUTCOME and r.facts["state"] == "failed"]
    assert failed["why"] == "it needs pledges of 1 micro, and 0 stand"
    assert bank.charter.version == 1 and bank.state(opening.proposal) == "failed"
    assert judge(bank.journal.all) == ()


def test_without_the_pledges_it_needs_it_fails_and_those_it_had_are_given_back(bank: Bank) -> None:
    opening = bank.propose(needs_micro=700_000)
    bank.pledge(opening)
    bank.pledge(opening, member="coop", amount_micro=399_999)
    bank.vote(opening, acme="for", beta="for", coop="for")
    bank.close()
    bank.execute()
    assert bank.state(opening.proposal) == "failed"
    bank.close()
    assert bank.available() == dict.fromkeys(MEMBERS, ALL)
    assert judge(bank.journal.all) == ()


@pytest.mark.parametrize(
    ("changes", "code", "why"),
    [
        ({"amount_micro": ALL + 1}, Code.EXCEEDS_BUDGET, "pledges 1000001 micro and has 1000000"),
        ({"amount_micro": 0}, Code.AMOUNT_INVALID, "0 is no amount"),
        ({"amount_micro": 2**63}, Code.AMOUNT_INVALID, "no amount"),
        ({"to": "acme"}, Code.ACCOUNT_NOT_FOUND, "goes to another member"),
        ({"to": "zeta"}, Code.ACCOUNT_NOT_FOUND, "not to 'zeta'"),
        ({"member": "zeta", "by": "zeta"}, Code.NOT_AUTHORISED, "no member"),
        ({"consortium": "other"}, Code.NOT_AUTHORISED, "no member"),
        ({"by": "beta"}, Code.SIGNATURE_INVALID, "not signed by acme"),
        ({"proposal": "sha256:" + "0" * 64}, Code.PROPOSAL_UNKNOWN, "no proposal"),
        ({"expires_ms": START_MS}, Code.HOLD_EXPIRED, "over before it is made"),
    ],
)
def test_a_pledge_that_may_not_stand_is_refused(
    bank: Bank, changes: dict[str, Any], code: Code, why: str
) -> None:
    refused(bank.try_pledge(bank.propose(), **changes), code, why)


def test_another_note_is_no_pledge(bank: Bank) -> None:
    opening = bank.propose()
    note = parse(sign(ballot(opening, "acme", "for")))
    answer = decide_pledge(bank.ledger, bank.proposals, note, bank.charter, bank.now_ms)
    refused(answer, Code.NOTE_MALFORMED, "pledge")


def test_a_pledge_twice_is_one_and_of_one_member_only_so_many_are_taken(bank: Bank) -> None:
    opening = bank.propose()
    bank.pledge(opening)
    assert bank.try_pledge(opening) == []
    for n in range(1, PLEDGES_MAX):
        bank.pledge(opening, amount_micro=1, nonce=f"{n:016x}")
    refused(
        bank.try_pledge(opening, amount_micro=1, nonce="f" * 16), Code.REQUEST_INVALID, "no more are taken"
    )
    assert bank.available()["acme"] == ALL - 300_000 - (PLEDGES_MAX - 1)


def test_what_has_ended_or_changes_no_charter_takes_no_pledges(bank: Bank) -> None:
    roadmap = bank.propose(feature="roadmap", parameters={"candidates": ["fp8", "lean"]})
    refused(bank.try_pledge(roadmap), Code.REQUEST_INVALID, "changes no charter")
    wish = proposal(
        bank.charter, feature="roadmap", parameters={"candidates": ["fp8", "int4"]}, needs_micro=5
    )
    refused(bank.try_submit(sign(wish)), Code.REQUEST_INVALID, "changes no charter")
    opening = bank.pass_into_law()
    refused(bank.try_pledge(opening), Code.PROPOSAL_CLOSED, "is executed")


def test_what_a_proposal_needs_stands_in_what_is_signed_and_voted_on() -> None:
    wish = proposal(charter(), needs_micro=5)
    assert wish.id != proposal(charter()).id
    assert "hansa-proposal/v2" in wish.compose() and "needs-micro 5" in wish.compose()
    for text in ("needs-micro 0", "needs-micro 05", f"needs-micro {2**63}"):
        with pytest.raises(NoteError):
            type(wish).from_note(parse(signer("acme").sign(wish.compose().replace("needs-micro 5", text))))


def test_money_with_an_end_keeps_it_in_other_hands() -> None:
    spring = {
        "name": "spring",
        "member": "acme",
        "amount": 50_000,
        "expires_ms": START_MS + 5 * DAY_MS,
        "priority": 1,
    }
    bank = Bank(grants=(spring,))
    opening = bank.propose()
    bank.pledge(opening, amount_micro=60_000)
    bank.vote(opening, acme="for", beta="for", coop="for")
    bank.close()
    bank.execute()
    lots = [(lot.amount, lot.expires_ms, lot.priority) for lot in bank.ledger.purses["beta"].lots]
    assert lots == [(50_000, START_MS + 5 * DAY_MS, 1), (ALL, 0, 100), (10_000, 0, 100)]
    bank.now_ms += 5 * DAY_MS
    bank.take(decide_expire(bank.ledger, bank.now_ms))
    assert bank.available()["beta"] == ALL + 10_000
    assert judge(bank.journal.all) == ()


def test_a_pledge_of_or_for_a_member_that_the_vote_itself_expels_is_given_back() -> None:
    bank = Bank(sites=(charter().sites[0].model_dump(),))
    opening = bank.propose(feature="member-expel", parameters={"name": "beta", "reason": "It left."})
    bank.pledge(opening)
    bank.pledge(opening, member="beta", to="coop", amount_micro=7)
    bank.pledge(opening, to="coop", amount_micro=5, nonce="1" * 16)
    bank.vote(opening, acme="for", coop="for")
    bank.close()
    bank.execute()
    assert bank.charter.member("beta") is None
    assert len(bank.kinds("pledge-paid")) == 1 and len(bank.kinds("pledge-returned")) == 2
    assert bank.available() == {"acme": ALL - 5, "beta": ALL, "coop": ALL + 5}
    assert judge(bank.journal.all) == ()


def test_a_coordinator_that_carries_out_what_lacks_pledges_is_refused_by_sites_and_auditor(
    bank: Bank,
) -> None:
    opening = bank.propose(needs_micro=300_001)
    bank.pledge(opening)
    bank.vote(opening, acme="for", beta="for", coop="for")
    bank.close()
    for item in bank.proposals.items.values():
        item.needs_micro = 0
    bank.execute()
    verified = bank.proven()
    assert isinstance(verified, Refusal)
    assert "not to be carried out: it needs pledges of 300001 micro, and 300000 stand" in verified.message
    assert any("needs pledges of 300001" in str(finding) for finding in judge(bank.journal.all))


def test_a_forged_pledge_or_one_shown_twice_does_not_make_up_what_lacks(bank: Bank) -> None:
    opening = bank.propose(needs_micro=300_001)
    (index, _) = bank.pledge(opening)
    note = bank.journal.record(index)
    bank.vote(opening, acme="for", beta="for", coop="for")
    bank.close()
    twice = Record(Kind.PLEDGE, bank.now_ms, note.body)
    other = Pledge.from_note(parse(note.body))
    forged = Record(Kind.PLEDGE, bank.now_ms, signer("beta").sign(replace(other, nonce="9" * 16).text))
    for lie, why in ((twice, "and 300000 stand"), (forged, "not signed by acme")):
        liar = Bank()
        liar.take([Record.parse(r.leaf) for r in bank.journal.all[liar.journal.size :]])
        liar.take([lie])
        for item in liar.proposals.items.values():
            item.needs_micro = 0
        liar.take(
            [
                r
                for r in liar.proposals.decide_execute(liar.charter, 2, liar.now_ms)
                if r.kind is not Kind.TRANSFER
            ]
        )
        verified = liar.proven()
        assert isinstance(verified, Refusal) and why in verified.message
        assert judge(liar.journal.all) != ()


@pytest.mark.parametrize(
    ("at", "change", "why"),
    [
        ("pledge", {"amount_micro": 299_999}, "acme signed"),
        ("pledge", {"id": "pledge/" + "0" * 32}, "which nobody has promised"),
        ("pledge-paid", {"amount_micro": 1}, "acme signed"),
        ("pledge-paid", {"to": "coop"}, "acme signed"),
        ("pledge-paid", {"hold": "pledge/none"}, "which is not open"),
        ("pledge-paid", {"type": "pledge-returned"}, "which stands: its proposal is executed"),
    ],
)
def test_the_auditor_finds_money_that_does_not_follow_from_a_pledge(
    bank: Bank, at: str, change: dict[str, Any], why: str
) -> None:
    opening = bank.propose()
    bank.pledge(opening)
    bank.vote(opening, acme="for", beta="for", coop="for")
    bank.close()
    bank.execute()
    records = [
        fact(Kind.TRANSFER, r.at_ms, **{**r.facts, **change})
        if r.kind is Kind.TRANSFER and r.facts["type"] == at
        else r
        for r in bank.journal.all
    ]
    assert any(why in str(finding) for finding in judge(records)), judge(records)


def test_the_auditor_finds_a_pledge_without_its_hold_paid_too_early_or_given_back_too_early(
    bank: Bank,
) -> None:
    opening = bank.propose()
    bank.pledge(opening)
    held = bank.journal.all[:]
    assert any("nothing was held" in str(f) for f in judge(held[:-1]))
    lie = {**held[-1].facts, "hold": held[-1].facts["id"]}
    for kind, why in (("pledge-paid", "does not become law"), ("pledge-returned", "its proposal is active")):
        name = lie["hold"].replace("pledge", kind, 1)
        found = judge([*held, fact(Kind.TRANSFER, bank.now_ms, **{**lie, "type": kind, "id": name})])
        assert any(why in str(f) for f in found), found
    bank.vote(opening, acme="for", beta="for", coop="for")
    bank.close()
    bank.execute()
    assert any("is open though its proposal is law" in str(f) for f in judge(bank.journal.all[:-1]))


def test_statements_show_a_pledge_on_both_sides_held_in_one_month_and_paid_in_the_next(
    tmp_path: Path,
) -> None:
    books = Months(tmp_path, day="2026-10-30")
    house, year_s = books.consortium, 31_536_000
    wish = proposal(house.charter, effective_round=1)
    books.take(lambda now: house.proposals.decide_submit(sign(wish), house.charter, now))
    words = Pledge(
        consortium="demo", proposal=wish.id, member="acme", to="beta", amount_micro=300_000,
        expires_ms=books.ms + 1000 * year_s, nonce="0" * 16,
    )  # fmt: skip
    note = parse(signer("acme").sign(words.text))
    books.take(lambda now: decide_pledge(house.ledger, house.proposals, note, house.charter, now))
    opening = house.proposals.items[wish.id].opening
    for member in MEMBERS:
        cast = sign(ballot(opening, member, "for"))
        books.take(lambda now, cast=cast: house.proposals.decide_submit(cast, house.charter, now))
    books.take(house.proposals.decide_close)
    books.at("2026-11-02").close()
    books.take(lambda now: house.proposals.decide_execute(house.charter, 1, now))
    october, november, theirs = (
        books.bundle(*of) for of in (("acme", "2026-10"), ("acme", "2026-11"), ("beta", "2026-11"))
    )
    for bundle in (october, november, theirs):
        assert [check.problem for check in verify(bundle, LOG.verifier) if check.problem] == []
    assert (october.note.held_micro, october.note.charged_micro) == (300_000, 0)
    assert (november.note.held_micro, november.note.charged_micro) == (0, 300_000)
    assert (theirs.note.opening_micro, theirs.note.granted_micro) == (ALL, 300_000)
    paid, got = (read_statement(b.note, b.lines, b.earlier) for b in (november, theirs))
    assert [p.about for p in paid.pledged] == ["pledge for beta"] and paid.grants == ()
    assert [g.about for g in got.grants] == ["pledge of acme"] and got.pledged == ()
    assert "expenses:pledges" in hledger_journal(paid) and "pledge of acme" in hledger_journal(got)
    (row,) = csv.DictReader(io.StringIO(focus_csv(paid)))
    assert (row["ChargeCategory"], row["BilledCost"], row["ChargeFrequency"]) == (
        "Purchase",
        "0.3",
        "One-Time",
    )
    assert "pledge for beta" in statement_page(paid)


class PledgeMachine(RuleBasedStateMachine):
    """Whatever is pledged, voted, vetoed and waited for: no money is lost, none is held for what has ended."""

    @initialize()
    def found(self) -> None:
        late = {"type": "feature.enable", "delay_s": 60, "window_s": 120, "queue_s": 60, "grace_s": 120}
        self.bank = Bank(voting={"window_s": 60, "rules": (late,), "officers": ("coop",)})
        self.openings: list[Opening] = []
        self.promised = 0

    @precondition(lambda self: len(self.openings) < 3)
    @rule(needs=st.sampled_from([0, 1, 400_000]))
    def propose(self, needs: int) -> None:
        steps = {"steps": 20 + len(self.openings)}
        nonce = f"{len(self.openings):016x}"
        self.openings.append(
            self.bank.propose(parameters=steps, effective_round=1, nonce=nonce, needs_micro=needs)
            if self.bank.charter.version == 1
            else self.bank.propose(parameters=steps, nonce=nonce, effective_round=1, needs_micro=needs)
        )

    @precondition(lambda self: self.openings)
    @rule(
        which=st.integers(0, 2),
        who=st.permutations(MEMBERS),
        amount=st.sampled_from([1, 300_000, 600_000, 1_000_001]),
        lasts_s=st.sampled_from([30, 150, 10_000]),
    )
    def pledge(self, which: int, who: Sequence[str], amount: int, lasts_s: int) -> None:
        bank, opening = self.bank, self.openings[which % len(self.openings)]
        self.promised += 1
        answer = bank.try_pledge(
            opening, member=who[0], to=who[1], amount_micro=amount, expires_ms=bank.now_ms + 1000 * lasts_s,
            nonce=f"{self.promised:016x}",
        )  # fmt: skip
        if isinstance(answer, Refusal):
            gone = bank.state(opening.proposal) in ENDED
            poor = amount > bank.available()[who[0]]
            many = (
                sum(p.member == who[0] for _, _, p in bank.proposals.items[opening.proposal].pledges)
                >= PLEDGES_MAX
            )
            assert gone or poor or many, answer
        else:
            bank.take(answer)

    @precondition(lambda self: self.openings)
    @rule(which=st.integers(0, 2), choice=st.sampled_from(["for", "for", "for", "against"]))
    def vote(self, which: int, choice: Any) -> None:
        opening = self.openings[which % len(self.openings)]
        for member in MEMBERS:
            note = sign(ballot(opening, member, choice, nonce=f"{self.bank.journal.size:016x}"))
            answer = self.bank.try_submit(note)
            if not isinstance(answer, Refusal):
                self.bank.take(answer)

    @rule(seconds=st.sampled_from([1, 60, 120]))
    def wait(self, seconds: int) -> None:
        self.bank.now_ms += 1000 * seconds
        self.bank.close()

    @rule()
    def execute(self) -> None:
        self.bank.execute(1)
        self.bank.close()

    @invariant()
    def nothing_is_lost_and_nothing_is_held_for_what_has_ended(self) -> None:
        bank = self.bank
        budgets = [bank.ledger.accounts[f"partner/{m}/budget"] for m in MEMBERS]
        assert sum(a.credits_posted - a.debits_posted for a in budgets) == len(MEMBERS) * ALL
        held = sum(p.amount_micro for p in bank.ledger.pledges.values())
        assert sum(a.debits_pending for a in budgets) == sum(a.credits_pending for a in budgets) == held
        for item in bank.proposals.items.values():
            if item.state(bank.now_ms) == "executed":
                assert not item.open_pledges()
                paid = sum(p.amount_micro for _, _, p in item.pledges if item.settled[p.tail] == "paid")
                assert paid >= item.needs_micro

    def teardown(self) -> None:
        if not hasattr(self, "bank"):
            return
        assert judge(self.bank.journal.all) == ()
        again = Ledger()
        for index, record in enumerate(self.bank.journal.all):
            again.apply(index, record)
        assert balance_lines(again.accounts) == balance_lines(self.bank.ledger.accounts)


TestPledges = PledgeMachine.TestCase
TestPledges.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
