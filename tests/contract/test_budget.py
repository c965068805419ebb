"""Money over real gRPC: votes on it, disputes, conversions, reversals; by the wire and by the command line."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from commons import charter_file
from commons.ballots import Ballot, Proposal
from commons.claims import ConvertNote, DisputeNote, RulingNote
from commons.errors import Code, Unreachable
from commons.identity import Seat, save_signer
from commons.names import Digest, ProposalId
from commons.views import BudgetView, DisputesView, DisputeView, ProposalView
from commons.wire.v1 import consortium_pb2 as wire
from governance.reversing import token_for
from hansa.chamber import Chamber
from hansa.cli import app
from hansa.joining import join_as_member
from tests.contract.test_services import Stage, eventually, refused
from tests.support.consortium import NAME, SITES, Office, budgets, charter, over, signer

CARD = {"currency": "EUR", "rates": ({"device": "cpu", "micro_per_gflop": 5000},)}
"""The test model's round is one gflop: a round costs a site 5,000 micro."""
ROUND = 5000


class Bank(Stage):
    """A consortium whose sites work when they are told to, and whose members have seats for the command line."""

    def gather(self) -> None:
        for name in SITES:
            self.site(name, silent=True)
        eventually(lambda: self.coordinator.desk.live.present() == set(SITES))

    def begun(self, number: int) -> None:
        eventually(lambda: len(self.office.run().history) >= number)

    def play(self, number: int) -> None:
        """Every site of the round trains and hands in; the round is closed then."""
        self.begun(number)
        left_out = self.office.run().history[number - 1].left_out
        for site in self.sites:
            if site.name not in left_out:
                eventually(lambda site=site: bool(site.orders) and site.orders[-1].round == number)  # type: ignore[misc]
                site.upload(self.coordinator.desk.consortium.journal.epoch, site.orders[-1])
        eventually(lambda: self.office.run().history[number - 1].closed_ms is not None)

    def propose(
        self, feature: str, nonce: str = "00", effective_round: int = 1, **parameters: Any
    ) -> ProposalView:
        in_force = self.coordinator.desk.consortium.charter
        wish = Proposal(
            NAME, "alder", feature, feature, parameters, charter_file.digest(in_force), effective_round,
            nonce * 16,
        )  # fmt: skip
        self.submit(signer("alder").sign(wish.compose()))
        reply = self.office.chamber.Read(wire.ReadRequest(view="proposal", key=wish.id))
        return ProposalView.model_validate_json(reply.json)

    def vote(self, view: ProposalView) -> None:
        for voter in SITES:
            ballot = Ballot(
                NAME, ProposalId(view.id), Digest(view.rules), Digest(view.electorate_digest), voter, "for", "11" * 16,
                "2026-11-23T18:40:12Z",
            )  # fmt: skip
            self.submit(signer(voter).sign(ballot.compose()))

    def enact(self, feature: str, **parameters: Any) -> None:
        """Between two runs: proposed, voted for by all and in force."""
        version = self.coordinator.desk.consortium.charter.version
        self.vote(self.propose(feature, **parameters))
        eventually(lambda: self.coordinator.desk.consortium.charter.version == version + 1)

    def submit(self, note: bytes) -> int:
        return self.office.chamber.Submit(wire.NoteRequest(note=note), timeout=10).index

    def reverse(self, token: str, transfer: str, amount_micro: int | None, reason: str) -> int:
        request = wire.ReverseChargeRequest(
            token=token, settle=transfer, amount_micro=amount_micro, reason=reason
        )
        return self.office.operator.ReverseCharge(request, timeout=10).index

    def budget(self, partner: str) -> BudgetView:
        return next(b for b in self.budgets().budgets if b.partner == partner)

    def disputes(self) -> tuple[DisputeView, ...]:
        reply = self.office.chamber.Read(wire.ReadRequest(view="disputes"))
        return DisputesView.model_validate_json(reply.json).disputes

    def seat(self, name: str) -> str:
        """Of the command line."""
        folder = self.folder / f"seat-{name}"
        if not folder.exists():
            save_signer(self.folder / f"{name}.key", signer(name))
            invite = self.home / "invites" / f"member-{name}.invite"
            join_as_member(invite, self.folder / f"{name}.key", folder)
        return str(folder)


@pytest.fixture
def bank_of(tmp_path: Path) -> Iterator[Callable[..., Bank]]:
    banks: list[Bank] = []

    def make(**changes: Any) -> Bank:
        banks.append(Bank(tmp_path, charter(**{"rate_card": CARD, **changes})))
        return banks[-1]

    yield make
    for bank in banks:
        bank.close()


