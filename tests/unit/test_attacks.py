"""Every way to cheat in a vote that we know of, by name; those with a number were real bugs of other systems.

Each is tried in the chamber, where the coordinator is honest, and where it matters on the proof as well, where it is not.
What is not here stands in test_proposals, test_chain, test_anchors, test_course, test_ballot_weights and test_notes.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from commons import charter_file, features
from commons.chain import VerifiedCharter, verify_chain
from commons.charter import Charter
from commons.errors import Code, Refusal
from commons.features.patching import patch_parameters
from commons.motions import BallotKey, Motion, Pause
from commons.notes import Signer, parse
from commons.opening import Opening
from commons.records import Kind, Record, canonical_json, fact
from governance.pausing import Pauses
from governance.proposals import Proposals
from tests.support.chamber import MEMBERS, START_MS, Chamber, Log, ballot, charter, proposal, sign, signer

DAY_MS = 86_400_000
ALL: dict[str, Any] = dict.fromkeys(MEMBERS, "for")


def refused(chamber: Chamber, note: bytes, code: Code, why: str = "") -> None:
    before = chamber.journal.size
    answer = chamber.try_submit(note)
    assert isinstance(answer, Refusal), "it was taken"
    assert answer.code == code and why in answer.message, answer
    assert chamber.journal.size == before


def proven(chamber: Chamber) -> VerifiedCharter:
    log = chamber.journal
    found = verify_chain(log.entries(), log.checkpoint(), [], trust=chamber.trust)
    assert isinstance(found, VerifiedCharter), found
    assert found.charter == chamber.charter
    return found


def disbelieved(chamber: Chamber, records: list[Record], why: str) -> None:
    log = Log(records)
    answer = verify_chain(log.entries(), log.checkpoint(), [], trust=chamber.trust)
    assert isinstance(answer, Refusal), "believed a lie"
    assert answer.message.startswith("step 5 votes") and why in answer.message, answer.message


def ballot_key(member: str, key: Signer, *, days: int = 1, nonce: int = 0, by: Signer | None = None) -> bytes:
    note = BallotKey(
        consortium="demo",
        member=member,
        key=key.vkey,
        expires_ms=START_MS + days * DAY_MS,
        nonce=f"{nonce:016x}",
    )
    return (by or signer(member)).sign(note.text)


OWN = Signer("acme/ballot", b"\x05" * 32)


def test_two_keys_of_one_member_have_one_vote() -> None:
    chamber = Chamber()
    chamber.submit(ballot_key("acme", OWN))
    opening = chamber.propose()
    chamber.submit(sign(ballot(opening, "acme", "for")))
    chamber.submit(sign(ballot(opening, "acme", "for", nonce="22" * 16), OWN))
    (view,) = chamber.proposals.views()
    assert (view.for_weight, len(view.ballots)) == (1, 1)


def test_a_delegated_key_votes_and_its_vote_is_proven() -> None:
    chamber = Chamber()
    chamber.submit(ballot_key("acme", OWN))
    opening = chamber.propose()
    chamber.submit(sign(ballot(opening, "acme", "for"), OWN))
    chamber.vote(opening, beta="for", coop="for")
    chamber.close()
    chamber.execute()
    proven(chamber)
    without = [r for r in chamber.journal.all if r.kind is not Kind.BALLOT_KEY]
    disbelieved(chamber, without, "has delegated its ballots to no key")


@pytest.mark.parametrize(
    ("note", "code", "why"),
    [
        (ballot_key("acme", signer("acme/b")), Code.NOT_AUTHORISED, "goes by"),
        (
            ballot_key("acme", Signer("acme/ballot", b"\x05" * 32), by=signer("beta")),
            Code.SIGNATURE_INVALID,
            "acme",
        ),
        (ballot_key("zeta", Signer("zeta/ballot", b"\x05" * 32)), Code.NOT_AUTHORISED, "no member"),
        (signer("acme").sign("hansa-ballot-key/v1\nmember acme\n"), Code.NOTE_MALFORMED, "fields"),
        (
            ballot_key("acme", Signer("acme/ballot", signer("beta")._key.private_bytes_raw())),
            Code.NOT_AUTHORISED,
            "this one is a member's",
        ),
    ],
    ids=["another name", "another member's signature", "a stranger", "not such a note", "a member's key"],
)
def test_ballots_are_delegated_by_their_member_to_a_key_of_its_own(note: bytes, code: Code, why: str) -> None:
    refused(Chamber(), note, code, why)


def test_signature_by_an_expired_or_replaced_delegation() -> None:
    chamber = Chamber(charter(voting__window_s=3 * 86_400))
    opening = chamber.propose()
    chamber.submit(ballot_key("acme", OWN))
    chamber.now_ms += DAY_MS
    refused(chamber, sign(ballot(opening, "acme", "for"), OWN), Code.SIGNATURE_INVALID, "expired")
    new = Signer("acme/ballot", b"\x06" * 32)
    chamber.submit(ballot_key("acme", new, days=5, nonce=1))
    refused(chamber, sign(ballot(opening, "acme", "for"), OWN), Code.SIGNATURE_INVALID, "not signed by")
    chamber.submit(sign(ballot(opening, "acme", "for"), new))
    late = Record(Kind.BALLOT, chamber.now_ms, sign(ballot(opening, "acme", "for", nonce="33" * 16), OWN))
    chamber.take([late])
    chamber.vote(opening, beta="for", coop="for")
    chamber.close()
    chamber.execute()
    disbelieved(chamber, chamber.journal.all, "not signed by")


def test_signature_by_a_sites_or_a_tls_key_is_no_members() -> None:
    chamber = Chamber()
    opening = chamber.propose()
    for by in (signer("acme/berlin"), Signer("acme", b"\x01" * 32), Signer("acme/ballot", b"\x01" * 32)):
        refused(chamber, sign(ballot(opening, "acme", "for"), by), Code.SIGNATURE_INVALID)


def test_gh4378_a_ballot_names_its_voter_and_cannot_be_anybody_elses_or_again() -> None:
    chamber = Chamber()
    opening = chamber.propose()
    note = sign(ballot(opening, "acme", "for"))
    renamed = note.replace(b"voter acme", b"voter beta")
    refused(chamber, renamed, Code.SIGNATURE_INVALID)
    chamber.submit(note)
    assert chamber.try_submit(note) == []


def test_a_clock_skewed_ballot_counts_by_the_journals_time() -> None:
    chamber = Chamber()
    opening = chamber.propose()
    for member, cast_at in (("acme", "1999-01-01T00:00:00Z"), ("beta", "2999-01-01T00:00:00Z")):
        chamber.submit(sign(ballot(opening, member, "for", cast_at=cast_at)))
    assert chamber.proposals.views()[0].for_weight == 2


def by_all(chamber: Chamber, **changes: Any) -> Opening:
    opening = chamber.propose(**changes)
    chamber.vote(opening, **dict.fromkeys(opening.electorate, "for"))  # type: ignore[arg-type]
    chamber.close()
    chamber.execute()
    return opening


DORA = {"name": "dora", "key": signer("dora").vkey, "budget_micro": 0}


def test_ballot_of_a_member_expelled_before_or_admitted_after_the_snapshot() -> None:
    chamber = Chamber(charter(sites=tuple({**s.model_dump(), "payer": s.partner} for s in charter().sites)))
    open_before = chamber.propose()
    by_all(chamber, feature="member-admit", parameters=DORA, nonce="44" * 16)
    refused(chamber, sign(ballot(open_before, "dora", "for")), Code.NOT_IN_ELECTORATE)
    by_all(chamber, feature="member-expel", parameters={"name": "coop", "reason": "Left."})
    after = chamber.propose(nonce="55" * 16, title="Again")
    refused(chamber, sign(ballot(after, "coop", "for")), Code.NOT_IN_ELECTORATE)
    chamber.submit(sign(ballot(open_before, "coop", "against")))
    proven(chamber)


def test_suspended_target_votes_on_itself() -> None:
    chamber = Chamber()
    wish = {"feature": "member-suspend", "parameters": {"name": "beta", "reason": "Silent."}}
    opening = chamber.propose(**wish)
    assert opening.electorate == {"acme": 1, "coop": 1}
    refused(chamber, sign(ballot(opening, "beta", "against")), Code.NOT_IN_ELECTORATE)
    chamber.vote(opening, acme="for", coop="for")
    chamber.close()
    chamber.execute()
    refused(chamber, sign(proposal(chamber.charter, proposer="beta")), Code.NOT_AUTHORISED, "is suspended")
    assert "beta" not in chamber.propose(nonce="66" * 16).electorate
    proven(chamber)
    lie = {**opening.facts, "electorate": {"acme": 1, "beta": 1, "coop": 1}}
    at = next(i for i, r in enumerate(chamber.journal.all) if r.kind is Kind.OPENING)
    records = [*chamber.journal.all]
    records[at] = replace(records[at], body=canonical_json(lie))
    disbelieved(chamber, records, "was not opened with")


def weighed(contributed: dict[str, int]) -> Chamber:
    chamber = Chamber(charter(members=MANY, voting__power={"base": "contribution"}))
    chamber.proposals.contributed = lambda _, __: dict(contributed)
    return chamber


MANY = tuple(
    {"name": name, "key": signer(name).vkey, "budget_micro": 0} for name in ("acme", "beta", "coop", "dora")
)


def test_weight_bought_and_grants_reversed_after_the_snapshot_change_nothing() -> None:
    contributed = {"acme": 20, "beta": 20, "coop": 20, "dora": 20}
    chamber = weighed(contributed)
    opening = chamber.propose()
    assert opening.electorate == {"acme": 1, "beta": 1, "coop": 1, "dora": 1}
    contributed["acme"] = 10**12
    chamber.vote(opening, acme="for", beta="against")
    (view,) = chamber.proposals.views()
    assert (view.for_weight, view.against_weight) == (1, 1)
    assert chamber.propose(nonce="77" * 16, proposer="beta").electorate["acme"] > 1


def test_a_coordinator_that_gives_a_friend_more_weight_than_its_own_figures_say() -> None:
    chamber = weighed({"acme": 30, "beta": 20, "coop": 20, "dora": 20})
    opening = by_all(chamber)
    proven(chamber)
    at = next(i for i, r in enumerate(chamber.journal.all) if r.kind is Kind.OPENING)
    for lie in (
        {"electorate": {**opening.electorate, "beta": 10**9}},
        {"contributed": {**opening.contributed, "beta": 10**9}},
    ):
        records = [*chamber.journal.all]
        records[at] = replace(records[at], body=canonical_json({**opening.facts, **lie}))
        disbelieved(chamber, records, "was not opened with the weights and rules")


def test_cve_2022_31198_quorum_lowered_while_open_revives_nothing() -> None:
    chamber = Chamber(charter(voting={"window_s": 60, "quorum_percent": 100}))
    opening = chamber.propose()
    rule = {"type": "feature.enable", "quorum_percent": 1, "window_s": 60}
    by_all(chamber, feature="voting-rule", parameters=rule, nonce="88" * 16)
    chamber.vote(opening, acme="for", beta="for")
    chamber.now_ms = opening.closes_ms
    chamber.close()
    assert chamber.state(opening.proposal) == "defeated"
    assert chamber.propose(nonce="99" * 16).quorum_percent == 1


def test_ghsa_5h3x_front_running_a_proposal_takes_neither_its_id_nor_its_place() -> None:
    chamber = Chamber()
    mine = proposal(charter())
    copied = proposal(charter(), proposer="beta")
    assert mine.id != copied.id
    chamber.submit(sign(copied))
    withdrawn = Motion(
        consortium="demo", proposal=copied.id, member="beta", motion="withdraw", reason="-", nonce="0" * 16
    )
    refused(chamber, signer("beta").sign(withdrawn.text), Code.PROPOSAL_CLOSED)
    chamber.submit(sign(mine))
    assert [v.proposer for v in chamber.proposals.views()] == ["beta", "acme"]


def test_gh6644_no_delay_window_or_extension_can_be_so_long_that_it_stops_the_consortium() -> None:
    for rule in (
        {"delay_s": 31_536_001, "window_s": 60},
        {"window_s": 31_536_001},
        {"extend_s": 61, "window_s": 60},
        {"queue_s": 2**40, "window_s": 60},
        {"grace_s": -1, "window_s": 60},
    ):
        answer = features.check(charter(), "voting-rule", {"type": "feature.enable", **rule})
        assert isinstance(answer, Refusal), rule


def test_late_quorum_ambush_leaves_the_others_time_to_answer() -> None:
    rule = {"type": "feature.enable", "window_s": 60, "extend_s": 30}
    chamber = Chamber(charter(members=MANY, voting={"window_s": 60, "rules": (rule,)}))
    opening = chamber.propose()
    chamber.now_ms = opening.closes_ms - 1
    chamber.vote(opening, acme="for", beta="for")
    chamber.now_ms = opening.closes_ms
    assert chamber.close() == [], "decided at the last moment, by two of four"
    chamber.vote(opening, coop="against", dora="against")
    chamber.close()
    assert chamber.state(opening.proposal) == "defeated"


def test_ghsa_m6w8_what_was_voted_is_what_runs() -> None:
    of = charter()
    parameters = patch_parameters(of, [{"op": "replace", "path": "/learning/learning_rate", "value": 0.5}])
    chamber = Chamber()
    for lie in (
        {"patch": [{"op": "replace", "path": "/learning/learning_rate", "value": 0.6}]},
        {"result": "sha256:" + "0" * 64},
        {"base": "sha256:" + "0" * 64},
    ):
        note = sign(proposal(of, feature="config-patch", parameters={**parameters, **lie}))
        refused(chamber, note, Code.PROPOSAL_STALE, "it is")
    by_all(chamber, feature="config-patch", parameters=parameters)
    assert chamber.charter.learning.learning_rate == 0.5
    assert charter_file.diff(of, chamber.charter) == [
        ("/version", 1, 2),
        ("/learning/learning_rate", 0.01, 0.5),
        ("/features/config-patch", None, True),
    ]
    proven(chamber)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("/members/0/key", "x"),
        ("/voting/pass_percent", 50),
        ("/voting", {}),
        ("/release/licence", "MIT"),
        ("/version", 9),
        ("/features/anything", True),
        ("/learning", {}),
        ("/rounds/paused", True),
        ("/learning/../voting", 1),
        ("/learning/~1voting", 1),
        ("/grants/-", {}),
        ("", {}),
    ],
)
def test_a_patch_outside_the_allowed_paths_is_refused(path: str, value: Any) -> None:
    wish = {"patch": [{"op": "replace", "path": path, "value": value}], "base": "sha256:" + "0" * 64,
            "result": "sha256:" + "0" * 64}  # fmt: skip
    answer = features.check(charter(), "config-patch", wish)
    assert isinstance(answer, Refusal) and answer.code == Code.FEATURE_PARAMETERS_INVALID, answer


@pytest.mark.parametrize(
    "operation",
    [
        {"op": "replace", "path": "/learning/learning_rate", "value": -1},
        {"op": "replace", "path": "/learning/rounds", "value": "many"},
        {"op": "remove", "path": "/learning/batch_size"},
        {"op": "add", "path": "/learning/surprise", "value": 1},
        {"op": "replace", "path": "/rounds/quorum", "value": 99},
    ],
)
def test_a_patch_that_is_valid_json_and_no_charter_is_refused_before_anybody_votes(
    operation: dict[str, Any],
) -> None:
    wish = patch_parameters(charter(), [operation])
    answer = features.check(charter(), "config-patch", wish)
    assert isinstance(answer, Refusal) and answer.code == Code.CHARTER_INVALID, answer


@pytest.mark.parametrize(
    "patch",
    [
        [{"op": "move", "path": "/learning/seed", "from": "/voting/window_s"}],
        [{"op": "copy", "path": "/learning/seed", "from": "/voting/window_s"}],
        [{"op": "remove", "path": "/learning/seed", "value": 1}],
        [{"op": "replace", "path": "/learning/seed"}],
        [{"op": "replace", "path": "/learning/seed", "value": 1, "extra": 1}],
        [],
        "nothing",
        [{"op": "test", "path": "/learning/learning_rate", "value": 0.02}],
        [{"op": "replace", "path": "/learning/no/such", "value": 1}],
    ],
)
def test_a_patch_that_is_none_is_refused(patch: Any) -> None:
    zero = "sha256:" + "0" * 64
    assert isinstance(
        features.check(charter(), "config-patch", {"patch": patch, "base": zero, "result": zero}), Refusal
    )


def test_a_patch_with_a_test_that_holds_at_the_vote_and_not_at_execution_is_stale() -> None:
    chamber = Chamber()
    wish = patch_parameters(
        charter(),
        [
            {"op": "test", "path": "/learning/inner_steps", "value": 10},
            {"op": "replace", "path": "/learning/learning_rate", "value": 0.5},
        ],
    )
    opening = chamber.propose(feature="config-patch", parameters=wish)
    by_all(chamber, proposer="beta")
    chamber.vote(opening, **ALL)
    chamber.close()
    chamber.execute()
    assert chamber.state(opening.proposal) == "stale"
    assert chamber.charter.learning.learning_rate == 0.01
    proven(chamber)


RULED = {
    "window_s": 60,
    "rules": ({"type": "feature.enable", "window_s": 60, "queue_s": 60},),
    "officers": ("coop",),
}


def test_gh6386_a_coordinator_executes_what_is_not_queued_or_before_its_time() -> None:
    chamber = Chamber(charter(voting=RULED))
    opening = chamber.propose()
    chamber.vote(opening, **ALL)
    chamber.close()
    after = features.apply(chamber.charter, "inner-steps", {"steps": 20})
    assert isinstance(after, Charter)
    executed = features.execution_facts(opening.proposal, 1, chamber.charter, after, 2)
    law = Record(Kind.CHARTER, chamber.now_ms, charter_file.canonical(after))
    early = [*chamber.journal.all, fact(Kind.EXECUTION, chamber.now_ms, **executed), law]
    disbelieved(chamber, early, "when it is queued (not before")
    veto = Motion(
        consortium="demo",
        proposal=opening.proposal,
        member="coop",
        motion="veto",
        reason="No.",
        nonce="0" * 16,
    )
    chamber.submit(signer("coop").sign(veto.text))
    late = chamber.now_ms + 60_000
    vetoed = [
        *chamber.journal.all,
        fact(Kind.EXECUTION, late, **executed),
        replace(law, at_ms=late),
    ]
    disbelieved(chamber, vetoed, "when it is vetoed")
    lift = {"feature": "override-veto", "parameters": {"proposal": opening.proposal}, "effective_round": 1}
    by_all(chamber, **lift)
    chamber.now_ms = late
    chamber.execute()
    assert chamber.charter.version == 2
    proven(chamber)


@pytest.mark.parametrize(
    ("member", "by", "why"),
    [("zeta", "zeta", "by 'zeta', who is no member"), ("acme", "beta", "not signed by acme")],
)
def test_a_motion_that_the_coordinator_made_up(member: str, by: str, why: str) -> None:
    chamber = Chamber()
    opening = chamber.propose()
    forged = Motion(
        consortium="demo",
        proposal=opening.proposal,
        member=member,
        motion="discuss",
        reason="-",
        nonce="0" * 16,
    )
    chamber.take([Record(Kind.MOTION, chamber.now_ms, signer(by).sign(forged.text))])
    chamber.vote(opening, **ALL)
    chamber.close()
    chamber.execute()
    disbelieved(chamber, chamber.journal.all, why)


def test_a_proposal_whose_parameters_are_none_is_not_law_whatever_the_tally_says() -> None:
    chamber = Chamber()
    opening = chamber.propose()
    wish = proposal(charter(), parameters={"steps": -1})
    after = features.apply(charter(), "inner-steps", {"steps": 20})
    assert isinstance(after, Charter)
    executed = features.execution_facts(wish.id, 1, charter(), after, 2)
    records = [
        *chamber.journal.all[:-2],
        Record(Kind.PROPOSAL, START_MS, sign(wish)),
        fact(Kind.OPENING, START_MS, **{**opening.facts, "proposal": wish.id}),
        fact(Kind.OUTCOME, START_MS, proposal=7),
        fact(Kind.EXECUTION, START_MS, **executed),
        Record(Kind.CHARTER, START_MS, charter_file.canonical(after)),
    ]
    disbelieved(chamber, records, "could not be voted on")


def test_three_colluding_at_a_third_each_still_need_a_majority_of_heads_to_change_the_rules() -> None:
    contributed = {"acme": 100, "beta": 100, "coop": 100, "dora": 1}
    chamber = weighed(contributed)
    wish = {"feature": "voting-power", "parameters": {"base": "contribution", "curve": "sqrt"}}
    opening = chamber.propose(**wish)
    shares = {m: w / sum(opening.electorate.values()) for m, w in opening.electorate.items()}
    assert all(share <= 1 / 3 for share in shares.values())
    chamber.vote(opening, acme="for", beta="for", coop="against", dora="against")
    chamber.close()
    assert chamber.state(opening.proposal) == "defeated"


def asleep(on: bool) -> Chamber:
    """dora has missed three votes."""
    chamber = Chamber(charter(members=MANY, voting={"window_s": 60, "quorum_percent": 100, "dormancy": on}))
    for number in range(3):
        opening = chamber.propose(nonce=f"{number:032x}", parameters={"steps": 30 + number})
        chamber.vote(opening, acme="for", beta="for", coop="for")
        chamber.now_ms = opening.closes_ms
        chamber.close()
        chamber.execute()
    return chamber


def test_dormant_members_do_not_block_a_quorum_and_are_back_after_two_votes() -> None:
    assert asleep(on=False).charter.version == 1, "dora blocks them"
    chamber = asleep(on=True)
    opening = chamber.propose(nonce="aa" * 16)
    assert opening.dormant == ("dora",)
    chamber.vote(opening, acme="for", beta="for", coop="for")
    chamber.now_ms = opening.closes_ms
    chamber.close()
    chamber.execute()
    assert chamber.charter.version == 2
    proven(chamber)
    for nonce in ("bb", "cc"):
        opening = chamber.propose(nonce=nonce * 16, parameters={"steps": 77 if nonce == "bb" else 78})
        assert opening.dormant == ("dora",)
        chamber.vote(opening, acme="for", beta="for", coop="for", dora="for")
        chamber.close()
        chamber.execute()
    assert chamber.propose(nonce="dd" * 16).dormant == ()
    proven(chamber)


def test_a_coordinator_calls_members_dormant_that_are_not() -> None:
    chamber = Chamber(charter(voting={"window_s": 60, "quorum_percent": 100, "dormancy": True}))
    opening = by_all(chamber)
    at = next(i for i, r in enumerate(chamber.journal.all) if r.kind is Kind.OPENING)
    records = [*chamber.journal.all]
    records[at] = replace(records[at], body=canonical_json({**opening.facts, "dormant": ["beta"]}))
    disbelieved(chamber, records, "was not opened with")


BOUNDS = ({"path": "/learning/learning_rate", "least": 0.005, "most": 0.02},)


def test_the_optimistic_lane_takes_small_changes_within_bounds_and_nothing_else() -> None:
    chamber = Chamber(charter(voting={"window_s": 60, "optimistic": BOUNDS}))
    small = chamber.propose(feature="learning-rate", parameters={"learning_rate": 0.02})
    large = chamber.propose(feature="learning-rate", parameters={"learning_rate": 0.021})
    other = chamber.propose(
        feature="inner-optimizer", parameters={"optimizer": "muon", "learning_rate": 0.02}
    )
    assert [o.objection for o in (small, large, other)] == ["1/3", "", ""]
    chamber.now_ms = small.closes_ms
    chamber.close()
    chamber.execute()
    assert chamber.charter.learning.learning_rate == 0.02, "nobody objected"
    assert chamber.state(large.proposal) == "defeated"
    proven(chamber)
    again = chamber.propose(feature="learning-rate", parameters={"learning_rate": 0.01}, nonce="ee" * 16)
    chamber.vote(again, beta="against")
    chamber.now_ms = again.closes_ms
    chamber.close()
    assert chamber.state(again.proposal) == "defeated", "a third objects"


@pytest.mark.parametrize(
    "title", ["a\u202eb", "a\u0007b", "a\u200fb", "a\u2066b", "a\nfeature routing", "x" * 1001, ""],
    ids=["override", "bell", "right-to-left mark", "isolate", "second line", "too long", "empty"],
)  # fmt: skip
def test_text_that_hides_or_turns_what_is_signed_is_refused(title: str) -> None:
    honest = sign(proposal(charter(), title="PLACE")).decode()
    refused(Chamber(), honest.replace("PLACE", title).encode(), Code.NOTE_MALFORMED)


def test_html_in_a_title_is_text_like_any_other() -> None:
    chamber = Chamber()
    chamber.propose(title="<script>alert(1)</script> & <b>bold</b>")
    (view,) = chamber.proposals.views()
    assert json.loads(view.model_dump_json())["title"] == "<script>alert(1)</script> & <b>bold</b>"


def test_ten_megabytes_are_refused_before_they_are_read() -> None:
    refused(Chamber(), b"x" * 10_000_000, Code.NOTE_MALFORMED, "the limit is")


@pytest.mark.parametrize(
    "choice", ["yes", "FOR", "for ", "rank", "rank a >b", "credits a 0", "rank a > b > "]
)
def test_an_unknown_choice_is_no_ballot(choice: str) -> None:
    chamber = Chamber()
    opening = chamber.propose()
    note = sign(ballot(opening, "acme", "for")).decode()
    refused(chamber, note.replace("choice for", f"choice {choice}").encode(), Code.NOTE_MALFORMED)


def test_an_order_of_candidates_is_no_answer_to_yes_or_no_and_the_reverse() -> None:
    chamber = Chamber()
    asked = chamber.propose()
    roadmap = chamber.propose(feature="roadmap", parameters={"candidates": ["fp8", "lean"]})
    for opening, choice in (
        (asked, "rank fp8 > lean"),
        (roadmap, "for"),
        (roadmap, "rank fp8 > int4"),
        (roadmap, "credits fp8 1"),
    ):
        refused(chamber, sign(ballot(opening, "acme", choice)), Code.BALLOT_MISMATCH)  # type: ignore[arg-type]
    credits = {"candidates": ["fp8", "lean"], "credits": 9}
    quadratic = chamber.propose(feature="roadmap", parameters=credits, nonce="ab" * 16)
    for choice in ("rank fp8 > lean", "for", "credits fp8 3, lean 1", "credits fp8 1, fp8 1"):
        refused(chamber, sign(ballot(quadratic, "acme", choice)), Code.BALLOT_MISMATCH)  # type: ignore[arg-type]
    chamber.submit(sign(ballot(quadratic, "acme", "credits fp8 2, lean 2")))  # type: ignore[arg-type]
    chamber.submit(sign(ballot(roadmap, "acme", "rank lean > fp8")))  # type: ignore[arg-type]
    chamber.now_ms = roadmap.closes_ms
    chamber.close()
    assert chamber.state(roadmap.proposal) == "ranked"
    assert chamber.execute() == []
    view = chamber.proposals.views()[1]
    assert view.tiers == (("lean",), ("fp8",))


def pause(chamber: Chamber, pauses: Pauses, by: str, *, nonce: int = 0, **lie: Any) -> list[Record] | Refusal:
    fields = {"consortium": "demo", "member": by, "reason": "Stop.", "nonce": f"{nonce:016x}"}
    note = parse(signer(by).sign(Pause(**{**fields, **lie}).text))
    return pauses.decide_pause(note, chamber.charter, chamber.now_ms)


def test_an_emergency_pause_that_is_not_ratified_lapses_and_cannot_be_chained() -> None:
    chamber, pauses = (
        Chamber(charter(voting={"window_s": 60, "officers": ("coop",), "pause_s": 60})),
        Pauses(),
    )
    for index, record in enumerate(chamber.journal.all):
        pauses.apply(index, record)
    for by, lie in (("acme", {}), ("coop", {"consortium": "other"}), ("zeta", {})):
        answer = pause(chamber, pauses, by, **lie)
        assert isinstance(answer, Refusal) and answer.code == Code.NOT_AUTHORISED
    taken = pause(chamber, pauses, "coop")
    assert not isinstance(taken, Refusal)
    pauses.apply(99, taken[0])
    assert pauses.find(taken[0].body) == 99 and pauses.find(b"no note") is None
    assert pause(chamber, pauses, "coop") == [], "a repeat adds nothing"
    until_ms = chamber.now_ms + 60_000
    assert pauses.until_ms(chamber.charter, chamber.now_ms) == until_ms
    assert pauses.until_ms(chamber.charter, until_ms) == until_ms, "it has lapsed"
    chamber.now_ms = until_ms + 59_999
    answer = pause(chamber, pauses, "coop", nonce=1)
    assert isinstance(answer, Refusal) and answer.code == Code.PROPOSAL_CLOSED
    chamber.now_ms += 1
    assert not isinstance(pause(chamber, pauses, "coop", nonce=1), Refusal)
    powerless = Chamber(charter(voting={"window_s": 60, "officers": ("coop",)}))
    answer = pause(powerless, pauses, "coop", nonce=2)
    assert isinstance(answer, Refusal) and "gives officers no pause" in answer.message


def test_a_charter_edited_by_hand_on_a_sites_disk_proves_nothing() -> None:
    chamber = Chamber()
    by_all(chamber)
    edited = charter_file.from_canonical(
        charter_file.canonical(chamber.founding).replace(b'"batch_size":4', b'"batch_size":8')
    )
    log = chamber.journal
    answer = verify_chain(log.entries(), log.checkpoint(), [], trust=replace(chamber.trust, founding=edited))
    assert isinstance(answer, Refusal) and "our partner signed" in answer.message


def test_whoever_carries_it_out_and_however_often_the_result_is_the_same() -> None:
    chamber = Chamber()
    opening = chamber.propose()
    chamber.vote(opening, **ALL)
    chamber.close()
    first = chamber.proposals.decide_execute(chamber.charter, 2, chamber.now_ms)
    other = Proposals()
    for index, record in enumerate(chamber.journal.all):
        other.apply(index, record)
    assert other.decide_execute(chamber.charter, 2, chamber.now_ms) == first
    assert parse(chamber.journal.all[-2].body).text.startswith("hansa-ballot/v1")
