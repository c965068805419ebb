"""A slow site on real gRPC: its update of round 1 is taken in round 2, through deaths and replays."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from commons.errors import Code
from commons.notes import digest, parse
from commons.records import Kind, Record
from commons.views import RunView
from commons.wire.v1 import consortium_pb2 as wire
from commons.work import AssignmentNote
from governance.fsck import judge
from hansa.screen import round_line
from tests.contract.test_services import Stage, eventually, refused
from tests.support.consortium import SITES, FakeSite, charter, over

ROUNDS = {"quorum": 2, "grace_s": 1, "lease_s": 60, "late_rounds": 1, "late_discount": 0.5}


class Gated(FakeSite):
    """Trains each of the first two rounds once the test says so."""

    gates: dict[int, threading.Event]

    def obey(self, epoch: int, note: bytes) -> None:
        gate = self.gates.get(AssignmentNote.from_note(parse(note)).round)
        if gate is not None:
            gate.wait(20)
        super().obey(epoch, note)


class Slow(Stage):
    """Cedar takes its order of round 1 and says that it is at work; the others close the round without it."""

    def begin(self) -> FakeSite:
        self.gates = {1: threading.Event(), 2: threading.Event()}
        for name in ("alder", "birch"):
            site = Gated(self.seats[name], self.of)
            site.gates = self.gates
            self.sites.append(site.start())
        cedar = self.site("cedar", silent=True)
        self.start_run()
        eventually(lambda: bool(cedar.orders))
        cedar.beat("training", cedar.orders[0])
        self.gates[1].set()
        return cedar

    def goes_on(self) -> None:
        """The others train round 2."""
        self.gates[2].set()

    @property
    def epoch(self) -> int:
        return self.coordinator.desk.consortium.journal.epoch

    @property
    def records(self) -> list[Record]:
        return list(self.coordinator.desk.consortium.journal.records())


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Slow]:
    made = Slow(tmp_path, charter(rounds=ROUNDS, learning__rounds=3))
    yield made
    made.goes_on()
    made.close()


def second_open(view: RunView) -> bool:
    return view.round == 2 and len(view.history) == 2


def test_a_slow_sites_update_of_round_one_is_taken_in_round_two_and_paid_once(stage: Slow) -> None:
    cedar = stage.begin()
    view = stage.office.wait(second_open)
    assert view.history[0].missing == view.history[0].carried == ("cedar",)
    [shown] = [s for s in view.sites if s.site == "cedar"]
    assert (shown.state, shown.why) == (
        "training",
        "round 1 closed without it; its update counts in round 2, late by 1 round, weight 0.5",
    )
    [order] = cedar.orders
    assert not cedar.beat("training", order), "its work is wanted still"
    sent = cedar.pack(order)
    indices = {cedar.send(stage.epoch, *sent) for _ in range(3)}
    assert len(indices) == 1, "replayed, it is the same update"
    key = wire.UploadKey(run=order.run, round=1, update=digest(parse(sent[0]).text.encode()), lanes=1)
    assert cedar.link.UploadOffset(key, timeout=10).admitted
    cedar.silent = False
    stage.goes_on()
    view = stage.office.wait(over)
    assert (view.phase, view.history[1].late) == ("finished", {"cedar": "late by 1 round, weight 0.5"})
    assert set(view.history[1].contributors) == {"alder", "birch"}
    assert set(view.history[2].contributors) == set(SITES), "the site is planned again"
    assert "with cedar late by 1 round, weight 0.5" in round_line(view.history[1], view)
    assert "without cedar (at work)" in round_line(view.history[0], view)
    transfers = [r.facts for r in stage.records if r.kind is Kind.TRANSFER]
    settles = [t for t in transfers if t["type"] == "settle" and t["site"] == "cedar"]
    assert [(t["round"], t["accepted"]) for t in settles] == [(1, True), (3, True)]
    assert judge(stage.records) == ()


def test_a_coordinator_that_dies_meanwhile_takes_the_slow_sites_update_all_the_same(
    stage: Slow,
) -> None:
    [order] = stage.begin().orders
    stage.office.wait(second_open)
    stage.restart()
    cedar = stage.site("cedar", silent=True)
    eventually(lambda: bool(cedar.orders))
    assert cedar.orders == [order], "the same order, in the same words"
    cedar.upload(stage.epoch, order)
    cedar.silent = False
    stage.site("alder"), stage.site("birch")
    stage.office.wait(over)
    assert [r.facts.get("late") for r in stage.records if r.kind is Kind.CLOSE] == [None, {"cedar": 1}, None]
    assert judge(stage.records) == ()


def test_an_update_that_comes_after_all_its_rounds_is_refused_and_its_site_is_free(
    stage: Slow,
) -> None:
    cedar = stage.begin()
    stage.office.wait(second_open)
    order, epoch = cedar.orders[0], stage.epoch
    cedar.silent = False
    stage.goes_on()
    view = stage.office.wait(lambda v: v.round == 3)
    assert "would be 2 rounds late, the charter takes 1" in view.history[0].rejected["cedar"]
    assert refused(lambda: cedar.upload(epoch, order)) is Code.ROUND_CLOSED
    assert set(stage.office.wait(over).history[2].contributors) == set(SITES)
