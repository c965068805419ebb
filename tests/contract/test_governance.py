"""Votes over real gRPC and by the command line: what members type, what they are told, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from benchmarks.governance_parts.storm import vote_at_once
from commons import charter_file
from commons.chain_file import ChainFile
from commons.errors import Refused
from commons.identity import save_signer
from commons.notes import Signer
from hansa.chamber import Chamber
from hansa.cli import app
from tests.contract.test_budget import Bank, invoke
from tests.contract.test_services import eventually
from tests.support.consortium import SITES, charter, signer

SLOW = {"type": "feature.enable", "delay_s": 600, "window_s": 600, "queue_s": 600}
QUEUED = {"type": "ratecard.set", "window_s": 600, "queue_s": 600}
RULES = {"window_s": 60, "rules": (SLOW, QUEUED), "officers": ("cedar",), "pause_s": 600}


@pytest.fixture
def bank(tmp_path: Path) -> Iterator[Bank]:
    """Members with seats; proposals wait ten minutes before they are voted on, prices are queued for ten."""
    found = Bank(tmp_path, charter(voting=RULES))
    yield found
    found.close()


def refused(*arguments: str) -> str:
    done = CliRunner().invoke(app, list(arguments))
    assert done.exit_code in (1, 2, 3), (done.exit_code, done.output)
    return done.output


def typed(bank: Bank, name: str, *words: str) -> str:
    return invoke(*words, "--seat", bank.seat(name))


def test_a_proposal_is_previewed_withdrawn_discussed_and_vetoed_at_the_keyboard(bank: Bank) -> None:
    said = typed(bank, "alder", "proposal", "open", "inner-steps", "-s", "steps=9")
    assert "/learning/inner_steps: 4 -> 9" in said and "P-0001 is open and pending" in said
    assert "birch withdraw" not in refused("proposal", "withdraw", "1", "--seat", bank.seat("birch"))
    assert "P-0001 is cancelled." in typed(bank, "alder", "proposal", "withdraw", "1")
    typed(bank, "alder", "proposal", "open", "rates", "-s", "device=cpu", "-s", "micro_per_gflop=7")
    for name in ("birch", "alder"):
        told = typed(bank, name, "proposal", "discuss", "2", "--reason", "Too cheap?")
    assert "P-0002 is paused." in told
    assert "it is paused" in refused("proposal", "vote", "2", "for", "--seat", bank.seat("birch"))
    assert "P-0002 is active." in typed(bank, "birch", "proposal", "resume", "2")
    for name in SITES:
        told = typed(bank, name, "proposal", "vote", "2", "for")
    assert "It is queued." in told
    assert "no safety officer" in refused(
        "proposal", "veto", "2", "--reason", "No.", "--seat", bank.seat("alder")
    )
    assert "P-0002 is vetoed." in typed(bank, "cedar", "proposal", "veto", "2", "--reason", "Too cheap.")
    shown = typed(bank, "alder", "proposal", "show", "2")
    assert "cedar moves to veto: Too cheap." in shown and "override-veto -s proposal=sha256:" in shown
    assert [p["state"] for p in json.loads(typed(bank, "alder", "proposal", "list", "--json"))] == [
        "cancelled",
        "vetoed",
    ]


def test_a_ballot_is_signed_on_another_machine_and_by_a_delegated_key(bank: Bank, tmp_path: Path) -> None:
    typed(bank, "alder", "proposal", "open", "roadmap", "-s", 'candidates=["fp8","lean"]')
    text = typed(
        bank, "birch", "proposal", "vote", "1", "rank lean > fp8", "--print-note", "--reason", "Cheaper."
    )
    ballot = tmp_path / "ballot.txt"
    ballot.write_text(text)
    invoke("key", "sign", str(ballot), "--key", str(tmp_path / "birch.key"))
    submit = ("--submit", str(tmp_path / "ballot.note"))
    said = refused("proposal", "vote", "1", "rank fp8 > lean", *submit, "--seat", bank.seat("birch"))
    assert "says choice 'rank lean > fp8', the command 'rank fp8 > lean'" in said
    assert "counts" in typed(bank, "birch", "proposal", "vote", "1", "rank lean > fp8", *submit)
    own = Signer("cedar/ballot", b"\x09" * 32)
    save_signer(tmp_path / "cedar-ballot.key", own)
    (tmp_path / "cedar-ballot.pub").write_text(own.vkey + "\n")
    with_key = ("proposal", "vote", "1", "rank lean > fp8", "--key", str(tmp_path / "cedar-ballot.key"))
    assert "delegated its ballots to no key" in refused(*with_key, "--seat", bank.seat("cedar"))
    typed(bank, "cedar", "member", "ballot-key", str(tmp_path / "cedar-ballot.pub"))
    typed(bank, "cedar", *with_key)
    typed(bank, "alder", "proposal", "vote", "1", "rank fp8")
    shown = typed(bank, "alder", "proposal", "show", "1")
    assert "order: 1. lean; 2. fp8" in shown and "it binds nobody" in shown
    typed(bank, "cedar", "member", "ballot-key", str(tmp_path / "cedar-ballot.pub"), "--days", "0")
    typed(bank, "alder", "proposal", "open", "roadmap", "-s", 'candidates=["fp8","int4"]')
    again = ("proposal", "vote", "2", "rank fp8", "--key", str(tmp_path / "cedar-ballot.key"))
    assert "expired" in refused(*again, "--seat", bank.seat("cedar"))


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda text: "\ufeff" + text, "byte order mark"),
        (lambda text: text.replace("\n", "\r\n"), "U+000D"),
        (lambda text: text.replace("for", "f\u202eor", 1), ""),
        (lambda _: "x" * 10_000_000, "too large"),
        (lambda text: text.rstrip("\n"), "newline"),
    ],
    ids=["BOM", "CRLF", "bidi", "10 MB", "no newline"],
)
def test_a_ballot_file_that_was_damaged_on_the_way_is_refused_with_the_reason(
    bank: Bank, tmp_path: Path, spoil: Any, why: str
) -> None:
    typed(
        bank, "alder", "proposal", "open", "grant", "-s", "name=g", "-s", "member=alder", "-s", "amount=1EUR"
    )
    ballot = tmp_path / "ballot.txt"
    text = typed(bank, "birch", "proposal", "vote", "1", "for", "--print-note")
    ballot.write_bytes(spoil(text).encode())
    done = CliRunner().invoke(app, ["key", "sign", str(ballot), "--key", str(tmp_path / "birch.key")])
    if why:
        assert done.exit_code == 2 and why in done.output, done.output
        return
    said = refused(
        "proposal",
        "vote",
        "1",
        "for",
        "--submit",
        str(tmp_path / "ballot.note"),
        "--seat",
        bank.seat("birch"),
    )
    assert "says choice 'f\\u202eor', the command 'for'" in said
    with (
        Chamber.at(Path(bank.seat("birch"))) as chamber,
        pytest.raises(Refused, match="hides or reorders text"),
    ):
        chamber.submit((tmp_path / "ballot.note").read_bytes())


def test_a_member_is_admitted_suspended_and_readmitted_by_the_others(bank: Bank, tmp_path: Path) -> None:
    (tmp_path / "elm.pub").write_text(signer("elm").vkey + "\n")
    assert "2/3 of all members by head" in typed(bank, "alder", "member", "admit", str(tmp_path / "elm.pub"))
    for name in SITES:
        typed(bank, name, "proposal", "vote", "1", "for")
    eventually(lambda: bank.coordinator.desk.consortium.charter.version == 2)
    assert "elm" in typed(bank, "alder", "member", "list")
    typed(bank, "alder", "member", "suspend", "birch", "--reason", "Silent.")
    assert "not in the electorate" in refused(
        "proposal", "vote", "2", "against", "--seat", bank.seat("birch")
    )
    for name in ("alder", "cedar"):
        typed(bank, name, "proposal", "vote", "2", "for")
    bank.submit(_for(bank, "elm"))
    eventually(lambda: bank.coordinator.desk.consortium.charter.version == 3)
    assert "suspended" in typed(bank, "alder", "member", "list")
    assert "is suspended" in refused("proposal", "open", "pause", "--seat", bank.seat("birch"))
    assert "birch" not in json.loads(typed(bank, "alder", "proposal", "show", "2", "--json"))["electorate"]


def _for(bank: Bank, name: str) -> bytes:
    """The ballot of a member that has no seat yet."""
    view = bank.coordinator.desk.consortium.proposals.views()[-1]
    from tests.support.chamber import ballot

    of = bank.coordinator.desk.consortium.proposals.items[view.id].opening  # type: ignore[index]
    return signer(name).sign(ballot(of, name, "for", consortium=of.consortium).compose())


def elsewhere(bank: Bank, tmp_path: Path, name: str, *words: str) -> str:
    """The same, but its note is signed on another machine."""
    text, note = tmp_path / f"{name}.txt", tmp_path / f"{name}.note"
    printed = CliRunner().invoke(app, [*words, "--print-note", "--seat", bank.seat(name)])
    text.write_text(printed.stdout)
    note.unlink(missing_ok=True)
    invoke("key", "sign", str(text), "--key", str(tmp_path / f"{name}.key"))
    return typed(bank, name, *words, "--submit", str(note))


def test_money_is_pledged_for_a_proposal_and_paid_when_it_becomes_law(bank: Bank, tmp_path: Path) -> None:
    grant = ("grant", "-s", "name=g", "-s", "member=cedar", "-s", "amount=1EUR", "--needs", "0.30EUR")
    said = elsewhere(bank, tmp_path, "alder", "proposal", "open", *grant)
    assert "P-0001 is open and active" in said
    assert "pledges 2000000 micro and has 1000000" in refused(
        "proposal", "pledge", "1", "2EUR", "--to", "cedar", "--seat", bank.seat("birch")
    )
    assert "goes to another member" in refused(
        "proposal", "pledge", "1", "0.1EUR", "--seat", bank.seat("alder")
    )
    said = elsewhere(bank, tmp_path, "birch", "proposal", "pledge", "1", "0.30EUR")
    assert "Its pledges come to 0.30 of the 0.30 it needs." in said
    shown = typed(bank, "cedar", "proposal", "show", "1")
    assert "is carried out only with pledges of 0.30; 0.30 stand" in shown
    assert "birch pledges 0.30 for alder until" in shown and ": held" in shown
    assert "0.30 of 0.30" in typed(bank, "cedar", "proposal", "list")
    budgets = {
        b["partner"]: b for b in json.loads(typed(bank, "birch", "budget", "show", "--json"))["budgets"]
    }
    assert (budgets["birch"]["held_micro"], budgets["birch"]["available_micro"]) == (300_000, 700_000)
    for name in SITES:
        typed(bank, name, "proposal", "vote", "1", "for")
    eventually(lambda: bank.coordinator.desk.consortium.charter.version == 2)
    assert (bank.budget("birch").spent_micro, bank.budget("alder").available_micro) == (300_000, 1_300_000)
    assert ": paid" in typed(bank, "cedar", "proposal", "show", "1")
    statement = typed(bank, "birch", "budget", "statement", "birch")
    assert "pledge for alder" in statement, statement


def test_motions_and_votes_on_members_are_signed_on_another_machine_too(bank: Bank, tmp_path: Path) -> None:
    suspend = ("member", "suspend", "cedar", "--reason", "Silent.")
    assert "P-0001 is open" in elsewhere(bank, tmp_path, "alder", *suspend)
    for name in ("alder", "birch"):
        told = elsewhere(bank, tmp_path, name, "proposal", "discuss", "1")
    assert "P-0001 is paused." in told
    assert "No further round opens" in elsewhere(bank, tmp_path, "cedar", "run", "pause", "--reason", "Stop.")


def test_a_ballot_is_lodged_with_a_site_and_a_sites_own_bounds_are_told_by_their_step(
    bank: Bank, tmp_path: Path
) -> None:
    file = tmp_path / "alder" / "site.toml"
    save_signer(tmp_path / "alder" / "seat" / "site.key", signer("alder/alder"))
    (tmp_path / "alder" / "own.txt").write_text("It is not read.")
    file.write_text('[site]\nname = "alder"\npartner = "alder"\ntext = "own.txt"\n')
    checked = invoke("site", "verify", str(file)).splitlines()
    assert checked[0].startswith("1 checkpoint: ") and checked[7].startswith("13 policy: features any")
    typed(bank, "alder", "proposal", "open", "roadmap", "-s", 'candidates=["fp8","lean"]')
    text, note, lodged = tmp_path / "ballot.txt", tmp_path / "ballot.note", tmp_path / "ballot.lodged"
    text.write_text(typed(bank, "birch", "proposal", "vote", "1", "rank lean", "--print-note"))
    invoke("key", "sign", str(text), "--key", str(tmp_path / "birch.key"))
    said = invoke("site", "lodge", str(note), str(file), "--out", str(lodged))
    assert "birch's ballot is kept here; the coordinator has it as journal record" in said
    (view,) = json.loads(typed(bank, "birch", "proposal", "list", "--json"))
    assert (view["lodged"], [b["voter"] for b in view["ballots"]]) == (1, ["birch"])
    proof = str(tmp_path / "charter.proof")
    typed(bank, "birch", "charter", "proof", "--lodged", str(lodged), "--out", proof)
    assert "holds" in invoke("charter", "verify", proof)
    assert "in order" in invoke("journal", "fsck", "--home", str(bank.home), "--lodged", str(lodged))
    file.write_text(
        file.read_text() + '\n[policy]\nbounds = [{ path = "/learning/inner_steps", most = 3 }]\n'
    )
    told = refused("site", "verify", str(file))
    assert (
        "has 4 at /learning/inner_steps, [[policy.bounds]] allows at most 3" in told
        and "operator can" in told
    )


def test_the_charter_is_proven_compared_and_vouched_for_at_the_keyboard(bank: Bank, tmp_path: Path) -> None:
    typed(bank, "alder", "proposal", "open", "licence", "-s", "licence=MIT")
    for name in SITES:
        typed(bank, name, "proposal", "vote", "1", "for")
    eventually(lambda: bank.coordinator.desk.consortium.charter.version == 2)
    assert '/release/licence: "Apache-2.0" -> "MIT"' in typed(bank, "alder", "charter", "diff")
    for name in ("alder", "birch"):
        assert "You vouch for charter version 2" in typed(bank, name, "charter", "anchor")
    proof, founding = tmp_path / "charter.proof", tmp_path / "founding.toml"
    told = typed(bank, "alder", "charter", "proof", "--out", str(proof))
    assert "which 2 of 3 members vouch for" in told
    charter_file.write(charter(voting=RULES), founding)
    assert "Charter version 2 holds." in invoke("charter", "verify", str(proof), "--trust", str(founding))
    charter_file.write(charter(), founding)
    assert "is another one" in refused("charter", "verify", str(proof), "--trust", str(founding))
    file = ChainFile.load(proof.read_bytes())
    lie = proof.read_bytes().replace(b'\\"licence\\":\\"MIT\\"', b'\\"licence\\":\\"GPL\\"')
    proof.write_bytes(lie)
    assert "convicts nobody" in refused("charter", "verify", str(proof))
    assert file.signed() is not None


def test_an_officer_pauses_the_rounds_and_the_members_ratify_it(bank: Bank) -> None:
    assert "no safety officer" in refused("run", "pause", "--reason", "Now.", "--seat", bank.seat("alder"))
    assert "No further round opens" in typed(bank, "cedar", "run", "pause", "--reason", "Nonsense arrives.")
    assert "the next pause may begin" in refused(
        "run", "pause", "--reason", "More.", "--seat", bank.seat("cedar")
    )
    bank.gather()
    bank.start_run()
    consortium = bank.coordinator.desk.consortium
    typed(bank, "alder", "proposal", "open", "pause")
    for name in SITES:
        typed(bank, name, "proposal", "vote", "1", "for")
    eventually(lambda: consortium.charter.rounds.paused)
    assert consortium.pauses.until_ms(consortium.charter, consortium.now_ms()) is None
    assert bank.office.run().history == ()
    typed(bank, "alder", "proposal", "open", "resume")
    for name in SITES:
        typed(bank, name, "proposal", "vote", "2", "for")
    eventually(lambda: not consortium.charter.rounds.paused)


def test_going_through_what_waits_for_ones_ballot(bank: Bank) -> None:
    typed(
        bank, "alder", "proposal", "open", "grant", "-s", "name=g", "-s", "member=alder", "-s", "amount=1EUR"
    )
    typed(bank, "alder", "proposal", "open", "licence", "-s", "licence=MIT")
    done = CliRunner().invoke(app, ["vote", "--seat", bank.seat("birch")], input="for\nskip\n")
    assert done.exit_code == 0, done.output
    assert "Your ballot on P-0001 counts." in done.output and "P-0002 counts" not in done.output


def test_the_published_schema_is_that_of_the_charter() -> None:
    published = Path(__file__).parents[2] / "docs" / "charter.schema.json"
    assert invoke("charter", "schema") == published.read_text(), (
        "run: hansa charter schema > docs/charter.schema.json"
    )


def test_partners_voting_at_the_same_moment_lose_no_ballot(tmp_path: Path) -> None:
    storm = vote_at_once(tmp_path, partners=5, proposals=3)
    assert (storm.ballots, storm.lost, storm.differing) == (15, 0, 0)
