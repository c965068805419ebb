"""Secure aggregation over real gRPC: sites lost at every step, a coordinator that dies in between, and what the sum is."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from commons.charter import Charter
from commons.codec import encode
from commons.errors import Code, Unreachable
from commons.experts.map import ExpertMap, Kind
from commons.identity import Seat
from commons.names import RunId
from commons.notes import Verifier
from commons.records import Kind as Records
from commons.records import Record
from commons.updates import lay_out
from commons.wire import channel
from commons.wire.v1 import consortium_pb2 as wire
from commons.work import AssignmentNote
from governance.fsck import judge
from orchestrator import masking, unmasked
from tests.contract.test_services import Stage, eventually, refused
from tests.support.consortium import (
    FakeSite,
    Office,
    enrol,
    found,
    masking_charter,
    over,
    signer,
    started,
)
from workers.masks import SiteMasks
from workers.seal import Masking
from workers.training import Abandoned
from workers.verify import Order

FIVE = ("alder", "birch", "cedar", "elm", "fir")
STEPS = ("keys", "deal", "upload", "agreement", "reveal")


def note_of(order: AssignmentNote) -> bytes:
    return signer("hanse").sign(order.text)


class Masked(FakeSite):
    """A site whose masking is the real one; `lost` names the step of round 1 at which it falls silent."""

    folder: Path
    lost = ""
    asking: Any = None
    reached: threading.Event | None = None
    """Set when it is at `lost`; from then on nothing of it arrives."""

    def begin(self, folder: Path, lost: str = "", reached: threading.Event | None = None) -> Masked:
        self.deltas: dict[int, dict[str, np.ndarray]] = {}
        self.lost, self.reached, self.gone = lost, reached, threading.Event()
        log_key = Verifier.from_vkey(self.seat.log_key)
        self.masks = SiteMasks(self.ask, self.signer, log_key, folder, self.gone)
        self.start()
        return self

    def ask(self, request: wire.MaskRequest) -> wire.MaskView:
        self.maybe_lost(request.WhichOneof("word") or "", request.round)
        try:
            self.asking = self.link.Mask.future(request, timeout=30)
            return self.asking.result()
        except grpc.FutureCancelledError as error:
            raise Unreachable("gone") from error
        except grpc.RpcError as error:
            raise channel.translate(error, self.seat.address) from error
        except ValueError as closed:
            raise Unreachable("gone") from closed

    def maybe_lost(self, step: str, number: int) -> None:
        if self.lost and (self.gone.is_set() or (step == self.lost and number == 1)):
            self.gone.set()
            if self.reached is not None:
                self.reached.set()
            raise Unreachable("gone")

    def verified(self, order: AssignmentNote) -> Order:
        keys = {name: signer(f"{name}/{name}").verifier for name in FIVE}
        return Order(order, self.of, ExpertMap.from_charter(self.of), note_of(order), (), keys)

    def pack(self, order: AssignmentNote, **changes: Any) -> tuple[bytes, bytes, bytes, bytes]:
        verified = self.verified(order)
        self.masks.begin(verified)
        how = self.masks.masking(verified, lambda: not self.gone.is_set())
        assert how is not None
        self.maybe_lost("upload", order.round)
        return super().pack(order, lay_out=lambda deltas: self.masked(how, order.round, deltas), **changes)

    def masked(self, how: Masking, number: int, deltas: dict[str, np.ndarray]) -> Any:
        self.deltas[number] = deltas
        return lay_out(
            (n, "masked", d.shape, how.frame(n, 0, d.reshape(-1), None)[0])
            if n in how.slices
            else (n, "fp32", d.shape, encode("fp32", d))
            for n, d in deltas.items()
        )

    def obey(self, epoch: int, note: bytes) -> None:
        try:
            super().obey(epoch, note)
        except (Unreachable, Abandoned):
            return

    def close(self) -> None:
        self.gone.set()
        while any(t.is_alive() for t in self.masks.threads):
            if self.asking is not None:
                self.asking.cancel()
            for thread in self.masks.threads:
                thread.join(0.05)
        super().close()


class MaskedStage(Stage):
    """A running consortium of five under secure aggregation."""

    def __init__(self, folder: Path, of: Charter) -> None:
        self.folder, self.of, self.home, self.options = folder, of, found(folder, of), {}
        self.coordinator = started(self.home)
        self.seats = {s: enrol(self.coordinator, "site", s, folder / s / "seat") for s in FIVE}
        self.sites = []
        self.office = Office(Seat.load(self.home / "operator"))

    def masked(self, name: str, lost: str = "", reached: threading.Event | None = None) -> Masked:
        site = Masked(self.seats[name], self.of).begin(self.folder / name / "masking", lost, reached)
        self.sites.append(site)
        return site

    @property
    def records(self) -> list[Record]:
        return list(self.coordinator.desk.consortium.journal.records())

    def closes(self) -> list[dict[str, Any]]:
        return [dict(r.facts) for r in self.records if r.kind is Records.CLOSE]

    def check_sum(self, closed: dict[str, Any], sites: dict[str, Masked]) -> None:
        """Shared slices moved by the plain mean of the contributors', to the precision of the fixed point."""
        store = self.coordinator.desk.store
        base, state = store.load(closed["base"]), store.load(closed["state"])
        for part in ExpertMap.from_charter(self.of).slices:
            if part.kind is not Kind.EXPERT:
                sent = [sites[s].deltas[closed["round"]][part.name] for s in closed["contributors"]]
                want = base[part.name] + np.mean(sent, axis=0)
                np.testing.assert_allclose(state[part.name], want, rtol=1e-5, atol=2e-7)