@pytest.fixture
def paid(bank_of: Any) -> Bank:
    """One run of one round, paid and over."""
    bank: Bank = bank_of(learning__rounds=1)
    bank.gather()
    bank.start_run()
    bank.play(1)
    for site in bank.sites:
        eventually(lambda site=site: site.orders[-1].work == "evaluate")  # type: ignore[misc]
        site.evaluate(site.orders[-1])
    bank.office.wait(over)
    return bank


def dispute(partner: str = "alder", amount_micro: int = ROUND, **changes: Any) -> DisputeNote:
    fields: dict[str, Any] = {
        "consortium": NAME, "partner": partner, "transfer": f"settle/run-1/1/{partner}",
        "amount_micro": amount_micro, "reason": "hardware_fault", "why": "The device had failed.",
    }  # fmt: skip
    return DisputeNote(**{**fields, **changes})


def signed(note: DisputeNote | RulingNote | ConvertNote, by: str = "") -> bytes:
    return signer(by or note.partner).sign(note.text)


def invoke(*arguments: str) -> str:
    done = CliRunner().invoke(app, list(arguments))
    assert done.exit_code == 0, done.output
    return done.output


def test_a_payer_without_budget_sits_out_and_is_back_in_the_round_after_a_voted_grant(bank_of: Any) -> None:
    bank = bank_of(learning__rounds=3, members=budgets(cedar=ROUND))
    bank.gather()
    bank.start_run()
    bank.play(1)
    bank.begun(2)
    assert set(bank.office.run().history[1].left_out) == {"cedar"}
    bank.vote(bank.propose("grant", name="spring", member="cedar", amount=ROUND))
    assert bank.budget("cedar").available_micro == 0, "a vote takes effect between two rounds"
    bank.play(2)
    bank.play(3)
    assert [set(r.contributors) for r in bank.office.run().history] == [
        set(SITES),
        {"alder", "birch"},
        set(SITES),
    ]
    assert (bank.budget("cedar").spent_micro, bank.budget("cedar").available_micro) == (2 * ROUND, 0)


def test_two_grants_voted_on_the_same_charter_both_become_law(bank_of: Any) -> None:
    bank = bank_of()
    one = bank.propose("grant", "aa", name="spring", member="cedar", amount=1)
    two = bank.propose("grant", "bb", name="summer", member="cedar", amount=2)
    bank.vote(one), bank.vote(two)
    eventually(lambda: bank.budget("cedar").granted_micro == 1_000_003)
    assert bank.coordinator.desk.consortium.charter.version == 3


def test_a_grant_is_booked_though_the_coordinator_died_right_after_it_became_law(bank_of: Any) -> None:
    bank = bank_of()
    bank.vote(bank.propose("grant", effective_round=2, name="spring", member="cedar", amount=5))
    assert bank.coordinator.desk.consortium.charter.version == 1, (
        "no run goes on: the next round is a first one"
    )
    consortium = bank.coordinator.desk.consortium
    consortium.commit(lambda ms: consortium.proposals.decide_execute(consortium.charter, 2, ms))
    eventually(lambda: bank.budget("cedar").granted_micro == 1_000_005)


def test_a_rate_that_is_voted_on_during_a_round_prices_the_next_one(bank_of: Any) -> None:
    bank = bank_of(learning__rounds=2)
    bank.gather()
    bank.start_run()
    bank.begun(1)
    bank.vote(bank.propose("rates", device="cpu", micro_per_gflop=7))
    bank.play(1)
    bank.play(2)
    assert [c.charged_micro for c in bank.budgets().charges if c.site == "alder"] == [ROUND, 7]
    cards = [card.rates[0].micro_per_gflop for card in bank.budgets().cards]
    assert cards == [5000, 7]


def test_a_dispute_handed_in_twice_is_one_and_its_site_can_concede_it(paid: Bank) -> None:
    note = signed(dispute())
    index = paid.submit(note)
    assert paid.submit(note) == index
    assert paid.budget("alder").disputed_micro == ROUND
    (found,) = paid.disputes()
    assert (found.id, found.index, found.open, found.owner) == (dispute().digest, index, True, "alder")
    ruling = signed(RulingNote(consortium=NAME, partner="alder", dispute=found.id, outcome="conceded"))
    ended = paid.submit(ruling)
    paid.restart()
    assert (paid.submit(ruling), paid.submit(note)) == (ended, index), (
        "the first receipts, by a new process too"
    )
    (found,) = paid.disputes()
    assert (found.open, found.ended_by, found.upheld_micro) == (False, "conceded", ROUND)
    assert (paid.budget("alder").refunded_micro, paid.budget("alder").contributed_micro) == (ROUND, 0)


