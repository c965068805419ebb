"""The view of runs: the same records give the same picture, however often they are folded."""

from __future__ import annotations

from dataclasses import replace

from commons.errors import Code, Refusal
from commons.names import Digest, Micro, RoundNumber, RunId, SiteId
from commons.records import Kind, Record
from commons.work import EvaluationNote, UpdateNote, UsageNote
from orchestrator.facts import close_fact, finish_fact, rejection_fact, round_fact, run_fact
from orchestrator.progress import Runs
from tests.support.consortium import NAME, signer

RUN, ONE = RunId("run-1"), RoundNumber(1)
S0, S1, MOMENTUM = (Digest("sha256:" + c * 64) for c in "abc")
ALDER, BIRCH, CEDAR = SiteId("alder"), SiteId("birch"), SiteId("cedar")


def round_one(at_ms: int, *, attempt: int = 1, sites: tuple[SiteId, ...] = (ALDER, BIRCH)) -> Record:
    return round_fact(
        at_ms, run=RUN, number=ONE, attempt=attempt, base=S0, charter_version=1, charter=S0, expert_map=S0,
        quorum=2, lease_until_ms=at_ms + 100, holds=dict.fromkeys(sites, Micro(7)),
    )  # fmt: skip


def usage(site: SiteId, *, started_ms: int = 1, device_ms: int = 1) -> UsageNote:
    return UsageNote(
        consortium=NAME, run=RUN, round=1, site=site, lease="l", device="cpu", device_ids=f"cpu/{site}/{site}",
        precision="fp32", started_ms=started_ms, ended_ms=started_ms + device_ms, device_ms=device_ms, steps=1,
        tokens=8, gflop=1, energy_j=None, update=S0,
    )  # fmt: skip


def used(at_ms: int, site: SiteId, **more: int) -> Record:
    return Record(Kind.USAGE, at_ms, signer(f"{site}/{site}").sign(usage(site, **more).text))


def update(at_ms: int, site: SiteId) -> list[Record]:
    said = UpdateNote(
        consortium=NAME, run=RUN, round=1, site=site, base=S0, manifest=S0, payload=S0, payload_bytes=10,
        steps=1, tokens=8, loss=2.0, held_out_loss=None,
    )  # fmt: skip
    return [Record(Kind.UPDATE, at_ms, signer(f"{site}/{site}").sign(said.text)), used(at_ms, site)]


def rejected(at_ms: int, site: SiteId) -> Record:
    return rejection_fact(at_ms, run=RUN, number=ONE, site=site, code="update_malformed", message="wrong")


def begun() -> list[Record]:
    return [run_fact(1, run=RUN, rounds=1, state=S0, charter_version=1, expert_map=S0)]


def closed(at_ms: int) -> Record:
    return close_fact(
        at_ms, run=RUN, number=ONE, base=S0, state=S1, momentum=MOMENTUM, contributors=[ALDER, BIRCH],
        missing=[], bytes_up=20, bytes_down=30,
    )  # fmt: skip


def folded(records: list[Record]) -> Runs:
    runs = Runs()
    for index, record in enumerate(records):
        runs.apply(index, record)
    return runs


def test_a_run_goes_from_training_through_evaluating_to_finished() -> None:
    records = begun()
    run = folded(records).by_id[RUN]
    assert (run.phase, run.closed, run.open_round, run.state) == ("training", 0, None, S0)
    records += [round_one(2), *update(3, ALDER), *update(4, BIRCH)]
    opened = folded(records).by_id[RUN].open_round
    assert opened is not None and opened.waiting == [] and opened.quorum_ms == 4
    assert opened.admitted[ALDER].usage is not None
    records.append(closed(5))
    run = folded(records).by_id[RUN]
    assert (run.phase, run.closed, run.state, run.momentum) == ("evaluating", 1, S1, MOMENTUM)
    note = EvaluationNote(
        consortium=NAME, run=RUN, site=ALDER, state=S1, domain="alder-text", bytes=9, loss=1.0
    )
    records.append(Record(Kind.EVALUATION, 6, signer("alder/alder").sign(note.text)))
    records.append(finish_fact(7, run=run, phase="finished", reason="done"))
    runs = folded(records)
    assert runs.active is None and runs.by_id[RUN].evaluations[ALDER] == (7, note)
    assert (runs.by_id[RUN].phase, runs.by_id[RUN].reason) == ("finished", "done")


def test_a_second_attempt_keeps_admitted_sites_and_their_holds_and_drops_the_others() -> None:
    again = round_one(200, attempt=2, sites=(CEDAR,))
    run = folded([*begun(), round_one(2), *update(3, ALDER), again]).by_id[RUN]
    opened = run.open_round
    assert opened is not None and len(run.history) == 1
    assert opened.holds.keys() == {ALDER, CEDAR} and opened.waiting == [CEDAR]
    assert (opened.hold_id(RUN, ALDER), opened.hold_id(RUN, CEDAR)) == (
        "hold/run-1/1/alder",
        "hold/run-1/1/cedar/2",
    )
    assert opened.opened_ms == 2 and opened.lease_until_ms == 300


