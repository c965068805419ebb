"""A site believes a charter only by proof: a coordinator that lies is refused, and told at which step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from commons import charter_file, features
from commons.ballots import Choice
from commons.chain import LACKS, Entry, Trust, VerifiedCharter, Wanted, verify_chain
from commons.charter import Charter
from commons.clock import SystemClock
from commons.cosignature import Cosigner, with_cosignatures
from commons.errors import Code, Refusal
from commons.learning import Since
from commons.notes import Signer
from commons.opening import Opening
from commons.records import Kind, Record, canonical_json, fact
from governance.consortium import Consortium
from governance.journal import Journal
from governance.proof import chain_bundle
from tests.support.chamber import (
    LOG,
    START_MS,
    WINDOW_MS,
    Chamber,
    Log,
    ballot,
    charter,
    delegation,
    founding_notes,
    proposal,
    sign,
    signer,
)

GENESIS, FOUNDED, PROPOSAL, OPENING, OUTCOME, EXECUTION, LAW = 0, 1, 7, 8, 12, 13, 14
"""Where the honest journal has what."""


def honest() -> Chamber:
    """Founded, two sites enrolled, one proposal of acme passed by acme and coop against beta, executed."""
    chamber = Chamber()
    for partner, site in (("acme", "berlin"), ("beta", "turin")):
        chamber.take(chamber.members.decide_enrol_site(delegation(partner, site), chamber.now_ms))
    opening = chamber.propose()
    chamber.now_ms += 1
    chamber.vote(opening, acme="for", beta="against", coop="for")
    chamber.close()
    chamber.execute()
    return chamber


def verify(
    records: Sequence[Record], *, without: Sequence[int] = (), founding: Charter | None = None, **more: Any
) -> VerifiedCharter | Refusal:
    log = Log(records)
    trust = Trust.of(founding or charter())
    return verify_chain(log.entries(without=without), log.checkpoint(), [], trust=trust, **more)


def refused(answer: VerifiedCharter | Refusal, step: str, what: str) -> None:
    assert isinstance(answer, Refusal), "believed a lie"
    assert answer.message.startswith(f"step {step}: "), answer.message
    assert what in answer.message, answer.message
    assert answer.details["step"] == int(step[0])


def changed(index: int, lie: Callable[[Record], Record]) -> list[Record]:
    records = list(honest().journal.all)
    records[index] = lie(records[index])
    return records


def facts(**changes: Any) -> Callable[[Record], Record]:
    return lambda record: replace(record, body=canonical_json({**record.facts, **changes}))


def test_an_honest_coordinator_is_believed_and_each_step_is_told() -> None:
    chamber = honest()
    assert [r.kind for r in chamber.journal.all][5:] == [
        Kind.SITE, Kind.SITE, Kind.PROPOSAL, Kind.OPENING, *[Kind.BALLOT] * 3, Kind.OUTCOME, Kind.EXECUTION,
        Kind.CHARTER,
    ]  # fmt: skip
    found = verify(chamber.journal.all)
    assert isinstance(found, VerifiedCharter), found
    assert (found.version, found.charter, found.digest) == (
        2,
        chamber.charter,
        charter_file.digest(chamber.charter),
    )
    assert found.checkpoint == chamber.journal.head
    assert found.sites == {"berlin": signer("acme/berlin").verifier, "turin": signer("beta/turin").verifier}
    (executed,) = found.executed
    assert (executed.proposal.title, executed.round, executed.version) == ("Twice the steps", 2, 2)
    assert (executed.tally.for_weight, executed.tally.against_weight) == (2, 1)
    assert [step[:2] for step in found.steps] == ["1 ", "2 ", "3 ", "4 ", "5 ", "6 ", "7 "]
    assert "P-0001" in found.steps[4]


def test_a_consortium_without_votes_is_believed_on_its_founding() -> None:
    found = verify(Chamber().journal.all)
    assert isinstance(found, VerifiedCharter)
    assert (found.version, found.executed, found.sites) == (1, (), {})


def test_other_records_between_and_two_votes_in_a_row_do_not_disturb() -> None:
    chamber = Chamber()
    chamber.take([fact(Kind.TRANSFER, chamber.now_ms, id="x")])
    first = chamber.propose(effective_round=1)
    second = chamber.propose(feature="routing", parameters={"routing": "lean"}, proposer="coop")
    lost = chamber.propose(feature="public-share", parameters={"share": 0.5}, proposer="beta")
    for opening in (first, lost, second):
        no: Choice = "against" if opening is lost else "for"
        chamber.vote(opening, acme="against", beta=no, coop=no)
    chamber.close()
    chamber.execute(5)
    chamber.pass_into_law(feature="learning-rate", parameters={"learning_rate": 0.5})
    stale = chamber.propose(parameters={"steps": 1})
    assert chamber.charter.version == 4 and stale.number == 5
    found = verify(chamber.journal.all)
    assert isinstance(found, VerifiedCharter), found
    assert found.charter == chamber.charter
    assert [e.opening.number for e in found.executed] == [1, 2, 4]


def test_the_bundle_holds_what_is_needed_and_no_more() -> None:
    chamber = honest()
    have = chamber.journal.head
    chamber.take([fact(Kind.TRANSFER, chamber.now_ms, id="x")] * 9)
    chamber.propose(feature="routing", parameters={"routing": "lean"})
    bundle = chain_bundle(chamber, Wanted(have.size))
    assert not isinstance(bundle, Refusal)
    checkpoint, entries, consistency = bundle
    assert [index for index, _, _ in entries] == list(range(have.size))
    found = verify_chain(entries, checkpoint, consistency, trust=chamber.trust, have=have, least_version=2)
    assert isinstance(found, VerifiedCharter), found
    assert "extends the journal we saw at size 15" in found.steps[1]
    older = chain_bundle(chamber, Wanted(999))
    assert isinstance(older, Refusal) and older.code == Code.LOG_FORKED


def test_the_coordinators_own_store_proves_the_same(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path / "journal.db", signer=LOG, clock=SystemClock())
    try:
        consortium = Consortium(journal, SystemClock())
        of = charter()
        consortium.commit(lambda now: consortium.members.decide_found(of, founding_notes(of), LOG.vkey, now))
        consortium.commit(lambda now: consortium.proposals.decide_submit(sign(proposal(of)), of, now))
        opening = Opening.from_facts(journal.record(journal.size - 1).facts)
        for member in ("acme", "beta", "coop"):
            note = sign(ballot(opening, member, "for"))
            consortium.commit(lambda now, note=note: consortium.proposals.decide_submit(note, of, now))
        consortium.commit(consortium.proposals.decide_close)
        consortium.commit(lambda now: consortium.proposals.decide_execute(of, 2, now))
        bundle = chain_bundle(consortium, Wanted())
        assert not isinstance(bundle, Refusal)
        checkpoint, entries, consistency = bundle
        found = verify_chain(entries, checkpoint, consistency, trust=Trust.of(of))
        assert isinstance(found, VerifiedCharter), found
        assert found.charter == consortium.charter and found.version == 2
    finally:
        journal.close()


def test_where_a_run_stood_when_its_rounds_became_longer_is_proven_too() -> None:
    chamber = Chamber()
    chamber.vote(chamber.propose(), acme="for", beta="for", coop="for")
    chamber.close()
    chamber.execute(3, run="run-1")
    proven = verify(chamber.journal.all)
    assert isinstance(proven, VerifiedCharter)
    assert proven.charter.learning.since == Since(run="run-1", round=3, step=20)
    *before, executed, law = chamber.journal.all
    forged = Record(Kind.CHARTER, law.at_ms, law.body.replace(b'"step":20', b'"step":10'))
    refused(verify([*before, executed, forged]), "5 votes", "/learning/since/step should be 20, is 10")
    elsewhere = fact(Kind.EXECUTION, executed.at_ms, **executed.facts | {"run": "run-2"})
    refused(verify([*before, elsewhere, law]), "5 votes", "/learning/since/run should be 'run-2', is 'run-1'")


def test_step_1_another_key_signs_the_checkpoint() -> None:
    log = honest().journal
    stranger = log.head.sign(Signer("demo", b"\x01" * 32))
    answer = verify_chain(log.entries(), stranger, [], trust=honest().trust)
    refused(answer, "1 checkpoint", "no trusted key has signed")
    assert isinstance(answer, Refusal) and answer.code == Code.SIGNATURE_INVALID
    refused(verify_chain(log.entries(), b"", [], trust=honest().trust), "1 checkpoint", "")


def test_step_2_a_journal_that_was_rewritten_or_cut_is_a_fork() -> None:
    have = honest().journal.head
    rewritten = Chamber(charter())
    for _ in range(4):
        rewritten.take([fact(Kind.TRANSFER, START_MS, id="x")] * 4)
    log = rewritten.journal
    path = log.consistency(have.size, log.size)
    answer = verify_chain(log.entries(), log.checkpoint(), path, trust=rewritten.trust, have=have)
    refused(answer, "2 consistency", "was another")
    assert isinstance(answer, Refusal) and answer.code == Code.LOG_FORKED
    short = Chamber()
    answer = verify_chain(
        short.journal.entries(), short.journal.checkpoint(), [], trust=short.trust, have=have
    )
    refused(answer, "2 consistency", "had 15 records when we last looked, now it shows 5")


def test_step_3_a_record_that_is_not_in_the_journal() -> None:
    chamber = honest()
    entries = chamber.journal.entries()
    index, leaf, path = entries[LAW]

    def check(shown: Sequence[Entry]) -> VerifiedCharter | Refusal:
        return verify_chain(shown, chamber.journal.checkpoint(), [], trust=chamber.trust)

    forged = leaf.replace(b'"inner_steps":20', b'"inner_steps":30')
    refused(check([*entries[:LAW], (index, forged, path)]), "3 inclusion", "is not under root")
    refused(check([*entries[:LAW], (index, leaf, path[:-1])]), "3 inclusion", "expected")
    refused(check([*entries, entries[LAW]]), "3 inclusion", "is shown after record")
    refused(check(entries[::-1]), "3 inclusion", "is shown after record")


def test_step_3_a_clock_that_runs_backwards_and_a_leaf_that_is_no_record() -> None:
    records = changed(LAW, lambda r: replace(r, at_ms=1))
    refused(verify(records), "3 inclusion", "ran backwards")

    class Raw(Record):
        @property
        def leaf(self) -> bytes:
            return b"not a record"

    refused(verify([Raw(Kind.GENESIS, 0, b"")]), "3 inclusion", "not a journal record")


def test_step_4_another_founding() -> None:
    other = charter(voting__window_s=1)
    answer = verify(Chamber(other).journal.all)
    refused(answer, "4 founding", "our partner signed")
    assert isinstance(answer, Refusal) and answer.code == Code.CHARTER_UNPROVEN
    refused(verify(changed(GENESIS, facts(log_key="x"))), "4 founding", "record 0")
    refused(verify(changed(GENESIS, lambda r: replace(r, kind=Kind.TRANSFER))), "4 founding", "record 0")
    refused(verify(honest().journal.all, without=[GENESIS]), "4 founding", "record 0")
    refused(verify(honest().journal.all, without=[FOUNDED]), "4 founding", "the journal's first charter")
    refused(verify(honest().journal.all, without=[3]), "4 founding", "no signature of beta")
    forged = founding_notes(charter())[0].replace(b"partner acme", b"partner beta")
    refused(verify(changed(3, lambda r: replace(r, body=forged))), "4 founding", "not signed by beta")


def test_a_trust_with_a_broken_key_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="not a verifier key"):
        Trust.of(charter(consortium__log_key="nonsense"))
    members = tuple({**m.model_dump(), "key": "nonsense"} for m in charter().members)
    with pytest.raises(ValueError, match=r"members\.0\.key: not a verifier key"):
        Trust.of(charter(members=members))


def test_lying_coordinator_changed_hyper_parameter_in_a_voted_charter() -> None:
    def lie(record: Record) -> Record:
        return replace(record, body=record.body.replace(b'"learning_rate":0.01', b'"learning_rate":0.02'))

    answer = verify(changed(LAW, lie))
    refused(answer, "5 votes", "/learning/learning_rate should be 0.01, is 0.02")
    assert isinstance(answer, Refusal) and "P-0001 'Twice the steps'" in answer.message


def test_lying_coordinator_changed_hyper_parameter_without_any_vote() -> None:
    chamber = Chamber()
    after = features.apply(charter(), "inner-steps", {"steps": 99})
    assert isinstance(after, Charter)
    law = Record(Kind.CHARTER, START_MS, charter_file.canonical(after))
    refused(verify([*chamber.journal.all, law]), "5 votes", "follows from no executed proposal")
    invented = features.execution_facts("sha256:" + "0" * 64, 1, charter(), after, 2)
    records = [*chamber.journal.all, fact(Kind.EXECUTION, START_MS, **invented), law]
    refused(verify(records), "5 votes", "is not shown")


def test_lying_coordinator_leaves_out_records_of_the_vote() -> None:
    records = honest().journal.all
    refused(verify(records, without=[EXECUTION]), "5 votes", "follows from no executed proposal")
    refused(verify(records, without=[PROPOSAL]), "5 votes", "is not shown")
    refused(verify(records, without=[OPENING]), "5 votes", "never opened")
    other = changed(OPENING, lambda r: replace(r, kind=Kind.TRANSFER))
    refused(verify(other), "5 votes", "never opened")
    refused(verify(records, without=[OUTCOME]), "5 votes", "without an outcome")


def test_dropped_ballot_changes_the_recount() -> None:
    records = honest().journal.all
    refused(verify(records, without=[10]), "5 votes", "did not pass: recounted here it is open")
    refused(verify(records, without=[9]), "5 votes", "did not pass")


def test_dropped_ballot_is_proven_by_the_voters_receipt() -> None:
    chamber = Chamber()
    opening = chamber.propose()
    chamber.vote(opening, acme="for", beta="for")
    receipt = sign(ballot(opening, "beta", "against"))
    (index,) = chamber.submit(receipt)
    records = chamber.journal.all
    assert chamber.proposals.views()[0].against_weight == 1
    liar = Chamber()
    liar.propose()
    liar.vote(opening, acme="for", beta="for")
    liar.now_ms = opening.closes_ms
    liar.take([records[index]])
    liar.proposals.items[opening.proposal].ballots.pop()
    liar.close()
    liar.execute()
    assert isinstance(verify(liar.journal.all, without=[index]), VerifiedCharter)
    mine = [(index, receipt)]
    answer = verify(liar.journal.all, without=[index], receipts=mine)
    refused(answer, "5 votes", "beta's ballot on P-0001 has a receipt")


def test_re_votes_in_another_order_than_they_came_contradict_the_voters_receipts() -> None:
    chamber = Chamber()
    opening = chamber.propose()
    notes = [sign(ballot(opening, "beta", choice)) for choice in ("for", "against")]
    for order in (notes, notes[::-1]):
        made = Chamber()
        made.propose()
        receipts = [(made.submit(note)[0], note) for note in order]
        made.vote(opening, acme="for", coop="for")
        made.close()
        made.execute()
        assert isinstance(verify(made.journal.all, receipts=receipts), VerifiedCharter)
        mine = [(index, other) for (index, _), other in zip(receipts, order[::-1], strict=True)]
        for one in mine:
            refused(
                verify(made.journal.all, receipts=[one]), "5 votes", "beta's ballot on P-0001 has a receipt"
            )


def test_a_receipt_is_satisfied_when_its_ballot_counts_or_a_later_one_replaced_it() -> None:
    chamber = Chamber()
    opening = chamber.propose()
    first, last = sign(ballot(opening, "beta", "against")), sign(ballot(opening, "beta", "for"))
    receipts = [(chamber.submit(note)[0], note) for note in (first, last)]
    chamber.vote(opening, acme="for", coop="for")
    chamber.close()
    chamber.execute()
    assert isinstance(verify(chamber.journal.all, receipts=receipts), VerifiedCharter)
    chamber.pass_into_law(feature="public-share", parameters={"share": 0.5})
    assert isinstance(verify(chamber.journal.all, receipts=receipts), VerifiedCharter)
    other = chamber.propose(feature="routing", parameters={"routing": "lean"})
    undecided = [(99, sign(ballot(other, "beta", "for")))]
    assert isinstance(verify(chamber.journal.all, receipts=undecided), VerifiedCharter)


@pytest.mark.parametrize(
    "lie",
    [
        facts(against=0, counted={}),
        facts(**{"for": 3}),
        facts(turnout=2),
        facts(total=30),
        facts(number=2),
        facts(counted={"acme": {"choice": "for", "index": 9}}),
    ],
)
def test_forged_tally_is_recounted(lie: Callable[[Record], Record]) -> None:
    refused(verify(changed(OUTCOME, lie)), "5 votes", "is not the one counted here")


def test_forged_tally_of_a_vote_that_was_lost() -> None:
    chamber = Chamber()
    opening = chamber.propose()
    chamber.vote(opening, acme="for", beta="against", coop="against")
    chamber.close()
    records = list(chamber.journal.all)
    records[-1] = facts(state="passed")(records[-1])
    refused(verify(_executed(records, opening)), "5 votes", "recounted here it is defeated, 1 for, 2 against")


def _executed(records: list[Record], opening: Opening, *, round_number: int = 2) -> list[Record]:
    """The records, and an execution of the default proposal after them, deserved or not."""
    after = features.apply(charter(), "inner-steps", {"steps": 20})
    assert isinstance(after, Charter)
    executed = features.execution_facts(opening.proposal, opening.number, charter(), after, round_number)
    at_ms = records[-1].at_ms
    return [
        *records,
        fact(Kind.EXECUTION, at_ms, **executed),
        Record(Kind.CHARTER, at_ms, charter_file.canonical(after)),
    ]


def test_a_vote_that_is_still_open_is_not_executed() -> None:
    chamber = Chamber()
    opening = chamber.propose()
    chamber.vote(opening, acme="for", beta="for")
    early = fact(Kind.OUTCOME, START_MS, proposal=opening.proposal, number=1, state="passed")
    refused(verify(_executed([*chamber.journal.all, early], opening)), "5 votes", "it is open")


@pytest.mark.parametrize(
    ("lie", "what"),
    [
        (facts(electorate={"acme": 3, "beta": 1, "coop": 1}), "not opened with one vote per member"),
        (facts(electorate={"acme": 1, "coop": 1}), "not opened with one vote per member"),
        (facts(electorate={"acme": 1, "beta": 1, "coop": 1, "zeta": 1}), "not opened with one vote"),
        (facts(quorum_percent=1), "not opened with one vote per member and the rules"),
        (facts(pass_percent=10), "not opened with one vote per member and the rules"),
        (facts(closes_ms=START_MS + 1), "not opened with one vote per member and the rules"),
        (facts(opened_ms=START_MS - 5), "not opened with one vote per member and the rules"),
        (facts(charter="sha256:" + "0" * 64), "not opened with one vote per member and the rules"),
        (facts(extra=1), "not the facts of an opening"),
        (lambda r: replace(r, body=b"[]"), "not a JSON object"),
        (lambda r: replace(r, body=b"[" * 20_000), ""),
        (lambda r: replace(r, body=b"\xff"), ""),
    ],
)
def test_forged_opening_with_other_power_or_rules(lie: Callable[[Record], Record], what: str) -> None:
    refused(verify(changed(OPENING, lie)), "5 votes", what)


@pytest.mark.parametrize(
    ("voter", "by", "what"),
    [
        ("beta", signer("acme"), "not signed by beta"),
        ("beta", Signer("beta", b"\x01" * 32), "not signed by beta"),
        ("beta", signer("beta/turin"), "not signed by beta"),
        ("zeta", signer("zeta"), "'zeta', who is not in its electorate"),
    ],
    ids=["another member's key", "a forged key", "the site's key", "a stranger"],
)
def test_forged_ballot_in_the_journal(voter: str, by: Signer, what: str) -> None:
    opening = Opening.from_facts(honest().journal.record(OPENING).facts)
    forged = sign(ballot(opening, voter, "for"), by)
    refused(verify(changed(10, lambda r: replace(r, body=forged))), "5 votes", what)


@pytest.mark.parametrize(
    "change",
    [
        {"consortium": "other"},
        {"rules": "sha256:" + "0" * 64},
        {"electorate": "sha256:" + "0" * 64},
    ],
)
def test_ballot_replayed_from_another_consortium_or_rules(change: dict[str, str]) -> None:
    opening = Opening.from_facts(honest().journal.record(OPENING).facts)
    replayed = sign(ballot(opening, "beta", "for", **change))
    refused(
        verify(changed(10, lambda r: replace(r, body=replayed))), "5 votes", "outside its window or under"
    )


def test_ballot_replayed_from_another_proposal_is_not_counted_here() -> None:
    opening = Opening.from_facts(honest().journal.record(OPENING).facts)
    elsewhere = sign(ballot(opening, "coop", "for", proposal="sha256:" + "0" * 64))
    refused(verify(changed(11, lambda r: replace(r, body=elsewhere))), "5 votes", "it is open")


def test_ballot_at_the_exact_boundary_and_late_ones_are_refused() -> None:
    for late_ms, believed in ((WINDOW_MS - 1, True), (WINDOW_MS, False)):
        chamber = Chamber()
        opening = chamber.propose()
        chamber.vote(opening, acme="for", beta="for")
        at_ms = START_MS + late_ms
        chamber.take([Record(Kind.BALLOT, at_ms, sign(ballot(opening, "coop", "for")))])
        chamber.now_ms = START_MS + WINDOW_MS
        chamber.close()
        chamber.execute()
        answer = verify(chamber.journal.all)
        if believed:
            assert isinstance(answer, VerifiedCharter), answer
        else:
            refused(
                answer, "5 votes", "coop's ballot on P-0001 'Twice the steps' (record 9) was cast outside"
            )


def test_malleated_ballot_in_the_journal() -> None:
    def lie(record: Record) -> Record:
        return replace(record, body=record.body + record.body.rpartition(b"\n\n")[2])

    refused(verify(changed(10, lie)), "5 votes", "has 2 signatures")
    refused(verify(changed(10, lambda r: replace(r, body=r.body.replace(b"\n", b"\r\n")))), "5 votes", "")


def test_an_old_ballot_recorded_again_by_the_coordinator_does_not_win() -> None:
    chamber = Chamber()
    opening = chamber.propose()
    chamber.vote(opening, acme="for", beta="for")
    chamber.vote(opening, beta="against")
    again = Record(Kind.BALLOT, chamber.now_ms, sign(ballot(opening, "beta", "for")))
    records = [*chamber.journal.all, again]
    stolen = fact(Kind.OUTCOME, opening.closes_ms, proposal=opening.proposal, number=1, state="passed")
    refused(verify(_executed([*records, stolen], opening)), "5 votes", "recounted here it is defeated")


def test_a_proposal_by_a_stranger_or_not_signed_by_its_member() -> None:
    for proposer, by, what in (
        ("zeta", signer("zeta"), "who is no member"),
        ("acme", signer("beta"), "not signed by acme"),
        ("acme", LOG, "not signed by acme"),
    ):
        wanted = proposal(charter(), proposer=proposer)
        opening = Opening.of(wanted, charter(), number=1, now_ms=START_MS)
        records = [
            *Chamber().journal.all,
            Record(Kind.PROPOSAL, START_MS, sign(wanted, by)),
            fact(Kind.OPENING, START_MS, **opening.facts),
        ]
        refused(verify(_executed(records, opening)), "5 votes", what)


@pytest.mark.parametrize("change", [{"consortium": "other"}, {"charter": "sha256:" + "0" * 64}])
def test_a_proposal_made_for_another_consortium_or_charter_is_not_voted_on_here(
    change: dict[str, str],
) -> None:
    wanted = proposal(charter(), **change)
    opening = Opening.of(wanted, charter(), number=1, now_ms=START_MS)
    records = [
        *Chamber().journal.all,
        Record(Kind.PROPOSAL, START_MS, sign(wanted)),
        fact(Kind.OPENING, START_MS, **opening.facts),
    ]
    refused(verify(_executed(records, opening)), "5 votes", "was made for another charter")


def test_execute_twice() -> None:
    chamber = Chamber()
    opening = chamber.pass_into_law()
    after = charter_file.from_canonical(
        charter_file.canonical(chamber.charter).replace(b'"version":2', b'"version":3')
    )
    again = features.execution_facts(opening.proposal, 1, chamber.charter, after, 3)
    records = [
        *chamber.journal.all,
        fact(Kind.EXECUTION, chamber.now_ms, **again),
        Record(Kind.CHARTER, chamber.now_ms, charter_file.canonical(after)),
    ]
    refused(verify(records), "5 votes", "is executed a second time")


def test_executed_before_the_vote_was_decided() -> None:
    chamber = Chamber()
    opening = chamber.propose()
    chamber.vote(opening, acme="for", beta="for", coop="for")
    (outcome,) = chamber.proposals.decide_close(chamber.now_ms)
    refused(verify([*_executed(chamber.journal.all, opening), outcome]), "5 votes", "without an outcome")


def test_a_ballot_recorded_after_the_outcome_does_not_disturb_it() -> None:
    chamber = Chamber()
    opening = chamber.propose()
    chamber.vote(opening, acme="for", beta="for")
    chamber.now_ms = opening.closes_ms
    chamber.close()
    late = Record(Kind.BALLOT, chamber.now_ms, sign(ballot(opening, "coop", "against")))
    found = verify(_executed([*chamber.journal.all, late], opening))
    assert isinstance(found, VerifiedCharter), found


def test_executed_before_its_round() -> None:
    chamber = Chamber()
    opening = chamber.propose(effective_round=7)
    chamber.vote(opening, acme="for", beta="for", coop="for")
    chamber.close()
    refused(verify(_executed(chamber.journal.all, opening)), "5 votes", "in round 2, it was voted from 7")


@pytest.mark.parametrize("lie", [facts(base="x"), facts(version=3), facts(number=4), facts(more=1)])
def test_an_execution_that_tells_another_story(lie: Callable[[Record], Record]) -> None:
    refused(verify(changed(EXECUTION, lie)), "5 votes", "does not describe charter 2")


def test_an_execution_that_names_nothing() -> None:
    refused(verify(changed(EXECUTION, facts(round=True))), "5 votes", "names no proposal and round")
    refused(verify(changed(EXECUTION, facts(proposal=3))), "5 votes", "names no proposal and round")


def test_two_winners_on_the_same_paths_the_second_cannot_be_executed() -> None:
    chamber = Chamber()
    first = chamber.propose()
    second = chamber.propose(proposer="beta", parameters={"steps": 30})
    for opening in (first, second):
        chamber.vote(opening, acme="for", beta="for", coop="for")
    chamber.close()
    passed = list(chamber.journal.all)
    chamber.execute()
    honestly = verify(chamber.journal.all)
    assert isinstance(honestly, VerifiedCharter) and honestly.charter.learning.inner_steps == 20
    after = features.apply(chamber.charter, "inner-steps", {"steps": 30})
    assert isinstance(after, Charter)
    executed = features.execution_facts(second.proposal, 2, chamber.charter, after, 2)
    both = [
        *_executed(passed, first),
        fact(Kind.EXECUTION, START_MS, **executed),
        Record(Kind.CHARTER, START_MS, charter_file.canonical(after)),
    ]
    refused(verify(both), "5 votes", "/learning/inner_steps changed in version 2")
    stale = [*chamber.journal.all, *both[-2:]]
    refused(verify(stale), "5 votes", "changed in version 2")


def test_the_charter_does_not_go_back() -> None:
    chamber = honest()
    hidden = [PROPOSAL, OPENING, 9, 10, 11, OUTCOME, EXECUTION, LAW]
    assert isinstance(verify(chamber.journal.all, without=hidden), VerifiedCharter)
    answer = verify(chamber.journal.all, without=hidden, least_version=2)
    refused(answer, "5 votes", "goes back to version 1; we verified version 2 before")


def test_step_6_a_site_key_its_partner_did_not_sign() -> None:
    forged = delegation("beta", "turin", by=signer("acme"))
    refused(verify(changed(6, lambda r: replace(r, body=forged))), "6 sites", "not signed by beta")
    stranger = delegation("acme", "paris")
    refused(verify(changed(6, lambda r: replace(r, body=stranger))), "6 sites", "no site 'paris'")


def test_a_replaced_site_key_is_not_brought_back_by_recording_it_again() -> None:
    new = Signer("acme/berlin", b"\x07" * 32)
    records = [
        *Chamber().journal.all,
        *(
            Record(Kind.SITE, START_MS, note)
            for note in (
                delegation("acme", "berlin"),
                delegation("acme", "berlin", key=new),
                delegation("acme", "berlin"),
            )
        ),
    ]
    found = verify(records)
    assert isinstance(found, VerifiedCharter)
    assert found.sites == {"berlin": new.verifier}


OUTSIDER = Cosigner(signer("w.example/one"))


def witnessed(quorum: int) -> Chamber:
    """Founded on a charter that asks for `quorum` witnesses and names an outsider; both sites enrolled."""
    outsider = {"name": "one", "vkey": OUTSIDER.vkey, "url": "https://w.example"}
    chamber = Chamber(charter(witnesses={"quorum": quorum, "outsiders": (outsider,)}))
    for partner, site in (("acme", "berlin"), ("beta", "turin")):
        chamber.take(chamber.members.decide_enrol_site(delegation(partner, site), chamber.now_ms))
    return chamber


def verify_witnessed(chamber: Chamber, lines: Sequence[str]) -> VerifiedCharter | Refusal:
    log = chamber.journal
    note = with_cosignatures(log.checkpoint(), lines)
    return verify_chain(log.entries(), note, [], trust=chamber.trust)


def line_by(name: str, text: str, time_s: int = 1_700_000_000) -> str:
    return Cosigner(signer(name)).cosign(text, time_s)


@pytest.mark.parametrize(
    ("quorum", "names"),
    [
        (0, []),
        (1, ["acme/berlin"]),
        (1, ["w.example/one"]),
        (2, ["beta/turin", "acme/berlin"]),
        (2, ["beta/turin", "a stranger's"]),
        (3, ["beta/turin", "w.example/one", "acme/berlin"]),
    ],
)
def test_step_7_as_many_witnesses_as_the_charter_asks_for(quorum: int, names: list[str]) -> None:
    chamber = witnessed(quorum)
    text = chamber.journal.head.text
    strangers = [n for n in names if "/" not in n]
    lines = [line_by(n, text) for n in names if "/" in n] + [line_by("x.example/s", text) for _ in strangers]
    found = verify_witnessed(chamber, lines)
    if strangers:
        refused(found, "7 witnesses", "1 of the 2 witnesses the charter asks for")
        return
    assert isinstance(found, VerifiedCharter), found
    told = found.steps[6]
    assert told == f"7 witnesses: cosigned by {', '.join(names)}, the charter asks for {quorum}" or not quorum


def test_step_7_too_few_witnesses_are_told_by_name() -> None:
    chamber = witnessed(3)
    answer = verify_witnessed(chamber, [line_by("acme/berlin", chamber.journal.head.text)])
    refused(answer, "7 witnesses", "missing are beta/turin, one at https://w.example")
    assert isinstance(answer, Refusal)
    assert (answer.code, answer.details) == (Code.PROOF_INVALID, {"step": 7, LACKS: 2})
    none = verify_witnessed(chamber, [])
    refused(
        none,
        "7 witnesses",
        "0 of the 3 witnesses the charter asks for cosigned the checkpoint of size 7 (nobody)",
    )


@pytest.mark.parametrize(
    ("lie", "what"),
    [
        (lambda text: line_by("beta/turin", text.replace("7", "6", 1)), "by 'beta/turin' is wrong"),
        (lambda text: line_by("beta/turin", text).replace("beta/turin", "acme/berlin"), "1 of the 2"),
        (lambda text: signer("beta/turin").sign(text).decode().partition("\n\n")[2], "1 of the 2"),
        (lambda text: line_by("beta", text), "1 of the 2"),
    ],
)
def test_step_7_a_cosignature_that_is_none(lie: Callable[[str], str], what: str) -> None:
    chamber = witnessed(2)
    text = chamber.journal.head.text
    refused(verify_witnessed(chamber, [line_by("acme/berlin", text), lie(text)]), "7 witnesses", what)


def test_step_7_a_forged_cosignature_is_no_lack_of_witnesses() -> None:
    chamber = witnessed(1)
    text = chamber.journal.head.text
    forged = line_by("beta/turin", text.replace("7", "6", 1))
    answer = verify_witnessed(chamber, [line_by("acme/berlin", text), forged])
    assert isinstance(answer, Refusal)
    assert LACKS not in answer.details


def test_step_7_a_site_that_is_not_enrolled_or_whose_key_was_replaced_does_not_count() -> None:
    chamber = Chamber(charter(witnesses={"quorum": 1}))
    text = chamber.journal.head.text
    answer = verify_witnessed(chamber, [line_by("acme/berlin", text)])
    refused(answer, "7 witnesses", "missing are acme/berlin (not enrolled), beta/turin (not enrolled)")
    new = Signer("acme/berlin", b"\x07" * 32)
    for key in (signer("acme/berlin"), new):
        note = delegation("acme", "berlin", key=key)
        chamber.take(chamber.members.decide_enrol_site(note, chamber.now_ms))
    text = chamber.journal.head.text
    refused(verify_witnessed(chamber, [line_by("acme/berlin", text)]), "7 witnesses", "0 of the 1")
    assert isinstance(verify_witnessed(chamber, [Cosigner(new).cosign(text, 1_700_000_000)]), VerifiedCharter)


def test_step_7_one_key_under_two_names_is_one_witness() -> None:
    chamber = Chamber(charter(witnesses={"quorum": 2}))
    for partner, site in (("acme", "berlin"), ("beta", "turin")):
        note = delegation(partner, site, key=Signer(f"{partner}/{site}", b"\x07" * 32))
        chamber.take(chamber.members.decide_enrol_site(note, chamber.now_ms))
    text = chamber.journal.head.text
    both = [
        Cosigner(Signer(n, b"\x07" * 32)).cosign(text, 1_700_000_000) for n in ("acme/berlin", "beta/turin")
    ]
    refused(verify_witnessed(chamber, both), "7 witnesses", "1 of the 2")


def test_no_single_changed_byte_of_any_record_is_believed_to_say_something_else() -> None:
    records = honest().journal.all
    wanted = verify(records)
    assert isinstance(wanted, VerifiedCharter)
    for index, record in enumerate(records):
        for position in range(0, len(record.body), 37):
            body = bytearray(record.body)
            body[position] ^= 1
            lies = [*records[:index], replace(record, body=bytes(body)), *records[index + 1 :]]
            answer = verify(lies)
            assert isinstance(answer, Refusal), f"record {index} ({record.kind}), byte {position}"
