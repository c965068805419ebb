"""Votes on experts and sites: what each changes, what is refused and why, and who may propose what."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from commons.chain import verify_chain
from commons.charter import Charter
from commons.charter_file import canonical, diff
from commons.errors import Code, Refusal
from commons.experts.map import ExpertMap
from commons.experts.remaking import lineage
from commons.features import Feature, apply, carry_out, may_not_propose
from commons.features.feature import replaced
from commons.features.learning import InnerSteps
from commons.records import Kind, Record, fact
from commons.states import StateStore
from commons.tally import Opening
from governance.fsck import judge
from orchestrator.seed import load_seed
from tests.support.chamber import Chamber, proposal, sign
from tests.support.consortium import MODEL, charter, seed_state, signer
from workers.policy import Policy, forbids


def of(**changes: Any) -> Charter:
    """alder with two experts, birch with three, cedar with one; dune is a member without a site."""
    counts = {"alder": 2, "birch": 3, "cedar": 1}
    sites = tuple(
        s.model_dump() | {"experts": tuple(f"{s.name}-{n}" for n in range(counts[s.name])), "payer": "dune"}
        for s in charter().sites
    )
    names = ("alder", "birch", "cedar", "dune")
    members = tuple({"name": m, "key": signer(m).vkey, "budget_micro": 1} for m in names)
    return charter(**{"sites": sites, "members": members, **changes})


SITE = {
    "name": "dune", "partner": "dune", "payer": "dune", "domain": "dune-text", "experts": ["dune-0", "dune-1"],
    "device": "cpu", "data_statement": "Written by dune for tests.",
}  # fmt: skip
ELM = {"name": "elm", "key": signer("elm").vkey, "budget_micro": 5}


def applied(before: Charter, key: str, /, **params: Any) -> Charter:
    after = apply(before, key, params)
    assert isinstance(after, Charter), after
    return after


@pytest.mark.parametrize(
    ("key", "params", "changed"),
    [
        ("expert-add", {"site": "cedar", "expert": "cedar-1"}, {"/sites/2/experts/1", "/added/0"}),
        (
            "expert-add",
            {"site": "cedar", "expert": "cedar-1", "like": "alder-0"},
            {"/sites/2/experts/1", "/added/0"},
        ),
        ("expert-retire", {"expert": "alder-1"}, {"/sites/0/experts/1", "/retired/0"}),
        (
            "expert-transfer",
            {"expert": "alder-1", "to": "cedar"},
            {"/sites/0/experts/1", "/sites/2/experts/1"},
        ),
        ("member-admit", ELM, {"/members/4"}),
        ("site-add", SITE, {"/sites/3", "/added/0", "/added/1"}),
        (
            "site-add",
            {**SITE, "like": ["alder-0", "birch-0"], "quorum": 4},
            {"/sites/3", "/added/0", "/added/1", "/rounds/quorum"},
        ),
        ("site-remove", {"site": "cedar"}, {"/sites/2", "/escrow/0"}),
        (
            "site-remove",
            {"site": "cedar", "experts": "drop", "quorum": 1},
            {"/sites/2", "/retired/0", "/rounds/quorum"},
        ),
    ],
)
def test_a_vote_on_experts_or_sites_changes_its_own_values_and_every_site_must_allow_it(
    key: str, params: dict[str, Any], changed: set[str]
) -> None:
    before = of()
    after = applied(before, key, **params)
    switch = set() if key == "member-admit" else {f"/features/{key}"}
    assert {at for at, _, _ in diff(before, after)} == changed | switch | {"/version"}
    if switch:
        refusal = forbids(Policy(features=("uplink-codec",)), after, founding=after, site="alder")
        assert refusal is not None and refusal.code == Code.POLICY_FORBIDS and key in refusal.message


@pytest.mark.parametrize(
    ("key", "params", "why"),
    [
        ("expert-retire", {"expert": "fir-0"}, "there is no expert 'fir-0'; there are alder-0"),
        ("expert-transfer", {"expert": "fir-0", "to": "cedar"}, "there is no expert 'fir-0'"),
        (
            "expert-transfer",
            {"expert": "alder-0", "to": "fir"},
            "there is no site 'fir'; there are alder, birch",
        ),
        ("expert-transfer", {"expert": "alder-0", "to": "alder"}, "is site alder's already"),
        (
            "expert-retire",
            {"expert": "cedar-0"},
            "the last expert of site cedar, which could not train without",
        ),
        ("expert-transfer", {"expert": "cedar-0", "to": "birch"}, "the last expert of site cedar"),
        ("expert-add", {"site": "fir", "expert": "fir-0"}, "there is no site 'fir'"),
        ("expert-add", {"site": "cedar", "expert": "birch-0"}, "expert 'birch-0' is there already"),
        ("expert-add", {"site": "cedar", "expert": "cedar-1", "like": "fir-0"}, "no expert 'fir-0' to copy"),
        ("expert-add", {"site": "alder", "expert": "alder-2", "like": "alder-0"}, "stay its twin"),
        ("expert-add", {"site": "cedar", "expert": "cedar-1", "width": 99}, "width: Extra inputs"),
        ("site-add", {**SITE, "name": "alder"}, "there is a site 'alder' already"),
        ("site-add", {**SITE, "experts": ["dune-0", "birch-1"]}, "expert 'birch-1' is there already"),
        ("site-add", {**SITE, "experts": []}, "at least 1 item"),
        ("site-add", {**SITE, "like": ["alder-0"]}, "like names 1 experts for 2 new ones"),
        ("site-add", {**SITE, "like": ["alder-0", "alder-0"]}, "copies that see the same text stay twins"),
        ("site-add", {**SITE, "moe_intermediate_size": 16}, "moe_intermediate_size: Extra inputs"),
        ("site-remove", {"site": "fir"}, "there is no site 'fir'"),
    ],
)
def test_what_names_what_is_not_there_is_refused_with_what_there_is(
    key: str, params: dict[str, Any], why: str
) -> None:
    refusal = apply(of(), key, params)
    assert isinstance(refusal, Refusal) and refusal.code == Code.FEATURE_PARAMETERS_INVALID
    assert why in refusal.message


@pytest.mark.parametrize(
    ("key", "params", "why"),
    [
        ("site-add", {**SITE, "partner": "fir"}, "names partner 'fir', who is no member"),
        ("site-add", {**SITE, "device": "abacus"}, "runs on 'abacus', which has no rate"),
        ("site-add", {**SITE, "quorum": 5}, "rounds.quorum is 5 but there are 4 sites"),
        ("site-remove", {"site": "cedar", "quorum": 3}, "rounds.quorum is 3 but there are 2 sites"),
    ],
)
def test_what_would_leave_no_sound_charter_is_refused(key: str, params: dict[str, Any], why: str) -> None:
    refusal = apply(of(), key, params)
    assert isinstance(refusal, Refusal) and refusal.code == Code.CHARTER_INVALID
    assert why in refusal.message


def test_fewer_experts_than_a_token_goes_to_are_refused() -> None:
    before = of(model={"family": "glm4_moe", "config": MODEL | {"num_experts_per_tok": 4}})
    for params in ({"site": "birch", "experts": "drop"},):
        refusal = apply(before, "site-remove", params)
        assert isinstance(refusal, Refusal) and refusal.code == Code.CHARTER_INVALID
        assert "num_experts_per_tok: is 4 but the sites own 3 experts" in refusal.message
    assert isinstance(apply(before, "site-remove", {"site": "birch"}), Charter), (
        "in escrow they are of the model"
    )


def test_no_vote_makes_sequences_longer_than_the_models_context() -> None:
    before = of(model={"family": "glm4_moe", "config": MODEL | {"max_position_embeddings": 64}})
    longer = Feature(
        "longer", "", InnerSteps, ("/learning/sequence_length",),
        lambda _, p: [replaced("/learning/sequence_length", p.steps)],
    )  # fmt: skip
    assert isinstance(apply(before, longer, {"steps": 64}), Charter)
    refusal = apply(before, longer, {"steps": 65})
    assert (
        isinstance(refusal, Refusal) and "65 tokens do not fit the model's context of 64" in refusal.message
    )


def test_a_copy_of_a_copy_at_one_site_is_a_twin_too_and_a_retired_name_is_taken_for_good() -> None:
    added = applied(of(), "expert-add", site="cedar", expert="cedar-1", like="alder-0")
    twin = apply(added, "expert-add", {"site": "cedar", "expert": "cedar-2", "like": "alder-0"})
    assert isinstance(twin, Refusal) and "beside 'cedar-1'" in twin.message
    gone = applied(added, "expert-retire", expert="cedar-1")
    assert (gone.added, gone.retired) == ((), ("cedar-1",))
    again = apply(gone, "expert-add", {"site": "cedar", "expert": "cedar-1"})
    assert isinstance(again, Refusal) and "'cedar-1' was retired" in again.message


@pytest.mark.parametrize(
    ("key", "params", "may"),
    [
        ("expert-add", {"site": "cedar", "expert": "cedar-1"}, {"cedar"}),
        ("expert-retire", {"expert": "alder-1"}, {"alder"}),
        ("expert-transfer", {"expert": "alder-1", "to": "cedar"}, {"alder"}),
        ("site-add", SITE, {"dune"}),
        ("site-remove", {"site": "cedar"}, {"alder", "birch", "cedar", "dune"}),
        ("site-remove", {"site": "cedar", "experts": "drop"}, {"cedar"}),
        ("member-admit", ELM, {"alder", "birch", "cedar", "dune"}),
        ("inner-steps", {"steps": 5}, {"alder", "birch", "cedar", "dune"}),
    ],
)
def test_an_expert_is_its_partners_to_add_to_retire_or_to_give_away(
    key: str, params: dict[str, Any], may: set[str]
) -> None:
    refusals = {m.name: may_not_propose(of(), key, params, m.name) for m in of().members}
    assert {name for name, refusal in refusals.items() if refusal is None} == may
    assert all(r.code == Code.NOT_AUTHORISED for r in refusals.values() if r)


def test_what_is_in_escrow_any_member_may_give_to_a_site_or_retire() -> None:
    left = applied(of(), "site-remove", site="birch")
    assert left.escrow == ("birch-0", "birch-1", "birch-2") and left.owners["birch-1"] is None
    for key, params in (
        ("expert-retire", {"expert": "birch-0"}),
        ("expert-transfer", {"expert": "birch-0", "to": "cedar"}),
    ):
        assert all(may_not_propose(left, key, params, m.name) is None for m in left.members)
    given = applied(left, "expert-transfer", expert="birch-1", to="cedar")
    assert (given.escrow, given.sites[1].experts) == (("birch-0", "birch-2"), ("cedar-0", "birch-1"))
    assert ExpertMap.from_charter(given).experts == (
        "alder-0", "alder-1", "cedar-0", "birch-1", "birch-0", "birch-2",
    )  # fmt: skip


def test_two_votes_on_one_list_of_experts_do_not_both_win_unseen() -> None:
    base = of()
    one = applied(base, "expert-retire", expert="birch-0")
    stale = carry_out([base, one], "expert-retire", {"expert": "birch-2"})
    assert isinstance(stale, Refusal) and stale.code == Code.PROPOSAL_STALE
    both = carry_out(
        [base, applied(base, "expert-add", site="cedar", expert="cedar-1")],
        "expert-add",
        {"site": "cedar", "expert": "cedar-2"},
    )
    assert isinstance(both, Charter) and both.sites[2].experts == ("cedar-0", "cedar-1", "cedar-2")


def test_an_expert_copied_from_one_that_goes_at_once_comes_from_its_weights() -> None:
    base = of()
    copied = applied(base, "expert-add", site="cedar", expert="cedar-1", like="birch-2")
    gone = applied(copied, "expert-retire", expert="birch-2")
    found = lineage([base, copied, gone])
    assert (found["cedar-1"].expert, found["cedar-1"].stays) == ("birch-2", False)  # type: ignore[index]
    assert "birch-2" not in found and found["birch-1"].stays  # type: ignore[index]


def test_a_charter_from_before_there_were_such_votes_keeps_its_bytes() -> None:
    text = canonical(of())
    assert not any(word in text for word in (b"added", b"escrow", b"retired"))


def test_an_expert_of_another_size_than_the_others_is_refused_with_its_name(tmp_path: Path) -> None:
    """A family holds experts of one width: a partner with smaller ones has fewer, not thinner."""
    state = seed_state(of())
    name = next(n for n in state if ".experts.5.down_proj" in n)
    state[name] = np.zeros((16, 4), np.float32)
    save_file(state, tmp_path / "model.safetensors")
    refusal = load_seed(tmp_path, ExpertMap.from_charter(of()), StateStore(tmp_path / "states"))
    assert isinstance(refusal, Refusal)
    why = f"{name} is F32 [16, 4], not F32 [16, 8] (all experts of glm4_moe are of one size)"
    assert why in refusal.message


def test_a_vote_proposed_by_another_than_may_is_refused_by_every_site_and_found_by_the_audit() -> None:
    """A coordinator that takes it all the same convinces nobody."""
    chamber = Chamber()
    wish = proposal(
        chamber.charter,
        proposer="coop",
        feature="expert-add",
        parameters={"site": "berlin", "expert": "law-1"},
    )
    refused = chamber.try_submit(sign(wish))
    assert isinstance(refused, Refusal) and refused.code == Code.NOT_AUTHORISED
    opening = Opening.of(wish, chamber.charter, number=1, now_ms=chamber.now_ms)
    now_ms = chamber.now_ms
    chamber.take([Record(Kind.PROPOSAL, now_ms, sign(wish)), fact(Kind.OPENING, now_ms, **opening.facts)])
    chamber.vote(opening, acme="for", beta="for", coop="for")
    chamber.close()
    chamber.execute()
    journal = chamber.journal
    shown = verify_chain(journal.entries(), journal.checkpoint(), [], trust=chamber.trust)
    assert isinstance(shown, Refusal) and "is for acme to propose, not for coop" in shown.message
    assert any("is for acme to propose" in f.what for f in judge(journal.all))