def test_a_dispute_that_the_parties_leave_open_is_decided_by_vote_between_two_runs(paid: Bank) -> None:
    paid.submit(signed(dispute()))
    paid.enact("ruling", dispute=dispute().digest, upheld_micro=2000)
    eventually(lambda: not paid.disputes()[0].open)
    (found,) = paid.disputes()
    assert (found.ended_by, found.upheld_micro) == ("voted", 2000)
    assert (paid.budget("alder").refunded_micro, paid.budget("alder").disputed_micro) == (2000, 0)
    late = RulingNote(consortium=NAME, partner="alder", dispute=found.id, outcome="withdrawn")
    assert refused(lambda: paid.submit(signed(late))) == Code.EXISTS_WITH_DIFFERENT_FIELDS


@pytest.mark.parametrize(
    ("note", "code"),
    [
        (signed(dispute(amount_micro=ROUND + 1)), Code.REVERSAL_EXCEEDS_ORIGINAL),
        (signed(dispute(amount_micro=0)), Code.AMOUNT_INVALID),
        (signed(dispute(transfer="settle/run-1/9/alder")), Code.TRANSFER_NOT_FOUND),
        (signed(dispute(transfer="settle/run-1/1/birch")), Code.NOT_AUTHORISED),
        (signed(dispute(), by="birch"), Code.SIGNATURE_INVALID),
        (signed(dispute(partner="elm")), Code.NOT_AUTHORISED),
        (signed(dispute(consortium="other")), Code.REQUEST_INVALID),
        (signed(dispute()).replace(b"\n", b"\r\n"), Code.NOTE_MALFORMED),
        (signer("alder").sign("hansa-dispute/v1\npartner: alder\n"), Code.NOTE_MALFORMED),
        (signer("alder").sign("hansa-wish/v1\n"), Code.NOTE_MALFORMED),
        (signed(RulingNote(consortium=NAME, partner="alder", dispute="sha256:00", outcome="conceded")),
         Code.TRANSFER_NOT_FOUND),
        (signed(ConvertNote(consortium=NAME, partner="alder", device="cpu", amount_ms=1, nonce="1")),
         Code.ACCOUNT_NOT_FOUND),
    ],
    ids=lambda value: str(value) if isinstance(value, Code) else "",
)  # fmt: skip
def test_a_note_about_money_that_may_not_stand_is_refused_without_a_trace(
    paid: Bank, note: bytes, code: Code
) -> None:
    size = paid.coordinator.desk.consortium.size
    assert refused(lambda: paid.submit(note)) == code
    assert paid.coordinator.desk.consortium.size == size


def test_a_reversal_asked_for_again_is_the_first_one(paid: Bank) -> None:
    transfer = "settle/run-1/1/alder"
    index = paid.reverse("one", transfer, 1000, "metering_error")
    assert paid.reverse("one", transfer, 1000, "metering_error") == index
    rest = paid.reverse("two", transfer, None, "rate_error")
    paid.restart()
    assert paid.reverse("two", transfer, None, "rate_error") == rest
    assert paid.reverse("one", transfer, None, "metering_error") == index, "all of it was 1,000 then"
    assert (paid.budget("alder").refunded_micro, paid.budget("alder").contributed_micro) == (ROUND, 0)
    facts = next(iter(list(paid.coordinator.desk.consortium.journal.records())[index:])).facts
    assert (facts["id"], facts["reverses"], facts["reason"]) == ("reversal/one", transfer, "metering_error")


