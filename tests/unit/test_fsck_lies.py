"""One lie at a time, told by the coordinator alone or together with a partner who signs it: each is named.

A lie is one record that says something else than it should. The table has what it lies about, what it says instead,
and the words by which the audit finds it at that very record.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, cast

import pytest

from commons.ballots import Ballot, Proposal
from commons.claims import ConvertNote, CountersignNote, DisputeNote, RulingNote
from commons.log import Checkpoint
from commons.notes import digest, parse
from commons.records import Kind, Record, fact
from commons.work import EvaluationNote, UpdateNote, UsageNote
from governance.fsck import Rule, fsck, judge
from governance.journal import Journal
from tests.simulation.cast import signer
from tests.support.histories import (
    FixedClock,
    Histories,
    Records,
    changed,
    charters,
    log_key,
    rewritten,
    said,
    simulated,
    where,
)

Facts = dict[str, Any]
OTHER = digest(b"something else")
JANUARY_MS, FEBRUARY_MS = 915_148_800_000, 917_827_200_000
"""1999"""
WORDS = {
    Kind.PROPOSAL: Proposal,
    Kind.BALLOT: Ballot,
    Kind.UPDATE: UpdateNote,
    Kind.USAGE: UsageNote,
    Kind.EVALUATION: EvaluationNote,
    Kind.DISPUTE: DisputeNote,
    Kind.RULING: RulingNote,
    Kind.CONVERT: ConvertNote,
}


@pytest.fixture(scope="module")
def histories() -> Iterator[Histories]:
    with simulated() as made:
        yield made


def always(_: Facts) -> bool:
    return True


FACTS: tuple[tuple[Kind | str, Callable[[Facts], bool], Facts | Callable[[Facts], Facts], Rule, str], ...] = (
    (Kind.RUN, always, lambda f: {"rounds": f["rounds"] + 1}, Rule.RUN, "by another charter"),
    (Kind.ROUND, always, lambda f: {"quorum": f["quorum"] + 1}, Rule.ROUND, "another quorum"),
    (Kind.ROUND, always, {"lease_until_ms": 2**60}, Rule.ROUND, "longer leases"),
    (Kind.ROUND, always, {"base": OTHER}, Rule.ROUND, "from the last state"),
    (Kind.ROUND, always, {"charter": OTHER}, Rule.ROUND, "under another charter"),
    (Kind.ROUND, always, lambda f: {"holds": f["holds"] | {"moon": 1}}, Rule.ROUND, "does not name"),
    (Kind.ROUND, always, lambda f: {"attempt": f["attempt"] + 1}, Rule.ROUND, "due was round"),
    (Kind.ROUND, lambda f: bool(f["holds"]), {"holds": {}}, Rule.ENDING, "still held"),
    (Kind.CLOSE, always, {"base": OTHER}, Rule.ROUND, "on another base"),
    (Kind.CLOSE, always, {"missing": ["moon"]}, Rule.ROUND, "others as missing"),
    (Kind.CLOSE, always, lambda f: {"round": f["round"] + 1}, Rule.ROUND, "which is not open"),
    (Kind.CLOSE, always, {"contributors": []}, Rule.ROUND, "combines nothing"),
    (Kind.FINISH, always, {"state": OTHER}, Rule.ROUND, "another round or state"),
    (Kind.FINISH, lambda f: f["phase"] == "stopped", {"phase": "finished"}, Rule.ROUND, "calls run r1 finished"),
    (Kind.OUTCOME, lambda f: f["state"] == "defeated", {"state": "stale"}, Rule.VOTE, "stale, which it is not"),
    (Kind.OUTCOME, always, {"proposal": OTHER}, Rule.VOTE, "never opened"),
    (Kind.EXECUTION, always, {"base": OTHER}, Rule.CHARTER, "does not describe"),
    (Kind.EXECUTION, always, {"round": 0}, Rule.VOTE, "it was voted from"),
    (Kind.EXECUTION, always, {"proposal": OTHER}, Rule.VOTE, "never voted on"),
    (Kind.PERIOD, always, lambda f: {"begin_ms": f["begin_ms"] - 1}, Rule.PERIOD, "by the calendar"),
    (Kind.PERIOD, always, lambda f: {"records": f["records"] - 1}, Rule.PERIOD, "they were"),
    (Kind.PERIOD, always, {"period": "1999-01", "begin_ms": JANUARY_MS, "end_ms": FEBRUARY_MS}, Rule.PERIOD, "nothing was written"),
    (Kind.PERIOD, always, {"period": "2999-q4"}, Rule.PERIOD, "before it is over"),
    ("hold", always, {"expires_ms": 1}, Rule.HOLD, "had expired by then"),
    ("hold", always, {"rate_card": OTHER}, Rule.HOLD, "another rate card"),
    ("hold", always, {"partner": "moon"}, Rule.HOLD, "the charter says"),
    ("hold", always, {"payer": "moon", "debit": "partner/moon/budget"}, Rule.OVERDRAFT, "which has 0"),
    ("hold", always, lambda f: {"id": f["id"].replace("hold/", "hold/moon/")}, Rule.HOLD, "calls a hold for"),
    ("hold", lambda f: "tops" in f, {"tops": "hold/none"}, Rule.HOLD, "may not be topped up"),
    ("settle", always, lambda f: {"returned_micro": f["returned_micro"] + 1}, Rule.CHARGE, "does not return"),
    ("settle", always, {"payer": "moon"}, Rule.ENDING, "as if it were for something else"),
    ("settle", lambda f: "percent" in f, {"percent": 99}, Rule.CHARGE, "another percent"),
    ("release", always, lambda f: {"id": f["id"] + "x"}, Rule.ENDING, "as if it were for something else"),
    ("release", always, {"hold": "hold/none"}, Rule.ENDING, "a hold ends once"),
    ("grant", lambda f: f["id"].count("/") == 1, lambda f: {"partner": "moon"}, Rule.GRANT, "to moon"),
    ("grant", lambda f: "priority" in f, {"priority": 999}, Rule.GRANT, "grants"),
    ("breakage", always, lambda f: {"id": f["id"] + "9"}, Rule.BREAKAGE, "expected breakage/"),
    ("contribution", always, {"hold": "hold/none"}, Rule.CONTRIBUTION, "not about to be settled"),
    (
        "reversal",
        lambda f: f["debit"].startswith("suspense/"),
        lambda f: {"amount_micro": f["amount_micro"] + 1},
        Rule.DISPUTE,
        "upheld were",
    ),
    ("reversal", always, {"site": "moon"}, Rule.CORRECTION, "as if it were for something else"),
    ("reversal", always, {"id": "repair/1"}, Rule.CORRECTION, "which is no reason for it"),
    ("dispute", always, lambda f: {"id": f["id"] + "x"}, Rule.DISPUTE, "is called"),
    ("dispute", always, {"disputes": "settle/none"}, Rule.FORM, "there is no charge"),
    ("convert", always, {"rate_card": OTHER}, Rule.CONVERSION, "by another rate card"),
    ("rounding", lambda f: "hold" in f, lambda f: {"amount": f["amount"] + 1}, Rule.CHARGE, "due are"),
    ("release", always, {"type": "gift"}, Rule.FORM, "a transfer of type 'gift'"),
)  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "when", "lie", "rule", "words"), FACTS, ids=[f"{k}-{re.sub(r'[^a-z]+', '-', w)}" for k, _, _, _, w in FACTS]
)  # fmt: skip
def test_a_fact_that_says_something_else_is_named(
    kind: Kind | str,
    when: Callable[[Facts], bool],
    lie: Facts | Callable[[Facts], Facts],
    rule: Rule,
    words: str,
    histories: Histories,
) -> None:
    def evil(records: Records) -> tuple[Records, int]:
        at = where(records, kind, when)
        return changed(records, at, **(lie if isinstance(lie, dict) else lie(records[at].facts)))

    expect(histories, evil, rule, words)


def other_member(records: Records, name: str) -> str:
    return next(m.name for m in charters(records)[1].members if m.name != name)


Lie = Callable[[Records, Any], Facts]
SIGNED: tuple[tuple[Kind, Lie, Rule, str], ...] = (
    (Kind.UPDATE, lambda r, n: {"base": OTHER}, Rule.UPDATE, "starts from another state"),
    (Kind.UPDATE, lambda r, n: {"consortium": "moon"}, Rule.UPDATE, "of another consortium"),
    (Kind.UPDATE, lambda r, n: {"tokens": n.tokens + 1}, Rule.USAGE, "for another update"),
    (Kind.USAGE, lambda r, n: {"lease": n.lease + "0"}, Rule.USAGE, "its lease was"),
    (Kind.USAGE, lambda r, n: {"started_ms": 1}, Rule.USAGE, "outside its lease"),
    (Kind.USAGE, lambda r, n: {"device": "moon"}, Rule.USAGE, "not its device in the charter"),
    (Kind.USAGE, lambda r, n: {"round": n.round + 1}, Rule.USAGE, "other work than the update"),
    (Kind.EVALUATION, lambda r, n: {"state": OTHER}, Rule.ROUND, "another state than the run's last"),
    (Kind.PROPOSAL, lambda r, n: {"feature": "moon"}, Rule.VOTE, "proposes what cannot be"),
    (Kind.PROPOSAL, lambda r, n: {"charter": OTHER}, Rule.VOTE, "for another charter"),
    (Kind.BALLOT, lambda r, n: {"rules": OTHER}, Rule.VOTE, "cannot count"),
    (Kind.BALLOT, lambda r, n: {"proposal": OTHER}, Rule.VOTE, "never opened"),
    (
        Kind.DISPUTE,
        lambda r, n: {"partner": other_member(r, n.partner)},
        Rule.DISPUTE,
        "nothing follows from",
    ),
    (Kind.DISPUTE, lambda r, n: {"amount_micro": n.amount_micro + 1}, Rule.DISPUTE, "nothing follows from"),
    (Kind.RULING, lambda r, n: {"partner": other_member(r, n.partner)}, Rule.DISPUTE, "is for"),
    (Kind.RULING, lambda r, n: {"dispute": OTHER}, Rule.DISPUTE, "is no dispute here"),
    (Kind.CONVERT, lambda r, n: {"amount_ms": 2**60}, Rule.CONVERSION, "pledged"),
    (Kind.CONVERT, lambda r, n: {"device": "moon"}, Rule.CONVERSION, "which has no rate"),
)


@pytest.mark.parametrize(
    ("kind", "lie", "rule", "words"), SIGNED, ids=[f"{k}-{re.sub(r'[^a-z]+', '-', w)}" for k, _, _, w in SIGNED]
)  # fmt: skip
def test_a_lie_that_a_partner_signs_is_named(
    kind: Kind, lie: Lie, rule: Rule, words: str, histories: Histories
) -> None:
    def evil(records: Records) -> tuple[Records, int]:
        for at, record in enumerate(records):
            if record.kind is kind:
                records[at] = signed_anew(record, lie(records, read(record)))
                return records, at + (words == "for another update")
        raise LookupError(kind)

    expect(histories, evil, rule, words)


def read(record: Record) -> Any:
    return cast(Any, WORDS[record.kind]).from_note(parse(record.body))


def signed_anew(record: Record, lie: Facts) -> Record:
    """The note with other words, under the key that signed it."""
    note = parse(record.body)
    told = replace(read(record), **lie)
    text = told.compose() if hasattr(told, "compose") else told.text
    name = getattr(told, "partner", note.signatures[0].name)
    return Record(record.kind, record.at_ms, signer(name).sign(text))


def expect(
    histories: Histories, evil: Callable[[Records], tuple[Records, int]], rule: Rule, words: str
) -> None:
    records, index = histories.with_evil(evil)
    found = judge(records)
    assert any(f.rule is rule and f.index == index and words in f.what for f in found), (
        f"expected {rule} at {index} with {words!r}:\n{said(found)}"
    )


def pays_twice_for_one_work(records: Records) -> tuple[Records, int]:
    """Another hold for the same round, settled for the same usage."""
    at = where(records, "settle", lambda f: "/top" not in f["hold"])
    settle, name = records[at].facts, records[at].facts["hold"]
    hold = next(r.facts for r in records if r.kind is Kind.TRANSFER and r.facts["id"] == name)
    again = {"id": f"{name}/9", "expires_ms": 2**60}
    twice = {"id": settle["id"] + "/9", "hold": again["id"]}
    at_ms = records[at].at_ms
    records[at + 1 : at + 1] = [
        fact(Kind.TRANSFER, at_ms, **(hold | again)),
        fact(Kind.TRANSFER, at_ms, **(settle | twice)),
    ]
    return records, at + 2


def books_no_rounding(records: Records) -> tuple[Records, int]:
    at = where(records, "rounding", lambda f: "hold" in f)
    name = records.pop(at).facts["hold"].replace("hold/", "settle/", 1)
    return records, where(records, "settle", lambda f: f["id"] == name)


def returns_a_topup_that_was_needed(records: Records) -> tuple[Records, int]:
    at = where(records, "settle", lambda f: "/top" in f["hold"])
    facts = records[at].facts
    whole = facts["amount_micro"] + facts["returned_micro"]
    name = facts["id"].replace("settle/", "release/")
    return changed(records, at, type="release", id=name, amount_micro=whole)


def rejects_and_admits(records: Records) -> tuple[Records, int]:
    at = where(records, Kind.UPDATE)
    said_so = read(records[at])
    told = {"run": said_so.run, "round": said_so.round, "site": said_so.site}
    rejected = {"code": "no", "message": "no", "update": ""}
    records.insert(at, fact(Kind.REJECTION, records[at].at_ms, **told, **rejected))
    return records, at + 1


def admits_after_the_lease(records: Records) -> tuple[Records, int]:
    at = where(records, Kind.UPDATE)
    opened = max(i for i in range(at) if records[i].kind is Kind.ROUND)
    changed(records, opened, lease_until_ms=records[at].at_ms - 1)
    return records, at


def admits_a_site_that_was_not_asked(records: Records) -> tuple[Records, int]:
    at = where(records, Kind.UPDATE)
    opened = max(i for i in range(at) if records[i].kind is Kind.ROUND)
    holds = records[opened].facts["holds"]
    site = read(records[at]).site
    changed(records, opened, holds={s: m for s, m in holds.items() if s != site})
    return records, at


def rejects_when_all_is_over(records: Records) -> tuple[Records, int]:
    at = where(records, Kind.REJECTION)
    records.append(fact(Kind.REJECTION, records[-1].at_ms, **records[at].facts))
    return records, len(records) - 1


def evaluates_before_the_end(records: Records) -> tuple[Records, int]:
    note = records[where(records, Kind.EVALUATION)].body
    at = max(i for i, r in enumerate(records) if r.kind is Kind.ROUND)
    records.insert(at + 1, Record(Kind.EVALUATION, records[at].at_ms, note))
    return records, at + 1


def makes_law_in_the_middle_of_a_round(records: Records) -> tuple[Records, int]:
    law = records[where(records, Kind.EXECUTION)]
    at = where(records, Kind.ROUND)
    records.insert(at + 1, fact(Kind.EXECUTION, records[at].at_ms, **law.facts))
    return records, at + 1


def ends_after_a_proposal(records: Records) -> tuple[Records, int]:
    at = where(records, Kind.PROPOSAL)
    return records[: at + 1], at


def has_no_founding_charter(records: Records) -> tuple[Records, int]:
    del records[1]
    return records, 1


def founds_on_a_later_version(records: Records) -> tuple[Records, int]:
    records[1] = Record(Kind.CHARTER, records[1].at_ms, records[where(records, Kind.EXECUTION) + 1].body)
    return records, 1


def countersigns_what_is_not_closed(records: Records) -> tuple[Records, int]:
    charter = charters(records)[1]
    member = charter.members[0].name
    note = CountersignNote(
        consortium=charter.consortium.name, partner=member, period="2999-01", statement=OTHER
    )
    records.append(Record(Kind.COUNTERSIGN, records[-1].at_ms, signer(member).sign(note.text)))
    return records, len(records) - 1


def disputes_what_another_paid(records: Records) -> tuple[Records, int]:
    at = where(records, Kind.DISPUTE)
    stranger = other_member(records, read(records[at]).partner)
    records[at] = signed_anew(records[at], {"partner": stranger})
    new = digest(parse(records[at].body).text.encode())
    tail = new.removeprefix("sha256:")[:32]
    named = {"id": f"dispute/{tail}", "dispute": new, "credit": f"suspense/{tail}", "partner": stranger}
    return changed(records, at + 1, **named)


def converts_what_nobody_asked_for(records: Records) -> tuple[Records, int]:
    at = where(records, Kind.CONVERT)
    records.insert(
        at, fact(Kind.TRANSFER, records[at].at_ms, **records[at + 1].facts | {"id": "convert/x/time"})
    )
    return records, at


STORIES: tuple[tuple[Callable[[Records], tuple[Records, int]], Rule, str], ...] = (
    (pays_twice_for_one_work, Rule.CHARGE, "charges"),
    (books_no_rounding, Rule.CHARGE, "booked nowhere"),
    (returns_a_topup_that_was_needed, Rule.CHARGE, "were to be charged"),
    (rejects_and_admits, Rule.UPDATE, "was rejected before"),
    (admits_after_the_lease, Rule.UPDATE, "after its lease"),
    (admits_a_site_that_was_not_asked, Rule.UPDATE, "has no part in round"),
    (rejects_when_all_is_over, Rule.ROUND, "which is not open"),
    (evaluates_before_the_end, Rule.ROUND, "before its last round"),
    (makes_law_in_the_middle_of_a_round, Rule.ROUND, "in the middle of a round"),
    (ends_after_a_proposal, Rule.VOTE, "must follow it is missing"),
    (has_no_founding_charter, Rule.FOUNDING, "is not the founding charter"),
    (founds_on_a_later_version, Rule.FOUNDING, "founds on version 2"),
    (disputes_what_another_paid, Rule.DISPUTE, "who did not pay for it"),
    (converts_what_nobody_asked_for, Rule.CONVERSION, "without a cause"),
    (countersigns_what_is_not_closed, Rule.PERIOD, "which is not closed"),
)


@pytest.mark.parametrize(("evil", "rule", "words"), STORIES, ids=[evil.__name__ for evil, _, _ in STORIES])
def test_a_history_that_cannot_be_is_named(
    evil: Callable[[Records], tuple[Records, int]], rule: Rule, words: str, histories: Histories
) -> None:
    expect(histories, evil, rule, words)


def test_a_published_checkpoint_of_another_tree_is_found(histories: Histories, tmp_path: Any) -> None:
    records = histories.of(0)
    key = log_key(records)
    path = rewritten(tmp_path, records, key)
    journal = Journal.open(path, signer=key, clock=FixedClock())
    journal.publish(9, Checkpoint(key.name, 9, b"\x00" * 32).sign(key))
    journal.close()
    report = fsck(path)
    assert [(f.rule, f.index) for f in report.findings] == [(Rule.CHECKPOINT, 8)], said(report.findings)
    assert "last published checkpoint, over 9 records" in report.findings[0].what
