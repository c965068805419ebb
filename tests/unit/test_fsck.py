"""The audit finds what an evil coordinator, who holds the log key, writes into an otherwise perfect journal."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from commons import charter_file
from commons.errors import StoreError
from commons.names import Digest
from commons.notes import Signer, digest, parse
from commons.records import Kind, Record, fact
from commons.work import UpdateNote, UsageNote
from governance.fsck import Rule, fsck, judge
from governance.fsck_findings import ACTS
from governance.journal import Journal, open_readonly
from governance.journal.tiles import publish
from hansa.cli import app
from tests.support import postgres
from tests.support.chamber import signer
from tests.support.histories import (
    NOTES,
    Evil,
    FixedClock,
    Histories,
    Records,
    added,
    by_stranger,
    changed,
    charters,
    log_key,
    release_note,
    rewritten,
    said,
    simulated,
    where,
)

VECTOR = Path(__file__).parents[1] / "support" / "vectors" / "journal-schema-1.db"
TRANSFERS = (
    "grant",
    "hold",
    "settle",
    "release",
    "expire",
    "contribution",
    "rounding",
    "breakage",
    "reversal",
    "contribution-reversal",
    "dispute",
    "dismiss",
    "convert",
)


@pytest.fixture(scope="module")
def histories() -> Iterator[Histories]:
    with simulated() as made:
        yield made


def spends_what_is_not_there(records: Records) -> tuple[Records, int]:
    return changed(records, where(records, "hold"), amount_micro=2**62)


def holds_for_another_payer(records: Records) -> tuple[Records, int]:
    at = where(records, "hold")
    other = next(m.name for m in charters(records)[1].members if m.name != records[at].facts["payer"])
    return changed(records, at, payer=other, debit=f"partner/{other}/budget")


def ends_a_hold_twice(records: Records) -> tuple[Records, int]:
    at = where(records, "settle")
    again = {"type": "release", "id": "release/again"}
    return added(records, at, Kind.TRANSFER, records[at].facts | again)


def books_one_id_twice(records: Records) -> tuple[Records, int]:
    at = where(records, "grant")
    return added(records, at, Kind.TRANSFER, records[at].facts)


def brings_a_failed_transfer_to_life(records: Records) -> tuple[Records, int]:
    failed = where(records, Kind.REFUSED)
    name = records[failed].facts["id"]
    at = failed + 1 + where(records[failed + 1 :], "hold")
    return changed(records, at, id=name)


def lets_a_hold_expire_before_its_time(records: Records) -> tuple[Records, int]:
    at = where(records, "release", lambda f: "/top" not in f["hold"])
    facts = records[at].facts
    made = next(r.facts for r in records if r.kind is Kind.TRANSFER and r.facts["id"] == facts["hold"])
    if made["expires_ms"] <= records[at].at_ms:
        raise LookupError("it has expired")
    return changed(records, at, type="expire", id=facts["id"].replace("release/", "expire/"))


def forgets_a_hold(records: Records) -> tuple[Records, int]:
    """It is not returned, and the run goes on or ends as if it were."""
    at = where(records, "release", lambda f: "/top" not in f["hold"])
    gone = records[at].facts
    del records[at]
    for index in range(at, len(records)):
        if records[index].kind in (Kind.ROUND, Kind.FINISH):
            return records, index
        if records[index].kind is Kind.TRANSFER:
            facts = records[index].facts
            if (facts["type"], facts.get("round"), facts.get("site")) == (
                "hold",
                gone["round"],
                gone["site"],
            ):
                break
    raise LookupError("the same work is held for again")


def charges_more_than_the_work_costs(records: Records) -> tuple[Records, int]:
    at = where(records, "settle", lambda f: f["returned_micro"] > 0)
    facts = records[at].facts
    more = {"amount_micro": facts["amount_micro"] + 1, "returned_micro": facts["returned_micro"] - 1}
    return changed(records, at, **more)


def charges_more_than_was_held(records: Records) -> tuple[Records, int]:
    at = where(records, "settle")
    return changed(records, at, amount_micro=records[at].facts["amount_micro"] + 10**9)


def names_another_usage(records: Records) -> tuple[Records, int]:
    return changed(records, where(records, "settle"), usage=digest(b"something else"))


def bills_another_measure(records: Records) -> tuple[Records, int]:
    at = where(records, "settle", lambda f: "gflop" in f)
    return changed(records, at, gflop=records[at].facts["gflop"] + 1)


def charges_without_work(records: Records) -> tuple[Records, int]:
    at = where(records, "release", lambda f: "/top" not in f["hold"])
    facts = records[at].facts
    name = facts["id"].replace("release/", "settle/")
    stolen = {"type": "settle", "id": name, "returned_micro": 0, "usage": digest(b"none")}
    return changed(records, at, **stolen)


def credits_a_friend(records: Records) -> tuple[Records, int]:
    at = where(records, "contribution")
    owner = records[at].facts["partner"]
    other = next(m.name for m in charters(records)[1].members if m.name != owner)
    return changed(records, at, partner=other, credit=f"partner/{other}/contributed")


def moves_between_other_accounts(records: Records) -> tuple[Records, int]:
    return changed(records, where(records, "grant"), debit="breakage")


def mixes_units(records: Records) -> tuple[Records, int]:
    at = where(records, "rounding")
    return changed(records, at, credit="issuance")


def grants_by_itself(records: Records) -> tuple[Records, int]:
    at = where(records, "grant")
    more = {"id": "grant/bonus", "amount_micro": 5}
    return added(records, at, Kind.TRANSFER, records[at].facts | more)


def breaks_a_grant_that_stands(records: Records) -> tuple[Records, int]:
    at = where(records, "grant", lambda f: "unit" not in f and f["amount_micro"] > 5)
    facts = records[at].facts
    stolen = {
        "type": "breakage",
        "credit": "breakage",
        "grant": facts["id"],
        "id": f"breakage/{facts['id'].removeprefix('grant/')}/1",
        "debit": facts["credit"],
        "amount_micro": 5,
        "partner": facts["partner"],
    }
    return added(records, at, Kind.TRANSFER, stolen)


def reverses_more_than_was_charged(records: Records) -> tuple[Records, int]:
    at = where(records, "reversal", lambda f: f["debit"].startswith("run/"))
    return changed(records, at, amount_micro=records[at].facts["amount_micro"] + 10**9)


def reverses_for_no_reason(records: Records) -> tuple[Records, int]:
    return changed(
        records, where(records, "reversal", lambda f: f["debit"].startswith("run/")), reason="friendship"
    )


def keeps_a_contribution_of_a_reversed_charge(records: Records) -> tuple[Records, int]:
    at = where(records, "contribution-reversal")
    if records[at - 1].facts["type"] != "reversal":
        raise LookupError("another contribution stands before it")
    del records[at]
    return records, at - 1


def disputes_for_a_partner(records: Records) -> tuple[Records, int]:
    at = where(records, Kind.DISPUTE)
    del records[at]
    return records, at


def upholds_a_dispute_by_itself(records: Records) -> tuple[Records, int]:
    ruling = where(records, Kind.RULING)
    del records[ruling]
    return records, ruling


def converts_at_a_better_rate(records: Records) -> tuple[Records, int]:
    at = where(records, "convert", lambda f: "unit" not in f)
    return changed(records, at, amount_micro=records[at].facts["amount_micro"] + 1)


def closes_a_period_with_other_balances(records: Records) -> tuple[Records, int]:
    return changed(records, where(records, Kind.PERIOD), balances="0" * 64)


def closes_a_period_twice(records: Records) -> tuple[Records, int]:
    at = where(records, Kind.PERIOD)
    return added(records, at, Kind.PERIOD, records[at].facts)


def counts_a_defeat_as_a_victory(records: Records) -> tuple[Records, int]:
    return changed(records, where(records, Kind.OUTCOME, lambda f: f["state"] == "defeated"), state="passed")


def opens_a_vote_for_some(records: Records) -> tuple[Records, int]:
    at = where(records, Kind.OPENING)
    electorate = records[at].facts["electorate"]
    return changed(records, at, electorate={voter: 2 for voter in electorate})


def writes_law_without_a_vote(records: Records) -> tuple[Records, int]:
    last = charters(records)[max(charters(records))]
    more = last.model_copy(
        update={"version": last.version + 1, "voting": last.voting.model_copy(update={"window_s": 1})}
    )
    records.append(Record(Kind.CHARTER, records[-1].at_ms, charter_file.canonical(more)))
    return records, len(records) - 1


def carries_out_another_charter(records: Records) -> tuple[Records, int]:
    at = where(records, Kind.EXECUTION) + 1
    charter = charter_file.from_canonical(records[at].body)
    other = charter.model_copy(
        update={"voting": charter.voting.model_copy(update={"window_s": charter.voting.window_s + 1})}
    )
    changed(records, at - 1, charter=charter_file.digest(other))
    records[at] = Record(Kind.CHARTER, records[at].at_ms, charter_file.canonical(other))
    return records, at


def founds_without_a_member(records: Records) -> tuple[Records, int]:
    at = max(i for i, r in enumerate(records) if r.kind is Kind.FOUNDING)
    del records[at]
    return records, at


def begins_a_second_time(records: Records) -> tuple[Records, int]:
    return added(records, 5, Kind.GENESIS, records[0].facts)


def skips_a_round(records: Records) -> tuple[Records, int]:
    at = where(records, Kind.ROUND)
    return changed(records, at, round=records[at].facts["round"] + 1)


def raises_the_stakes_of_a_round(records: Records) -> tuple[Records, int]:
    at = where(records, Kind.ROUND, lambda f: len(f["holds"]) > 0)
    holds = records[at].facts["holds"]
    return changed(records, at, holds={site: micro + 1 for site, micro in holds.items()})


def leaves_an_update_out(records: Records) -> tuple[Records, int]:
    at = where(records, Kind.CLOSE, lambda f: len(f["contributors"]) > 0)
    return changed(records, at, contributors=records[at].facts["contributors"][1:])


def runs_two_runs(records: Records) -> tuple[Records, int]:
    at = where(records, Kind.RUN)
    return added(records, at, Kind.RUN, records[at].facts | {"run": "another"})


def admits_to_a_closed_round(records: Records) -> tuple[Records, int]:
    """With the help of the site, which signs whatever it is asked to."""
    at = where(records, Kind.FINISH)
    sent = next(r for r in reversed(records[:at]) if r.kind is Kind.UPDATE)
    note = parse(sent.body)
    update = UpdateNote.from_note(note)
    again = UpdateNote(**(vars(update) | {"tokens": update.tokens + 1}))
    key = signer(note.signatures[0].name)
    records.insert(at, Record(Kind.UPDATE, records[at].at_ms, key.sign(again.text)))
    return records, at


def takes_one_device_twice(records: Records) -> tuple[Records, int]:
    """Two rounds of a site that signs that both took the same second."""
    usages = [(i, UsageNote.from_note(parse(r.body))) for i, r in enumerate(records) if r.kind is Kind.USAGE]
    for n, (_, one) in enumerate(usages):
        for at, other in usages[n + 1 :]:
            if (one.site, one.device_ids) == (other.site, other.device_ids) and one.ended_ms > one.started_ms:
                note = parse(records[at].body)
                times = {"started_ms": one.started_ms, "ended_ms": one.ended_ms}
                text = UsageNote(**(vars(other) | times)).text
                key = signer(note.signatures[0].name)
                records[at] = Record(Kind.USAGE, records[at].at_ms, key.sign(text))
                return records, at
    raise LookupError("no site has two rounds")


def pays_nobody_for_an_update(records: Records) -> tuple[Records, int]:
    """The settle of an admitted update becomes a release, and what belongs to it was never written."""
    at = where(records, "settle", lambda f: f.get("accepted", True) and "/top" not in f["hold"])
    settle = records[at]
    facts = settle.facts
    kept = {k: facts[k] for k in ("hold", "debit", "credit", "run", "round", "site", "payer", "rate_card")}
    amount = facts["amount_micro"] + facts["returned_micro"]
    name = facts["id"].replace("settle/", "release/")
    made = {"type": "release", "id": name, "amount_micro": amount, "why": "no"}
    records[at] = released = fact(Kind.TRANSFER, settle.at_ms, **kept, **made)
    around = [r for r in records if r.kind is Kind.TRANSFER and r.facts.get("hold") == facts["hold"]]
    gone = [r for r in around if r.facts["type"] in ("contribution", "rounding")]
    records = [r for r in records if r not in gone]
    return records, records.index(released)


def releases_under_another_licence(records: Records) -> tuple[Records, int]:
    at = where(records, Kind.RELEASE)
    closed = next(r.facts for r in reversed(records) if r.kind is Kind.CLOSE)
    charter = charters(records)[1]
    records[at] = Record(Kind.RELEASE, records[at].at_ms, release_note(charter, closed, "WTFPL"))
    return records, at


def writes_what_nobody_can_read(records: Records) -> tuple[Records, int]:
    at = where(records, "hold")
    records[at] = Record(Kind.TRANSFER, records[at].at_ms, b'{"type":"hold","id":[]}')
    return records, at


EVIL: tuple[tuple[Evil, Rule], ...] = (
    (spends_what_is_not_there, Rule.OVERDRAFT),
    (holds_for_another_payer, Rule.HOLD),
    (ends_a_hold_twice, Rule.ENDING),
    (books_one_id_twice, Rule.TRANSFER),
    (brings_a_failed_transfer_to_life, Rule.TRANSFER),
    (lets_a_hold_expire_before_its_time, Rule.ENDING),
    (forgets_a_hold, Rule.ENDING),
    (pays_nobody_for_an_update, Rule.ENDING),
    (charges_more_than_the_work_costs, Rule.CHARGE),
    (charges_more_than_was_held, Rule.CHARGE),
    (names_another_usage, Rule.CHARGE),
    (bills_another_measure, Rule.CHARGE),
    (charges_without_work, Rule.CHARGE),
    (credits_a_friend, Rule.CONTRIBUTION),
    (moves_between_other_accounts, Rule.TRANSFER),
    (mixes_units, Rule.TRANSFER),
    (grants_by_itself, Rule.GRANT),
    (breaks_a_grant_that_stands, Rule.BREAKAGE),
    (reverses_more_than_was_charged, Rule.CORRECTION),
    (reverses_for_no_reason, Rule.CORRECTION),
    (keeps_a_contribution_of_a_reversed_charge, Rule.CORRECTION),
    (disputes_for_a_partner, Rule.DISPUTE),
    (upholds_a_dispute_by_itself, Rule.DISPUTE),
    (converts_at_a_better_rate, Rule.CONVERSION),
    (closes_a_period_with_other_balances, Rule.PERIOD),
    (closes_a_period_twice, Rule.PERIOD),
    (counts_a_defeat_as_a_victory, Rule.TALLY),
    (opens_a_vote_for_some, Rule.VOTE),
    (writes_law_without_a_vote, Rule.CHARTER),
    (carries_out_another_charter, Rule.CHARTER),
    (founds_without_a_member, Rule.FOUNDING),
    (begins_a_second_time, Rule.FOUNDING),
    (skips_a_round, Rule.ROUND),
    (raises_the_stakes_of_a_round, Rule.HOLD),
    (leaves_an_update_out, Rule.ROUND),
    (releases_under_another_licence, Rule.ROUND),
    (runs_two_runs, Rule.RUN),
    (admits_to_a_closed_round, Rule.UPDATE),
    (takes_one_device_twice, Rule.USAGE),
    (writes_what_nobody_can_read, Rule.FORM),
)


@pytest.mark.parametrize(("evil", "rule"), EVIL, ids=[evil.__name__ for evil, _ in EVIL])
def test_what_a_coordinator_with_the_log_key_does_is_found(
    evil: Evil, rule: Rule, histories: Histories, tmp_path: Path
) -> None:
    records, index = histories.with_evil(evil)
    report = fsck(rewritten(tmp_path, records, log_key(records)))
    assert (report.records, report.judged, report.tiles) == (len(records), len(records), None)
    assert (rule, index) in {(f.rule, f.index) for f in report.findings}, said(report.findings)
    assert report.findings[0].index == index, said(report.findings)
    assert all(str(f).startswith(f"record {f.index} ") and f.act in str(f) for f in report.findings)


@pytest.mark.parametrize("kind", NOTES, ids=str)
def test_words_under_a_key_that_is_not_theirs_are_found(kind: Kind, histories: Histories) -> None:
    def forge(records: Records) -> tuple[Records, int]:
        at = where(records, kind)
        records[at] = by_stranger(records[at])
        return records, at

    records, index = histories.with_evil(forge)
    found = judge(records)
    assert found[0].index == index and Rule.SIGNATURE in {f.rule for f in found if f.index == index}, said(
        found
    )


@pytest.mark.parametrize("kind", TRANSFERS)
@pytest.mark.parametrize("by", [-1, 1])
def test_an_amount_that_is_off_by_one_is_found_in_every_kind_of_transfer(
    kind: str, by: int, histories: Histories
) -> None:
    def off(records: Records) -> tuple[Records, int]:
        at = where(records, kind, lambda f: f.get("amount_micro", f.get("amount")) > 1)
        facts = records[at].facts
        name = "amount" if "amount" in facts else "amount_micro"
        return changed(records, at, **{name: facts[name] + by})

    records, index = histories.with_evil(off)
    found = judge(records)
    assert found and found[0].index >= index, f"{kind} {by:+d} at record {index}:\n{said(found)}"


@pytest.mark.parametrize("seed", range(3))
def test_no_record_may_stand_twice(seed: int, histories: Histories) -> None:
    records = histories.of(seed)
    for index in range(1, len(records)):
        twice = [*records[: index + 1], *records[index:]]
        assert judge(twice), f"record {index} of seed {seed} a second time: {records[index].leaf[:200]!r}"


@pytest.mark.parametrize(
    "kind", ["settle", "release", "contribution", "dispute", "dismiss", "hold", Kind.UPDATE, Kind.USAGE, Kind.CLOSE,
             Kind.OPENING, Kind.ROUND, Kind.RUN, Kind.FOUNDING], ids=str
)  # fmt: skip
def test_a_record_that_others_rest_on_is_missed(kind: Kind | str, histories: Histories) -> None:
    def dropped(records: Records) -> tuple[Records, int]:
        at = where(records, kind)
        del records[at]
        return records, at

    records, index = histories.with_evil(dropped)
    assert judge(records), f"{kind}, record {index}"


@pytest.mark.parametrize("seed", range(12))
def test_an_honest_history_has_no_findings_however_much_failed_in_it(seed: int, histories: Histories) -> None:
    report = fsck(histories.path(seed))
    assert report.clean and report.judged == report.records > 0, said(report.findings)


def test_an_older_journal_has_no_findings_and_is_not_changed(tmp_path: Path) -> None:
    shutil.copyfile(VECTOR, tmp_path / "journal.db")
    report = fsck(tmp_path)
    assert report.clean and report.records == report.judged == 64, said(report.findings)
    assert (tmp_path / "journal.db").read_bytes() == VECTOR.read_bytes()


def test_a_record_changed_on_disk_is_found_and_the_ones_before_it_are_judged(
    histories: Histories, tmp_path: Path
) -> None:
    import sqlite3

    records = histories.of(0)
    path = rewritten(tmp_path, records, log_key(records))
    with sqlite3.connect(path) as connection:
        for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            connection.execute(f"DROP TRIGGER {name}")
        connection.execute("UPDATE records SET leaf = X'00' WHERE idx = 9")
    connection.close()
    report = fsck(path)
    assert report.judged == 9 < report.records
    assert [(f.rule, f.index) for f in report.findings] == [(Rule.TREE, 9)]
    assert "restore a backup with more than 9 records" in str(report.findings[0])


def test_a_record_dated_before_its_predecessor_is_found(histories: Histories, tmp_path: Path) -> None:
    records = histories.of(0)
    at = where(records, Kind.RUN)
    records[at] = Record(Kind.RUN, records[at].at_ms - 10**9, records[at].body)
    report = fsck(rewritten(tmp_path, records, log_key(records)))
    assert (Rule.TREE, at) in {(f.rule, f.index) for f in report.findings}, said(report.findings)


def test_a_journal_signed_by_another_key_than_the_founders_named_is_found(
    histories: Histories, tmp_path: Path
) -> None:
    records = histories.of(0)
    report = fsck(rewritten(tmp_path, records, Signer.generate("hanse")))
    assert [f.rule for f in report.findings] == [Rule.CHECKPOINT]


def test_published_tiles_are_the_same_tree_or_the_difference_is_named(
    histories: Histories, tmp_path: Path
) -> None:
    records = histories.of(0)
    honest, tiles = rewritten(tmp_path, records, log_key(records)), tmp_path / "tiles"
    reader = open_readonly(honest)
    publish(reader, tiles, entries=True)
    reader.close()
    report = fsck(honest, tiles=tiles)
    assert report.clean and report.tiles == len(records), said(report.findings)

    (tmp_path / "fork").mkdir()
    at = where(records, Kind.SITE)
    forked, _ = added(list(records), at, Kind.REFUSED, {"id": "hold/x", "code": "no", "message": "no"})
    report = fsck(rewritten(tmp_path / "fork", forked, log_key(records)), tiles=tiles)
    assert (Rule.TILES, at + 1) in {(f.rule, f.index) for f in report.findings}, said(report.findings)

    bundle = tiles / "tile/entries/000"
    bundle = bundle if bundle.is_file() else next((tiles / "tile/entries/000.p").iterdir())
    bundle.write_bytes(bundle.read_bytes().replace(b"consortium", b"Consortium", 1))
    report = fsck(honest, tiles=tiles)
    assert [f.rule for f in report.findings] == [Rule.TILES], said(report.findings)


def test_a_journal_in_postgres_is_audited_like_any_other(histories: Histories) -> None:
    pytest.importorskip("psycopg", reason="PSYCOPG IS MISSING: the Postgres journal is not audited here")
    records, index = histories.with_evil(credits_a_friend)
    try:
        with postgres.running() as url:
            journal = Journal.open(url, signer=log_key(records), clock=FixedClock())
            journal.append(records)
            report = fsck(url)
            journal.close()
    except postgres.NoPostgres as missing:
        pytest.skip(f"POSTGRES IS NOT AUDITED HERE: {missing}")
    assert report.judged == len(records)
    assert (report.findings[0].rule, report.findings[0].index) == (Rule.CONTRIBUTION, index)


def test_one_cause_is_one_finding_with_its_first_record_and_a_count(histories: Histories) -> None:
    records = histories.of(0)
    sites = [i for i, r in enumerate(records) if r.kind is Kind.UPDATE]
    for index in sites:
        records[index] = by_stranger(records[index])
    forged = next(f for f in judge(records) if f.rule is Rule.SIGNATURE)
    assert (forged.index, forged.further) == (sites[0], len(sites) - 1)


def test_the_audit_says_how_far_it_is(histories: Histories) -> None:
    told: list[tuple[str, int, int]] = []
    report = fsck(histories.path(0), progress=lambda *step: told.append(step))
    assert told == [("hashes", report.records, report.records), ("rules", report.records, report.records)]


def test_the_command_says_all_is_well_or_what_is_wrong_and_what_to_do(
    histories: Histories, tmp_path: Path
) -> None:
    honest, run = histories.path(0), CliRunner().invoke
    clean = run(app, ["journal", "fsck", "--store", str(honest)])
    assert (clean.exit_code, clean.output.count("\n")) == (0, 1), clean.output
    assert f"is in order: {len(histories.of(0))} records" in clean.output
    facts = json.loads(run(app, ["journal", "fsck", "--home", str(honest.parent), "--json"]).output)
    assert facts["clean"] and facts["records"] == facts["judged"] == len(histories.of(0))

    records, index = histories.with_evil(charges_more_than_was_held)
    evil = ["journal", "fsck", "--store", str(rewritten(tmp_path, records, log_key(records)))]
    found = run(app, evil)
    assert found.exit_code == StoreError.exit_code
    assert f"charge: record {index} charges" in found.output and "What to do: its payer" in found.output
    told = run(app, [*evil, "--json"])
    first = json.loads(told.output)["findings"][0]
    assert (told.exit_code, first["rule"], first["index"]) == (5, "charge", index)

    nothing = run(app, ["journal", "fsck", "--home", str(tmp_path / "empty")])
    assert isinstance(nothing.exception, StoreError) or nothing.exit_code == StoreError.exit_code


def test_every_rule_says_what_to_do() -> None:
    assert set(ACTS) == set(Rule)


def test_garbage_of_every_kind_is_a_finding_and_never_a_crash() -> None:
    bodies = (
        b"",
        b"{}",
        b"[]",
        b"null",
        b"\xff",
        b'{"type":1,"id":2,"amount_micro":true,"run":[]}',
        b"hansa\n\n",
    )
    for kind in Kind:
        for body in bodies:
            records = [Record(kind, 2**62, body), Record(kind, 2**62, body)]
            assert judge(records), (kind, body)


def test_a_charter_that_names_another_log_is_no_founding(histories: Histories) -> None:
    records = histories.of(0)
    stranger = Signer.generate(records[0].facts["consortium"])
    records, _ = changed(records, 0, log_key=Digest(stranger.vkey))
    assert (Rule.FOUNDING, 1) in {(f.rule, f.index) for f in judge(records)}