@pytest.mark.parametrize(
    ("token", "transfer", "amount_micro", "reason", "code"),
    [
        ("one", "settle/run-1/1/alder", 999, "metering_error", Code.EXISTS_WITH_DIFFERENT_FIELDS),
        ("one", "settle/run-1/1/birch", None, "metering_error", Code.EXISTS_WITH_DIFFERENT_FIELDS),
        ("two", "settle/run-1/1/alder", ROUND, "metering_error", Code.REVERSAL_EXCEEDS_ORIGINAL),
        ("two", "settle/run-1/1/alder", 0, "metering_error", Code.AMOUNT_INVALID),
        ("two", "settle/run-1/1/alder", 2**63, "metering_error", Code.AMOUNT_INVALID),
        ("two", "settle/run-1/9/alder", None, "metering_error", Code.TRANSFER_NOT_FOUND),
        ("two", "hold/run-1/1/alder", 1, "metering_error", Code.TRANSFER_NOT_FOUND),
        ("two", "settle/run-1/1/alder", 1, "dispute_upheld", Code.REQUEST_INVALID),
        ("two", "settle/run-1/1/alder", 1, "kindness", Code.REQUEST_INVALID),
        ("", "settle/run-1/1/alder", 1, "metering_error", Code.REQUEST_INVALID),
        ("a/b", "settle/run-1/1/alder", 1, "metering_error", Code.REQUEST_INVALID),
        ("d" * 32, "settle/run-1/1/alder", 1, "metering_error", Code.REQUEST_INVALID),
        ("x" * 65, "settle/run-1/1/alder", 1, "metering_error", Code.REQUEST_INVALID),
    ],
)
def test_a_reversal_that_cannot_be_is_refused_and_nothing_moves(
    paid: Bank, token: str, transfer: str, amount_micro: int | None, reason: str, code: Code
) -> None:
    paid.reverse("one", "settle/run-1/1/alder", 1000, "metering_error")
    size = paid.coordinator.desk.consortium.size
    assert refused(lambda: paid.reverse(token, transfer, amount_micro, reason)) == code
    assert paid.coordinator.desk.consortium.size == size


def test_nothing_is_left_of_a_charge_that_was_given_back_and_a_member_gives_nothing_back(paid: Bank) -> None:
    transfer = "settle/run-1/1/alder"
    member = Office(Seat.load(Path(paid.seat("alder"))))
    asked = wire.ReverseChargeRequest(token="one", settle=transfer, reason="duplicate")
    assert refused(lambda: member.operator.ReverseCharge(asked)) == Code.NOT_AUTHORISED
    member.close()
    paid.reverse("one", transfer, None, "duplicate")
    assert refused(lambda: paid.reverse("two", transfer, None, "duplicate")) == Code.REVERSAL_EXCEEDS_ORIGINAL


def test_the_operators_command_given_twice_reverses_once(paid: Bank) -> None:
    command = ("budget", "reverse", "run-1/1/birch", "--amount", "0.002EUR", "--reason", "metering_error",
               "--home", str(paid.home), "--json")  # fmt: skip
    first, second = json.loads(invoke(*command)), json.loads(invoke(*command))
    assert first == second
    assert first["id"] == f"reversal/{token_for('settle/run-1/1/birch', 2000, 'metering_error')}"
    assert paid.budget("birch").refunded_micro == 2000
    invoke(*command, "--token", "and-again")
    assert paid.budget("birch").refunded_micro == 4000
    invoke(*(word.replace("0.002EUR", "500") for word in command))
    assert paid.budget("birch").refunded_micro == 4500, "another amount is another reversal"
    assert "are given back" in invoke(*command[:3], "--reason", "duplicate", "--home", str(paid.home))
    assert paid.budget("birch").refunded_micro == ROUND


def test_a_member_disputes_and_withdraws_by_command(paid: Bank) -> None:
    seat = ("--seat", paid.seat("alder"))
    said = ("budget", "dispute", "run-1/1/alder", "--reason", "rate_error", "--why", "Too dear.", *seat)
    made = json.loads(invoke(*said, "--json"))
    assert (made["amount_micro"], made["open"]) == (ROUND, True)
    assert json.loads(invoke(*said, "--json")) == made, "the same words are the same dispute"
    assert "rate_error" in invoke("budget", "disputes", *seat)
    name = made["id"].removeprefix("sha256:")[:8]
    assert "is withdrawn: alder gets 0.00 EUR back" in invoke("budget", "rule", name, "--withdraw", *seat)
    assert paid.budget("alder").disputed_micro == 0
    foreign = CliRunner().invoke(app, ["budget", "rule", name, "--concede", "--seat", paid.seat("birch")])
    assert foreign.exit_code == 3
    unknown = CliRunner().invoke(app, ["budget", "rule", "ffff", "--concede", *seat])
    assert (unknown.exit_code, "names no dispute" in unknown.output) == (1, True)


