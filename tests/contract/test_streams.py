"""Streams that misbehave, on real gRPC: each is refused with its code, and the round goes on."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from commons.errors import Code
from commons.notes import digest, parse
from commons.updates import UpdateManifest
from commons.wire import channel
from commons.wire.v1 import consortium_pb2 as wire
from orchestrator import streams
from tests.contract.test_services import Stage, eventually, refused
from tests.support.consortium import SITES, FakeSite, charter, over

Sent = tuple[bytes, bytes, bytes, bytes]


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    monkeypatch.setattr(streams, "STALL_S", 1.0)
    made = Stage(tmp_path, charter())
    yield made
    made.close()


@pytest.fixture
def alder(stage: Stage) -> FakeSite:
    """A site with an order that it has not carried out, beside two that do what they are told."""
    for name in SITES[1:]:
        stage.site(name)
    site = stage.site("alder", silent=True)
    stage.start_run()
    eventually(lambda: bool(site.orders))
    return site


def header(stage: Stage, packed: Sent, **changes: Any) -> bytes:
    fields = dict(zip(("update", "usage", "manifest"), packed, strict=False))
    fields |= {"epoch": stage.coordinator.desk.consortium.journal.epoch, "lanes": 1} | changes
    return bytes(wire.UploadHeader(**fields).SerializeToString())


def answered(site: FakeSite, messages: Iterator[bytes]) -> wire.UploadReply:
    *_, last = channel.raw_upload(site.channel)(messages, timeout=20)
    return wire.UploadReply.FromString(last)


def finishes(stage: Stage, site: FakeSite, packed: Sent) -> None:
    """The same update, sent as it should be, is admitted, and the run ends."""
    epoch = stage.coordinator.desk.consortium.journal.epoch
    name = digest(parse(packed[0]).text.encode())
    position = site.link.UploadOffset(wire.UploadKey(run="run-1", round=1, update=name, lanes=1))
    assert site.send(epoch, *packed, offset=position.offsets[0]) >= 0
    site.silent = False
    view = stage.office.wait(lambda v: len(v.history) >= 1 and v.history[0].closed_ms is not None)
    assert set(view.history[0].contributors) == set(SITES)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"offset": 1}, Code.REQUEST_INVALID),
        ({"offset": 2**64 - 1}, Code.REQUEST_INVALID),
        ({"lanes": 0}, Code.REQUEST_INVALID),
        ({"lanes": 9}, Code.REQUEST_INVALID),
        ({"lane": 1}, Code.REQUEST_INVALID),
        ({"lane": 2**32 - 1, "lanes": 2**32 - 1}, Code.REQUEST_INVALID),
        ({"manifest": b"{}"}, Code.UPDATE_MALFORMED),
        ({"update": b"x" * 9000}, Code.NOTE_MALFORMED),
    ],
)
def test_a_header_that_cannot_be_is_refused(
    stage: Stage, alder: FakeSite, changes: dict[str, Any], code: Code
) -> None:
    packed = alder.pack(alder.orders[0])
    assert refused(lambda: answered(alder, iter([header(stage, packed, **changes), packed[3]]))) == code
    finishes(stage, alder, packed)


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (lambda data: data[:-1], Code.REQUEST_INVALID),
        (lambda data: data + b"x", Code.UPDATE_TOO_LARGE),
        (lambda data: data[:20_000] + b"\xff" + data[20_001:], Code.UPDATE_DIGEST_MISMATCH),
    ],
    ids=["shorter", "longer", "another byte"],
)
def test_bytes_that_are_not_those_signed_are_refused_and_the_right_ones_taken_afterwards(
    stage: Stage, alder: FakeSite, spoil: Callable[[bytes], bytes], code: Code
) -> None:
    packed = alder.pack(alder.orders[0])
    assert refused(lambda: answered(alder, iter([header(stage, packed), spoil(packed[3])]))) == code
    finishes(stage, alder, packed)


def _with(manifest: bytes, **changes: Any) -> bytes:
    read = json.loads(manifest)
    read["parts"][0] |= changes
    return json.dumps(read, sort_keys=True, separators=(",", ":")).encode()


@pytest.mark.parametrize(
    "changes",
    [
        {"bytes": 2**63},
        {"offset": 2**63 - 1},
        {"shape": [2**62, 2**62, 2**62]},
        {"shape": [2**63 - 1]},
        {"frames": []},
        {"frames": ["00"]},
        {"codec": "zip"},
        {"name": "x" * 300},
    ],
    ids=str,
)
def test_a_manifest_with_sizes_that_cannot_be_costs_nothing(
    stage: Stage, alder: FakeSite, changes: dict[str, Any]
) -> None:
    packed = alder.pack(alder.orders[0])
    bad = _with(packed[2], **changes)
    code = refused(lambda: answered(alder, iter([header(stage, packed, manifest=bad), packed[3]])))
    assert code == Code.UPDATE_MALFORMED
    finishes(stage, alder, packed)


def test_a_site_that_sends_a_byte_now_and_then_is_ended_and_holds_up_nobody(
    stage: Stage, alder: FakeSite
) -> None:
    packed = alder.pack(alder.orders[0])
    over_ = threading.Event()

    def trickle() -> Iterator[bytes]:
        yield header(stage, packed)
        for at in range(1000):
            yield packed[3][at : at + 1]
            if over_.wait(0.05):
                return

    try:
        assert refused(lambda: answered(alder, trickle())) == Code.UPLOAD_STALLED
    finally:
        over_.set()
    finishes(stage, alder, packed)


def test_a_thousand_streams_opened_and_left_take_nothing_from_the_others(
    stage: Stage, alder: FakeSite
) -> None:
    packed = alder.pack(alder.orders[0])
    left = threading.Event()

    def hangs() -> Iterator[bytes]:
        yield header(stage, packed)
        left.wait(30)

    calls = [channel.raw_upload(alder.channel)(hangs()) for _ in range(1000)]
    try:
        eventually(lambda: sum(call.done() for call in calls) >= 1000 - streams.STREAMS_MAX, timeout_s=60)
        codes = Counter(_code(call) for call in calls if call.done())
        # A newer stream of a lane takes over from the older; those beyond eight at a time are sent away unread.
        assert set(codes) <= {Code.TOO_MANY_STREAMS, Code.REQUEST_INVALID, Code.UPLOAD_STALLED}, codes
        birch = stage.sites[0]
        assert birch.fetch([birch.orders[0].base])
    finally:
        for call in calls:
            call.cancel()
        left.set()
    eventually(lambda: _may_send(alder, stage, packed), timeout_s=20)
    alder.silent = False
    assert stage.office.wait(over).phase == "finished"


def _code(call: Any) -> Code | None:
    refusal = channel.as_refusal(call.exception()) if call.exception() is not None else None
    return refusal.code if refusal else None


def _may_send(site: FakeSite, stage: Stage, packed: Sent) -> bool:
    try:
        return answered(site, iter([header(stage, packed), packed[3]])).index > 0
    except grpc.RpcError as error:
        refusal = channel.as_refusal(error)
        assert refusal is not None and refusal.code is Code.TOO_MANY_STREAMS, error
        time.sleep(0.05)
        return False


def test_lanes_over_one_connection_in_any_order_make_the_update(stage: Stage, alder: FakeSite) -> None:
    packed = alder.pack(alder.orders[0])
    cut = UpdateManifest.from_bytes(packed[2]).lanes(3)
    indices = [
        answered(
            alder,
            iter(
                [
                    header(stage, packed, lane=lane.number, lanes=3),
                    packed[3][lane.offset : lane.offset + lane.bytes],
                ]
            ),
        ).index
        for lane in reversed(cut)
    ]
    assert indices[:2] == [0, 0] and indices[2] > 0
    again = answered(alder, iter([header(stage, packed, lane=0, lanes=3)])).index
    assert again == indices[2]
