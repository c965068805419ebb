"""The coordinator on real gRPC over loopback, with sites that only pretend to train."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from commons import charter_file
from commons.ballots import Ballot, Proposal
from commons.charter import Charter
from commons.errors import Code, HansaError, StoreError
from commons.identity import Seat
from commons.names import Digest, RunId
from commons.records import Kind
from commons.states import StateStore
from commons.states.drafts import Draft
from commons.updates import UpdateManifest
from commons.views import BudgetsView, ProposalView
from commons.wire import channel
from commons.wire.v1 import consortium_pb2 as wire
from orchestrator import round as round_
from orchestrator.combine import Combined
from orchestrator.coordinator import NO_MLFLOW, Coordinator
from orchestrator.desk import Desk
from orchestrator.release import verify
from tests.support.consortium import (
    NAME,
    SITES,
    FakeSite,
    Office,
    budgets,
    charter,
    enrol,
    found,
    over,
    running,
    signer,
    started,
)


class Stage:
    """A running consortium of three that a test can kill parts of."""

    def __init__(self, folder: Path, of: Charter, **options: Any) -> None:
        self.folder, self.of, self.home, self.options = folder, of, found(folder, of), options
        self.coordinator = started(self.home, **options)
        self.seats = {s: enrol(self.coordinator, "site", s, folder / s / "seat") for s in SITES}
        self.sites: list[FakeSite] = []
        self.office = Office(Seat.load(self.home / "operator"))

    def site(self, name: str, **options: Any) -> FakeSite:
        self.sites.append(FakeSite(self.seats[name], self.of, **options).start())
        return self.sites[-1]

    def all_sites(self) -> list[FakeSite]:
        return [self.site(name) for name in SITES]

    def start_run(self) -> str:
        return self.office.start_run(self.folder / "seed")

    def restart(self) -> None:
        """The coordinator goes and comes back at the same address; sites have to connect again."""
        for site in self.sites:
            site.close()
        self.office.close()
        address, door = self.coordinator.address, self.coordinator.enrolment_address
        self.coordinator.stop()
        self.coordinator = Coordinator(self.home, address, mlflow=NO_MLFLOW, enrolment=door, **self.options)
        self.coordinator.start()
        self.office = Office(Seat.load(self.home / "operator"))

    def budgets(self) -> BudgetsView:
        reply = self.office.chamber.Read(wire.ReadRequest(view="budgets"))
        return BudgetsView.model_validate_json(reply.json)

    def kinds(self) -> list[Kind]:
        return [r.kind for r in self.coordinator.desk.consortium.journal.records()]

    def close(self) -> None:
        for site in self.sites:
            site.close()
        self.office.close()
        self.coordinator.stop()


@pytest.fixture
def stage_of(tmp_path: Path) -> Iterator[Callable[[Charter], Stage]]:
    stages: list[Stage] = []

    def make(of: Charter) -> Stage:
        stages.append(Stage(tmp_path, of))
        return stages[-1]

    yield make
    for stage in stages:
        stage.close()


def refused(call: Callable[[], object]) -> Code:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    refusal = channel.as_refusal(caught.value)
    assert refusal is not None, caught.value
    return refusal.code


def eventually(holds: Callable[[], bool], timeout_s: float = 10) -> None:
    until = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < until, "it did not become so"
        time.sleep(0.01)


def test_three_sites_take_a_run_to_its_end_and_every_round_is_paid(stage_of: Any) -> None:
    stage = stage_of(charter())
    sites = stage.all_sites()
    stage.start_run()
    view = stage.office.wait(over)
    assert (view.phase, view.round) == ("finished", 2)
    assert [set(r.contributors) for r in view.history] == [set(SITES)] * 2
    assert view.history[1].base == view.history[0].state and view.state == view.history[1].state
    assert view.evaluation == {f"{s}-text": 1.5 for s in SITES}
    charges = stage.budgets().charges
    assert [c.state for c in charges] == ["settled"] * 6
    assert all(0 < c.charged_micro <= c.held_micro for c in charges)
    assert all(b.held_micro == 0 for b in stage.budgets().budgets)
    for site in sites:
        assert site.finished.wait(5) and not site.refusals
    assert stage.coordinator.desk.consortium.journal.verify() == []


def test_two_consortia_with_equal_updates_reach_the_same_digest(tmp_path: Path) -> None:
    states = []
    for folder in (tmp_path / "one", tmp_path / "two"):
        folder.mkdir()
        stage = Stage(folder, charter())
        for name in SITES if folder.name == "one" else reversed(SITES):
            stage.site(name)
        stage.start_run()
        states.append(stage.office.wait(over).state)
        stage.close()
    assert states[0] == states[1]


def test_a_silent_site_is_waited_for_until_the_grace_ends_and_its_hold_is_released(stage_of: Any) -> None:
    stage = stage_of(charter(rounds={"quorum": 2, "grace_s": 1, "lease_s": 60}, learning__rounds=1))
    stage.site("alder"), stage.site("birch"), stage.site("cedar", silent=True)
    stage.start_run()
    view = stage.office.wait(lambda v: v.history and v.history[0].closed_ms is not None)
    assert view.history[0].missing == ("cedar",)
    assert set(view.history[0].contributors) == {"alder", "birch"}
    assert {c.site: c.state for c in stage.budgets().charges} == {
        "alder": "settled",
        "birch": "settled",
        "cedar": "released",
    }


def test_a_site_that_was_gone_is_left_out_and_comes_back_by_itself(stage_of: Any) -> None:
    stage = stage_of(charter(rounds={"quorum": 2, "grace_s": 1, "lease_s": 60}, learning__rounds=4))
    alder, birch = stage.site("alder", silent=True), stage.site("birch")
    stage.start_run()
    eventually(lambda: bool(alder.orders))
    view = stage.office.run()
    assert "not connected" in view.history[0].left_out["cedar"]
    cedar = stage.site("cedar")
    alder.silent = False
    alder.obey(stage.coordinator.desk.consortium.journal.epoch, stage_note(stage, alder))
    view = stage.office.wait(over)
    assert set(view.history[1].contributors) == set(SITES)
    assert 1 not in cedar.indices and not birch.refusals


def test_a_coordinator_that_only_closed_an_open_round_still_waits_for_all_sites(
    stage_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = stage_of(charter())
    dying, combine = stage.coordinator.desk, round_._combine_and_save

    def dies_before_it_combines(desk: Desk, run: RunId) -> Combined | None:
        return None if desk is dying and dying.stopping.wait() else combine(desk, run)

    monkeypatch.setattr(round_, "_combine_and_save", dies_before_it_combines)
    stage.all_sites()
    stage.start_run()
    eventually(lambda: all(1 in site.indices for site in stage.sites))
    stage.restart()
    live = stage.coordinator.desk.live
    eventually(lambda: stage.office.run().history[0].closed_ms is not None)
    stage.site("alder"), stage.site("birch")
    eventually(lambda: {"alder", "birch"} <= set(live.present()))
    stage.site("cedar")
    view = stage.office.wait(over)
    assert (set(view.history[1].contributors), view.history[1].left_out) == (set(SITES), {})


def stage_note(stage: Stage, site: FakeSite) -> bytes:
    """The site's last order, signed again: the same words have the same bytes."""
    return stage.coordinator.desk.signer.sign(site.orders[-1].text)