def test_a_rejection_of_a_site_without_assignment_says_why_it_was_left_out() -> None:
    records = [*begun(), round_one(2)]
    for site in (BIRCH, CEDAR):
        records.append(rejection_fact(3, run=RUN, number=ONE, site=site, code="x", message=f"{site}: why"))
    opened = folded(records).by_id[RUN].open_round
    assert opened is not None
    assert opened.left_out[CEDAR].message == "cedar: why"
    assert opened.rejected[BIRCH].message == "birch: why"
    assert opened.waiting == [ALDER]


def test_the_usage_of_a_rejected_update_is_known_until_the_round_is_tried_again() -> None:
    records = [*begun(), round_one(2), *update(3, ALDER), used(4, BIRCH, device_ms=9), rejected(4, BIRCH)]
    opened = folded(records).by_id[RUN].open_round
    assert opened is not None and opened.rejected[BIRCH].code == "update_malformed"
    assert list(opened.admitted) == [ALDER]
    assert (opened.usage(ALDER), opened.usage(BIRCH)) == (usage(ALDER), usage(BIRCH, device_ms=9))
    assert opened.usage(CEDAR) is None
    again = folded([*records, round_one(200, attempt=2, sites=(BIRCH,))]).by_id[RUN].open_round
    assert again is not None and again.usage(BIRCH) is None and again.waiting == [BIRCH]
    assert again.usage(ALDER) == usage(ALDER), "what was admitted stays"


def test_the_last_usage_of_a_site_is_found_in_whatever_round_it_worked() -> None:
    run = folded([*begun(), round_one(2), *update(3, ALDER), *update(4, BIRCH), closed(5)]).by_id[RUN]
    assert run.last_usage(ALDER) == usage(ALDER) and run.last_usage(CEDAR) is None


def test_the_time_of_every_journaled_usage_is_taken_and_given_up_when_no_record_can_meet_it() -> None:
    late = usage(CEDAR, started_ms=1)
    records = [*begun(), round_one(2), *update(3, ALDER), used(4, BIRCH), rejected(4, BIRCH)]
    usages = folded(records).usages
    for site in (ALDER, BIRCH):
        found = usages.overlap(replace(late, device_ids=f"cpu/{site}/{site}"))
        assert found is not None and found[1].site == site
    second, third = (
        round_fact(
            at_ms, run=RUN, number=RoundNumber(number), attempt=1, base=S1, charter_version=1, charter=S0,
            expert_map=S0, quorum=2, lease_until_ms=at_ms + 100, holds={ALDER: Micro(7)},
        )
        for number, at_ms in ((2, 400_000), (3, 500_000))
    )  # fmt: skip
    end = close_fact(
        400_005, run=RUN, number=RoundNumber(2), base=S1, state=S1, momentum=None, contributors=[], missing=[ALDER],
        bytes_up=1, bytes_down=1,
    )  # fmt: skip
    on_alder = replace(late, device_ids="cpu/alder/alder")
    begun_ahead = folded([*records, closed(5), second]).usages.overlap(on_alder)
    assert begun_ahead is not None, "work on a round may begin while the one before is open"
    assert folded([*records, closed(5), second, end, third]).usages.overlap(on_alder) is None


def test_the_time_that_a_site_at_work_may_still_state_is_kept_with_all_that_it_could_meet() -> None:
    """Birch shares a device with alder and may hand in for round 1 in round 2."""
    stays = close_fact(
        5, run=RUN, number=ONE, base=S0, state=S1, momentum=None, contributors=[ALDER], missing=[BIRCH],
        bytes_up=1, bytes_down=1, carried=[BIRCH],
    )  # fmt: skip
    later = round_fact(
        400_000, run=RUN, number=RoundNumber(2), attempt=1, base=S1, charter_version=1, charter=S0, expert_map=S0,
        quorum=1, lease_until_ms=500_000, holds={ALDER: Micro(7)},
    )  # fmt: skip
    usages = folded([*begun(), round_one(2), *update(3, ALDER), stays, later]).usages
    assert usages.overlap(replace(usage(BIRCH), device_ids="cpu/alder/alder")) is not None


def test_asking_for_a_run_that_is_not_there_says_what_to_do() -> None:
    none, unknown = Runs().find(""), folded(begun()).find("run-7")
    assert isinstance(none, Refusal) and none.code is Code.NO_RUN
    assert isinstance(unknown, Refusal) and unknown.code is Code.RUN_UNKNOWN
    latest = folded(begun()).find("")
    assert not isinstance(latest, Refusal) and latest.run == RUN


def test_a_round_of_a_thousand_sites_fits_one_record() -> None:
    sites = tuple(SiteId(f"{n:032d}") for n in range(1024))
    assert len(round_one(2, sites=sites).leaf) < 65_536