def test_pledged_time_becomes_budget_once_however_often_the_answer_is_lost(
    bank_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bank = bank_of()
    bank.enact("rates", device="cpu", micro_per_gflop=5000, micro_per_device_second=10)
    bank.enact("grant", name="time", member="cedar", unit="device_ms:cpu", amount=3 * 3_600_000)
    command = ("budget", "convert", "cpu", "1", "--seat", bank.seat("cedar"))
    assert "cedar    cpu" in invoke("budget", "show", "--seat", bank.seat("cedar"))
    real = Chamber.submit

    def lost(chamber: Chamber, note: bytes) -> int:
        real(chamber, note)
        raise Unreachable("the answer is lost")

    monkeypatch.setattr(Chamber, "submit", lost)
    assert CliRunner().invoke(app, list(command)).exit_code == 4
    monkeypatch.setattr(Chamber, "submit", real)
    assert bank.budget("cedar").granted_micro == 1_036_000
    assert "ended the conversion begun on" in invoke(*command)
    assert bank.budget("cedar").granted_micro == 1_036_000, "the same conversion"
    assert json.loads(invoke(*command, "--json"))["budget"]["granted_micro"] == 1_072_000, "another one"
    beyond = CliRunner().invoke(app, [*command[:3], "1.5", *command[4:]])
    assert (beyond.exit_code, "exceeds_budget" in beyond.output) == (3, True)
    assert not list(Path(bank.seat("cedar")).glob("converting-*")), "what was refused is not tried again"


def test_what_a_change_costs_is_told_before_it_is_signed_and_with_the_proposal(bank_of: Any) -> None:
    bank = bank_of(learning__rounds=4, members=budgets(cedar=2 * ROUND))
    bank.gather()
    bank.start_run()
    bank.play(1)
    bank.begun(2)
    seat = ("--seat", bank.seat("alder"))
    dear = ("-s", "device=cpu", "-s", "micro_per_gflop=8000")
    quoted = json.loads(invoke("budget", "quote", "--feature", "rates", *dear, *seat, "--json"))
    assert (quoted["run"], quoted["from_round"], quoted["last_round"]) == ("run-1", 3, 4)
    alder, _, cedar = quoted["payers"]
    assert alder["before"] == {
        "round_micro": 5000,
        "rest_micro": 10_000,
        "run_micro": 20_000,
        "lacks_from": None,
    }
    assert alder["after"] == {
        "round_micro": 8000,
        "rest_micro": 16_000,
        "run_micro": 32_000,
        "lacks_from": None,
    }
    assert (cedar["before"]["lacks_from"], cedar["after"]["lacks_from"]) == (3, 3)
    size = bank.coordinator.desk.consortium.size
    opened = invoke("proposal", "open", "grant", "-s", "name=spring", "-s", "member=cedar", "-s", "amount=0.01 EUR",
                    "-s", "expires=2099-01-01", *seat)  # fmt: skip
    assert opened.index("cedar would no longer lack budget") < opened.index("P-0001 is open")
    assert bank.coordinator.desk.consortium.size == size + 2
    shown = invoke("proposal", "show", "1", *seat)
    assert "'expires_ms': 4070908800000" in shown
    assert "0.00 -> 0.01" in shown
    assert (
        json.loads(invoke("budget", "quote", "--proposal", "1", *seat, "--json"))["payers"][2][
            "granted_micro"
        ]
        == 10_000
    )
    bank.vote(bank.propose("rates", "aa", device="cpu", micro_per_gflop=8000))
    bank.play(2)
    bank.begun(3)
    law = invoke("proposal", "show", "2", *seat)
    assert "0.005 -> 0.008" in law and "available" not in law


def test_budgets_charges_grants_and_forecasts_are_told_to_people_and_programs(bank_of: Any) -> None:
    bank = bank_of(learning__rounds=4, members=budgets(cedar=3 * ROUND))
    seat = ("--seat", bank.seat("alder"))
    assert "was charged for nothing yet" in invoke("budget", "forecast", "cedar", *seat)
    bank.gather()
    bank.start_run()
    for number in (1, 2):
        bank.play(number)
    bank.begun(3)
    shown = invoke("budget", "show", "--charges", "--grants", "--rates", *seat)
    assert "run-1/2/cedar" in shown and "grant/1/cedar" in shown and "per gflop" in shown
    assert "refunded" not in shown, "a column in which nobody has anything"
    facts = json.loads(invoke("budget", "forecast", "cedar", *seat, "--json"))["forecasts"]
    assert [(f["partner"], f["round_micro"], f["rounds_left"], f["lacking_micro"]) for f in facts] == [
        ("cedar", ROUND, 0, ROUND)
    ]
    told = invoke("budget", "forecast", "cedar", *seat)
    assert "That does not pay for another round." in told and "0.005 EUR too little" in told
    assert "run-1 round 2" in told and "█" in told
    assert "is paid for" in invoke("budget", "forecast", *seat)
    nobody = CliRunner().invoke(app, ["budget", "forecast", "elm", *seat])
    assert (nobody.exit_code, "there are alder, birch, cedar" in nobody.output) == (1, True)
