"""A partner that comes in mid-run, over real gRPC: voted in, invited, enrolled, and in the next round."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from commons import charter_file
from commons.ballots import Ballot, Proposal
from commons.chain import Trust, verify_chain
from commons.identity import save_signer
from commons.names import Digest, SiteId
from commons.records import Kind
from commons.views import CharterView, ExpertsView, ProposalView
from commons.wire.v1 import consortium_pb2 as wire
from governance.fsck import judge
from hansa.cli import app
from tests.contract.test_services import Stage, eventually
from tests.support.consortium import NAME, SITES, FakeSite, Office, charter, enrol, over, signer


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    made = Stage(tmp_path, charter(learning__rounds=3, rounds={"quorum": 3, "grace_s": 20, "lease_s": 60}))
    yield made
    for site in made.sites:
        site.close()
    made.office.close()
    made.coordinator.stop()


def read(office: Office, view: str, kind: Any, key: str = "") -> Any:
    reply = office.chamber.Read(wire.ReadRequest(view=view, key=key), timeout=10)
    return kind.model_validate_json(reply.json)


def decide(member: Office, by: str, feature: str, **parameters: Any) -> None:
    """Proposed by one, voted for by all of the charter in force."""
    shown = read(member, "charter", CharterView)
    current = charter_file.from_canonical(shown.text.encode())
    wish = Proposal(NAME, by, feature, feature, parameters, Digest(shown.digest), 1, "00" * 16)
    member.chamber.Submit(wire.NoteRequest(note=signer(by).sign(wish.compose())))
    opened = read(member, "proposal", ProposalView, wish.id)
    for voter in current.members:
        ballot = Ballot(
            NAME, wish.id, Digest(opened.rules), Digest(opened.electorate_digest), voter.name, "for", "11" * 16,
            "2026-11-23T18:40:12Z",
        )  # fmt: skip
        member.chamber.Submit(wire.NoteRequest(note=signer(voter.name).sign(ballot.compose())))


def obeys(stage: Stage, site: FakeSite, round_number: int) -> None:
    """A site that does nothing by itself hands in its update of that round."""
    eventually(lambda: any(o.round == round_number for o in site.orders))
    order = next(o for o in site.orders if o.round == round_number)
    site.upload(stage.coordinator.desk.consortium.journal.epoch, order)


def test_a_new_member_is_voted_in_and_its_site_trains_in_the_next_round(stage: Stage) -> None:
    alder = Office(enrol(stage.coordinator, "member", "alder", stage.folder / "alder-seat"))
    stage.site("alder"), stage.site("birch")
    cedar = stage.site("cedar", silent=True)
    stage.start_run()
    decide(alder, "alder", "member-admit", name="dune", key=signer("dune").vkey, budget_micro=1_000_000)
    obeys(stage, cedar, 1)
    eventually(lambda: read(stage.office, "charter", CharterView).version == 2)
    invite = stage.home / "invites" / "member-dune.invite"
    eventually(invite.exists)
    dune = Office(enrol(stage.coordinator, "member", "dune", stage.folder / "dune-seat"))
    site = stage.of.sites[0].model_dump(mode="json") | {
        "name": "dune", "partner": "dune", "payer": "dune", "domain": "dune-text", "experts": ["dune-0"],
    }  # fmt: skip
    decide(dune, "dune", "site-add", **site, like=["birch-0"], quorum=4)
    eventually(lambda: any(o.round == 2 for o in cedar.orders))
    obeys(stage, cedar, 2)
    eventually((stage.home / "invites" / "site-dune.invite").exists)
    joiner = FakeSite(enrol(stage.coordinator, "site", "dune", stage.folder / "dune" / "seat"), stage.of)
    stage.sites.append(joiner.start())
    obeys(stage, cedar, 3)
    cedar.silent = False
    view = stage.office.wait(over)
    assert view.history[-1].contributors == ("alder", "birch", "cedar", "dune")
    records = list(stage.coordinator.desk.consortium.journal.records())
    assert judge(records) == ()
    [remade] = (r.facts for r in records if r.kind is Kind.REMADE)
    assert (remade["round"], remade["base"]) == (3, view.history[1].state)
    roll = {e.expert: e for e in read(dune, "experts", ExpertsView).experts}
    assert (roll["dune-0"].like, roll["dune-0"].from_round, roll["dune-0"].trained_round) == ("birch-0", 3, 3)
    assert (roll["birch-0"].site, roll["birch-0"].from_round, roll["birch-0"].index) == ("birch", 1, 1)
    alder.close(), dune.close()


def test_a_site_proves_by_the_chain_that_its_partner_came_by_a_vote(stage: Stage) -> None:
    alder = Office(enrol(stage.coordinator, "member", "alder", stage.folder / "alder-seat"))
    decide(alder, "alder", "member-admit", name="dune", key=signer("dune").vkey, budget_micro=1)
    eventually(lambda: read(stage.office, "charter", CharterView).version == 2)
    site = stage.of.sites[0].model_dump(mode="json") | {
        "name": "dune", "partner": "dune", "payer": "dune", "domain": "dune-text", "experts": ["dune-0"],
    }  # fmt: skip
    decide(alder, "dune", "site-add", **site)
    eventually((stage.home / "invites" / "site-dune.invite").exists)
    seat = enrol(stage.coordinator, "site", "dune", stage.folder / "dune" / "seat")
    shown = alder.chamber.Chain(wire.ChainRequest(have_size=0), timeout=10)
    entries = [(e.index, e.leaf, tuple(e.path)) for e in shown.entries]
    trust = Trust.of(charter_file.from_canonical(seat.charter))
    proven = verify_chain(entries, shown.checkpoint, tuple(shown.consistency), trust=trust)
    assert proven.charter.site("dune") is not None and set(proven.sites) == {*SITES, "dune"}  # type: ignore[union-attr]
    assert trust.founding.member("dune") is None
    forged = [e for e in entries if b"site-add" not in e[1]]
    refused = verify_chain(forged, shown.checkpoint, tuple(shown.consistency), trust=trust)
    assert not hasattr(refused, "charter"), "without the vote there is no such site"
    assert SiteId("dune") in stage.coordinator.desk.consortium.members.enrolled
    alder.close()


def test_the_commands_list_and_propose_and_say_who_may(stage: Stage, tmp_path: Path) -> None:
    seat = tmp_path / "alder-seat"
    enrol(stage.coordinator, "member", "alder", seat)
    for name in ("alder", "birch"):
        save_signer(tmp_path / f"{name}.key", signer(name))

    def hansa(*words: str, by: str = "alder") -> Any:
        key = [] if words[0] == "list" else ["--key", str(tmp_path / f"{by}.key")]
        return CliRunner().invoke(app, ["expert", *words, "--seat", str(seat), *key])

    shown = json.loads(hansa("list", "--json").output)
    assert [(e["expert"], e["site"], e["from_round"], e["tokens"]) for e in shown["experts"]] == [
        (f"{name}-0", name, 0, 0) for name in SITES
    ]
    assert "next" in hansa("list").output
    opened = hansa("add", "alder-1", "--site", "alder", "--like", "cedar-0", "--json")
    assert opened.exit_code == 0, opened.output
    view = json.loads(opened.output)
    assert view["parameters"] == {"expert": "alder-1", "like": "cedar-0", "site": "alder"} and view["quote"]
    for words, why in (
        (("retire", "birch-0"), "the last expert of site birch"),
        (("transfer", "fir-0", "--to", "alder"), "there is no expert 'fir-0'"),
        (("add", "birch-1", "--site", "birch"), "is for birch to propose, not for alder"),
    ):
        refused = hansa(*words)
        assert refused.exit_code != 0 and why in refused.output