def test_a_site_that_refuses_is_not_waited_for(stage_of: Any) -> None:
    stage = stage_of(charter(learning__rounds=1))
    stage.site("alder"), stage.site("birch")
    cedar = stage.site("cedar", silent=True)
    stage.start_run()
    eventually(lambda: bool(cedar.orders))
    cedar.beat("refused", cedar.orders[0], "policy forbids int8")
    view = stage.office.wait(lambda v: v.history and v.history[0].closed_ms is not None, timeout_s=10)
    assert view.history[0].rejected == {"cedar": "policy forbids int8"}


@pytest.mark.parametrize("when", ["before any update", "after one update", "with half an upload"])
def test_a_coordinator_that_died_in_a_round_goes_on_with_what_was_durable(
    stage_of: Any, tmp_path: Path, when: str
) -> None:
    stage = stage_of(charter())
    sites = [stage.site(name, silent=True) for name in SITES]
    stage.start_run()
    eventually(lambda: all(s.orders for s in sites))
    epoch = stage.coordinator.desk.consortium.journal.epoch
    packed = sites[0].pack(sites[0].orders[0])
    if when == "after one update":
        sites[0].send(epoch, *packed)
    if when == "with half an upload":
        half = (*packed[:3], packed[3][:20_000])
        assert refused(lambda: sites[0].send(epoch, *half)) == Code.REQUEST_INVALID
    size = stage.coordinator.desk.consortium.size
    stage.restart()
    assert stage.coordinator.desk.consortium.size == size
    again = FakeSite(stage.seats["alder"], stage.of, silent=True).start()
    stage.sites.append(again)
    epoch += 1
    if when == "after one update":
        assert again.send(epoch, *packed) >= 0
    else:
        update = sites[0].orders[0], packed[0]
        name = digest_of_text(update[1])
        position = again.link.UploadOffset(wire.UploadKey(run="run-1", round=1, update=name, lanes=1))
        ends = [f.offset + f.bytes for f in UpdateManifest.from_bytes(packed[2]).frames]
        whole = max(end for end in (0, *ends) if end <= 20_000)
        assert whole > 0 and position.offsets[0] == (whole if when == "with half an upload" else 0)
        again.send(epoch, *packed, offset=position.offsets[0])
    again.silent = False
    stage.site("birch"), stage.site("cedar")
    view = stage.office.wait(lambda v: len(v.history) == 2)
    assert set(view.history[0].contributors) == set(SITES)
    assert stage.kinds().count(Kind.CLOSE) >= 1
    assert len({c.id for c in stage.budgets().charges}) == len(stage.budgets().charges)