@pytest.fixture
def stage_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., MaskedStage]]:
    for module in (masking, unmasked):
        monkeypatch.setattr(module, "PATIENCE_MS", 1000)
    stages: list[MaskedStage] = []

    def make(**rounds: Any) -> MaskedStage:
        stages.append(MaskedStage(tmp_path, masking_charter(FIVE, **rounds)))
        return stages[-1]

    yield make
    for stage in stages:
        stage.close()


def test_the_sum_of_five_is_their_mean_and_no_single_update_is_anywhere(
    stage_of: Callable[..., MaskedStage],
) -> None:
    stage = stage_of(quorum=5)
    sites = {name: stage.masked(name) for name in FIVE}
    stage.start_run()
    view = stage.office.wait(over)
    assert view.phase == "finished"
    first, second = stage.closes()
    assert (first["shared"], second["shared"], len(first["contributors"])) == ("masked", "masked", 5)
    stage.check_sum(first, sites)
    stage.check_sum(second, sites)
    assert judge(stage.records) == ()


@pytest.mark.parametrize("step", STEPS)
def test_a_site_lost_at_any_step_does_not_stop_the_round(
    stage_of: Callable[..., MaskedStage], step: str
) -> None:
    stage = stage_of(quorum=4)
    gone = threading.Event()
    sites = {name: stage.masked(name, *((step, gone) if name == "cedar" else ())) for name in FIVE}
    stage.start_run()
    eventually(lambda: len(stage.closes()) == 1, 30)
    assert gone.is_set()
    [closed] = stage.closes()
    handed_in = [n for n in FIVE if n != "cedar" or step in ("agreement", "reveal")]
    assert (closed["contributors"], closed["shared"]) == (handed_in, "masked")
    stage.check_sum(closed, sites)
    assert judge(stage.records) == ()


@pytest.mark.parametrize("step", STEPS)
def test_a_coordinator_that_dies_at_any_step_goes_on(stage_of: Callable[..., MaskedStage], step: str) -> None:
    stage = stage_of(quorum=5)
    reached = threading.Event()
    before = {name: stage.masked(name, *((step, reached) if name == "birch" else ())) for name in FIVE}
    stage.start_run()
    assert reached.wait(20)
    stage.restart()
    after = {name: stage.masked(name) for name in FIVE}
    for name, site in after.items():  # the sites' processes outlived it, and so did their part in the masking
        site.masks.begin(site.verified(before[name].orders[0]))
    stage.office.wait(over)
    first, second = stage.closes()
    assert (first["shared"], second["shared"], len(first["contributors"])) == ("masked", "masked", 5)
    packed = {name: after[name] if 1 in after[name].deltas else before[name] for name in FIVE}
    stage.check_sum(first, packed)
    assert judge(stage.records) == ()


def test_a_site_started_again_after_it_handed_in_helps_to_open_the_sum(
    stage_of: Callable[..., MaskedStage],
) -> None:
    stage = stage_of(quorum=5)
    reached = threading.Event()
    lost = {name: stage.masked(name, "agreement", reached) for name in ("elm", "fir")}
    others = {name: stage.masked(name) for name in FIVE[:3]}
    stage.start_run()
    assert reached.wait(20), "three of five are too few to agree"
    elm = lost["elm"]
    elm.close()
    again = stage.masked("elm")
    again.masks.resume(lambda _: again.verified(elm.orders[0]))
    eventually(lambda: len(stage.closes()) == 1, 30)
    [closed] = stage.closes()
    assert (closed["shared"], len(closed["contributors"])) == ("masked", 5)
    stage.check_sum(closed, others | lost)


def test_too_few_to_open_the_sum_leave_trunk_and_router_where_they_were(
    stage_of: Callable[..., MaskedStage],
) -> None:
    stage = stage_of(quorum=4, lease_s=6)
    for name in FIVE:
        stage.masked(name, "agreement" if name in ("birch", "cedar", "fir") else "")
    stage.start_run()
    eventually(lambda: len(stage.closes()) == 1, 30)
    [closed] = stage.closes()
    assert closed["shared"] == "unmoved"
    base, state = (stage.coordinator.desk.store.load(closed[k]) for k in ("base", "state"))
    for part in ExpertMap.from_charter(stage.of).slices:
        assert np.array_equal(state[part.name], base[part.name]) is (part.kind is not Kind.EXPERT)
    assert judge(stage.records) == ()


def test_words_that_are_out_of_place_are_refused_with_a_code(stage_of: Callable[..., MaskedStage]) -> None:
    stage = stage_of(quorum=5)
    site = stage.site("alder", silent=True)
    ask = wire.MaskRequest(run="run-1", round=1)
    assert refused(lambda: site.link.Mask(ask, timeout=5)) is Code.RUN_UNKNOWN
    for name in FIVE[1:]:
        stage.site(name, silent=True)
    run = RunId(stage.start_run())
    eventually(lambda: bool(site.orders))
    here = {"run": run, "round": 1}
    for wrong, code in (
        ({"round": 7}, Code.ROUND_CLOSED),
        ({"keys": b"no note"}, Code.MASK_KEYS_INVALID),
        ({"keys": b"x" * 5000}, Code.REQUEST_INVALID),
        ({"deal": wire.MaskWord(note=b"early")}, Code.MASK_ATTEMPT_REFUSED),
        ({"agreement": b"early"}, Code.MASK_ATTEMPT_REFUSED),
        ({"reveal": wire.MaskWord(note=b"early", data=b"y" * 20_000)}, Code.REQUEST_INVALID),
    ):
        request = wire.MaskRequest(**here | wrong)
        assert refused(lambda request=request: site.link.Mask(request, timeout=5)) is code