def digest_of_text(note: bytes) -> str:
    from commons.notes import digest, parse

    return digest(parse(note).text.encode())


def test_combining_again_after_a_crash_before_the_commit_point_gives_the_same_state(
    stage_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from orchestrator import round as round_module

    stage = stage_of(charter(learning__rounds=1))
    saved: list[str] = []
    real = round_module._combine_and_save

    def dies(desk: Any, run: Any) -> Any:
        combined = real(desk, run)
        saved.append(combined.state)
        if len(saved) == 1:
            desk.stopping.set()
            return None
        return combined

    monkeypatch.setattr(round_module, "_combine_and_save", dies)
    stage.all_sites()
    stage.start_run()
    eventually(lambda: len(saved) == 1)
    assert Kind.CLOSE not in stage.kinds()
    stage.restart()
    stage.all_sites()
    view = stage.office.wait(over)
    assert saved[0] == saved[1] == view.state
    assert [c.state for c in stage.budgets().charges] == ["settled"] * 3


def test_a_full_disk_while_saving_leaves_the_round_open_and_says_so(
    stage_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from orchestrator import coordinator as program

    monkeypatch.setattr(program, "RETRY_S", 0.2)
    stage = stage_of(charter(learning__rounds=1))
    full = threading.Event()
    full.set()
    real = Draft.append

    def append(self: Draft, data: memoryview) -> None:
        ours = self.path.is_relative_to(stage.home / "states")
        if ours and full.is_set() and stage.kinds().count(Kind.UPDATE):
            raise OSError(28, "No space left on device")
        real(self, data)

    monkeypatch.setattr(Draft, "append", append)
    stage.all_sites()
    stage.start_run()
    eventually(lambda: "No space left on device" in stage.office.run().reason)
    held = stage.office.run()
    assert held.phase == "training" and held.history[0].closed_ms is None
    full.clear()
    assert stage.office.wait(over).phase == "finished"


def test_a_payer_without_budget_is_left_out_by_name_and_the_others_go_on(stage_of: Any) -> None:
    of = charter(members=budgets(cedar=4_000), learning__rounds=3)
    stage = stage_of(of)
    stage.all_sites()
    stage.start_run()
    view = stage.office.wait(over)
    assert view.phase == "finished"
    assert [set(r.contributors) for r in view.history][-1] == {"alder", "birch"}
    why = view.history[-1].left_out["cedar"]
    assert "cedar" in why and "budget" in why and "EUR" in why
    assert {b.partner: b.available_micro >= 0 for b in stage.budgets().budgets} == dict.fromkeys(SITES, True)


def test_a_run_ends_with_a_reason_when_budgets_leave_fewer_than_a_quorum(stage_of: Any) -> None:
    stage = stage_of(charter(members=budgets(cedar=1, birch=1)))
    sites = stage.all_sites()
    stage.start_run()
    view = stage.office.wait(over)
    assert view.phase == "stopped"
    assert "birch" in view.reason and "cedar" in view.reason and "quorum" in view.reason
    assert all(site.finished.wait(5) for site in sites)


def test_a_passed_vote_rules_from_its_round_on(stage_of: Any) -> None:
    stage = stage_of(charter(learning__rounds=2))
    office = stage.office
    alder = Office(enrol(stage.coordinator, "member", "alder", stage.folder / "alder-seat"))
    wish = Proposal(
        NAME, "alder", "Send bytes, not floats", "uplink-codec", {"trunk": "int8", "expert": "int8"},
        charter_file.digest(stage.of), 2, "00" * 16,
    )  # fmt: skip
    note = signer("alder").sign(wish.compose())
    first = alder.chamber.Submit(wire.NoteRequest(note=note))
    assert alder.chamber.Submit(wire.NoteRequest(note=note)).index == first.index
    reply = office.chamber.Read(wire.ReadRequest(view="proposal"))
    shown = ProposalView.model_validate_json(reply.json)
    for voter in SITES:
        ballot = Ballot(
            NAME, wish.id, Digest(shown.rules), Digest(shown.electorate_digest), voter, "for", "11" * 16,
            "2026-11-23T18:40:12Z",
        )  # fmt: skip
        alder.chamber.Submit(wire.NoteRequest(note=signer(voter).sign(ballot.compose())))
    stage.all_sites()
    stage.start_run()
    view = office.wait(over)
    assert [r.charter_version for r in view.history] == [1, 2]
    assert [r.uplink_trunk for r in view.history] == ["fp32", "int8"]
    assert view.history[1].bytes_up < view.history[0].bytes_up / 3
    reply = office.chamber.Read(wire.ReadRequest(view="proposal", key="P-0001"))
    executed = ProposalView.model_validate_json(reply.json)
    assert (executed.state, executed.executed_round, executed.charter_version) == ("executed", 2, 2)
    alder.close()


def test_calls_asked_twice_change_nothing_the_second_time(stage_of: Any) -> None:
    stage = stage_of(charter())
    sites = [stage.site(name, silent=True) for name in SITES]
    stage.start_run()
    assert stage.start_run() == "run-1"
    eventually(lambda: all(s.orders for s in sites))
    epoch = stage.coordinator.desk.consortium.journal.epoch
    packed = sites[0].pack(sites[0].orders[0])
    first = sites[0].send(epoch, *packed)
    size = stage.coordinator.desk.consortium.size
    assert sites[0].send(epoch, *packed) == first
    position = sites[0].link.UploadOffset(
        wire.UploadKey(run="run-1", round=1, update=digest_of_text(packed[0]), lanes=1)
    )
    assert position.admitted
    assert stage.coordinator.desk.consortium.size == size
    other = sites[0].pack(sites[0].orders[0], loss=2.0)
    assert refused(lambda: sites[0].send(epoch, *other)) == Code.UPDATE_ALREADY_ADMITTED
    stage.office.operator.StopRun(wire.StopRunRequest(run="run-1", reason="enough"))
    stage.office.operator.StopRun(wire.StopRunRequest(run="run-1", reason="enough"))
    assert stage.kinds().count(Kind.FINISH) == 1
    states = {c.site: c.state for c in stage.budgets().charges}
    assert states == {"alder": "settled", "birch": "released", "cedar": "released"}


@pytest.mark.parametrize(
    ("changes", "code", "recorded"),
    [
        ({"base": "sha256:" + "0" * 64}, Code.STALE_BASE, False),
        (
            {"payload": "sha256:" + "0" * 64, "update": "sha256:" + "0" * 64},
            Code.UPDATE_DIGEST_MISMATCH,
            False,
        ),
        ({"gflop": 10**9}, Code.USAGE_IMPLAUSIBLE, True),
    ],
)
def test_a_wrong_update_is_refused_and_what_no_repeat_can_mend_is_recorded(
    stage_of: Any, changes: dict[str, Any], code: Code, recorded: bool
) -> None:
    stage = stage_of(charter())
    sites = [stage.site(name, silent=True) for name in SITES]
    stage.start_run()
    eventually(lambda: bool(sites[0].orders))
    epoch = stage.coordinator.desk.consortium.journal.epoch
    packed = sites[0].pack(sites[0].orders[0], **changes)
    assert refused(lambda: sites[0].send(epoch, *packed)) == code
    assert (Kind.REJECTION in stage.kinds()) == recorded
    right = sites[0].pack(sites[0].orders[0])
    if recorded:
        assert refused(lambda: sites[0].send(epoch, *right)) == Code.NOT_ASSIGNED
    else:
        assert sites[0].send(epoch, *right) > 0


def test_an_upload_with_an_old_epoch_is_sent_back_for_new_orders(stage_of: Any) -> None:
    stage = stage_of(charter())
    sites = [stage.site(name, silent=True) for name in SITES]
    stage.start_run()
    eventually(lambda: bool(sites[0].orders))
    epoch = stage.coordinator.desk.consortium.journal.epoch
    packed = sites[0].pack(sites[0].orders[0])
    assert refused(lambda: sites[0].send(epoch - 1, *packed)) == Code.EPOCH_STALE
    assert sites[0].send(epoch, *packed) > 0


def test_a_site_fetches_a_state_whole_or_from_any_offset(stage_of: Any, tmp_path: Path) -> None:
    stage = stage_of(charter())
    sites = [stage.site(name, silent=True) for name in SITES]
    stage.start_run()
    eventually(lambda: bool(sites[0].orders))
    base = sites[0].orders[0].base
    store = StateStore(tmp_path / "cache")
    sites[0].fetch_state(base, store)
    mine, theirs = store.load(Digest(base)), stage.coordinator.desk.store.load(Digest(base))
    assert mine.keys() == theirs.keys() and all(np.array_equal(mine[n], theirs[n]) for n in mine)
    blobs = [b.digest for b in store.manifest(Digest(base)).values()][:3]
    whole = sites[0].fetch(list(blobs))
    assert sites[0].fetch(list(blobs), offset=700) == whole[700:]
    unknown = "blake3:" + "1" * 64
    assert refused(lambda: sites[0].fetch([unknown])) == Code.BLOB_UNKNOWN
    assert refused(lambda: sites[0].fetch(["../../journal.db"])) == Code.REQUEST_INVALID


def test_a_newer_work_stream_of_a_site_ends_the_older_one(stage_of: Any) -> None:
    stage = stage_of(charter())
    older, newer = stage.site("alder"), None
    eventually(lambda: bool(older.waits))
    newer = stage.site("alder")
    eventually(lambda: bool(newer.waits))
    older._thread.join(5)
    assert not older._thread.is_alive()
    assert {"alder"} == stage.coordinator.desk.live.present()


def test_an_invite_is_good_for_one_key_and_a_lost_answer_can_be_asked_again(tmp_path: Path) -> None:
    home = found(tmp_path, charter())
    with running(home) as coordinator:
        seat = enrol(coordinator, "member", "alder", tmp_path / "alder")
        assert Seat.load(tmp_path / "alder").subject == seat.subject
        assert refused(lambda: enrol(coordinator, "member", "alder", tmp_path / "thief")) == Code.INVITE_USED
        enrol(coordinator, "site", "birch", tmp_path / "birch")
        assert refused(lambda: enrol(coordinator, "site", "birch", tmp_path / "again")) == Code.INVITE_USED
        address = coordinator.address
    with running(home) as coordinator:
        assert coordinator.address != address or coordinator.invites
        names = {p.stem for p in coordinator.invites}
        assert names == {"member-birch", "member-cedar", "site-alder", "site-cedar"}


def test_a_port_in_use_is_named_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir(), (tmp_path / "two").mkdir()
    with running(found(tmp_path / "one", charter())) as first:
        second = Coordinator(found(tmp_path / "two", charter()), first.address, mlflow=NO_MLFLOW)
        with pytest.raises(HansaError, match=rf"{first.address}.*in use.*--listen"):
            second.start()


def test_two_coordinators_never_share_a_home(tmp_path: Path) -> None:
    home = found(tmp_path, charter())
    with running(home), pytest.raises(StoreError, match="another coordinator"):
        started(home)


def test_the_coordinator_stops_with_streams_open(stage_of: Any) -> None:
    stage = stage_of(charter())
    [stage.site(name, silent=True) for name in SITES]
    stage.start_run()
    watch = stage.office.chamber.Watch(wire.ReadRequest(view="run"))
    next(iter(watch))
    stage.coordinator.stop()
    with pytest.raises(grpc.RpcError):
        list(stage.office.chamber.Watch(wire.ReadRequest(view="run"), timeout=1))


def test_a_release_made_over_the_wire_is_valid_until_a_byte_changes(stage_of: Any, tmp_path: Path) -> None:
    stage = stage_of(charter(learning__rounds=1))
    stage.all_sites()
    stage.start_run()
    stage.office.wait(over)
    folder = tmp_path / "out" / "release"
    made = stage.office.operator.MakeRelease(wire.ReleaseRequest(folder=str(folder)))
    assert made.path == str(folder) and verify(folder) == []
    model = folder / "model.safetensors"
    data = bytearray(model.read_bytes())
    data[-1] ^= 1
    model.write_bytes(data)
    assert any("model.safetensors was changed" in problem for problem in verify(folder))
