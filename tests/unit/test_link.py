"""The site's link: orders that come again, downloads and uploads that go on where they broke."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from commons.codec import FRAME
from commons.errors import Code, HansaError, Refusal, Refused, StoreError, Unreachable
from commons.names import Digest
from commons.notes import digest
from commons.states import StateStore
from commons.updates import lay_out
from commons.wire.channel import connect
from commons.wire.v1 import consortium_pb2 as wire
from commons.work import AssignmentNote
from tests.support.chamber import signer
from tests.support.site_port import SitePort
from workers.calls import Calls
from workers.lines import Lines
from workers.link import Link
from workers.outbox import Sealed
from workers.status import Status


def eventually(holds: Callable[[], object], timeout_s: float = 8.0) -> None:
    end = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


class Post:
    """One site's link to one coordinator."""

    def __init__(self, tmp_path: Path) -> None:
        self.port, self.stop, self.status = SitePort(), threading.Event(), Status()
        self.store = StateStore(tmp_path / "model")
        self.parts = tmp_path / "parts"
        self.parts.mkdir()
        self.link = Link(self.port.open(), self.status, self.store, parts=self.parts, stop=self.stop)

    def close(self) -> None:
        self.stop.set()
        self.link.close()
        self.port.close()

    def publish(self, tmp_path: Path, names: int = 3, size: int = 2500) -> tuple[Digest, StateStore]:
        """A state at the coordinator, and the store it came from."""
        origin = StateStore(tmp_path / "origin")
        random = np.random.default_rng(3)
        tensors = {f"slice.{n}": random.standard_normal(size).astype(np.float32) for n in range(names)}
        state = origin.save(tensors)
        for blob in (state, *(b.digest for b in origin.manifest(state).values())):
            self.port.add(origin.read(blob))
        return state, origin


@pytest.fixture
def post(tmp_path: Path) -> Iterator[Post]:
    made = Post(tmp_path)
    yield made
    made.close()


def sealed(tmp_path: Path, size: int = 3 * FRAME + 5) -> tuple[Sealed, bytes]:
    """A payload of `size` values."""
    values = np.random.default_rng(1).standard_normal(size, np.float32)
    manifest, payload = lay_out([("t", "fp32", (size,), values.tobytes())])
    (tmp_path / "payload.bin").write_bytes(payload)
    note = signer("acme/berlin").sign("hansa-update/v1\n")
    return Sealed(tmp_path, note, b"usage", manifest.to_bytes()), payload


def test_orders_are_counted_even_when_they_are_the_same(post: Post) -> None:
    post.link.open(run="", round_number=0)
    order = wire.Directive(epoch=4, assignment=wire.Assignment(note=b"order"))
    for number in (1, 2):
        post.port.directives.put(order)
        heard = post.link.directive(after=number - 1, timeout_s=8)
        assert heard is not None
        assert (heard.number, heard.epoch, heard.order) == (number, 4, b"order")
    assert post.link.directive(after=2, timeout_s=0.05) is None


def test_wait_brings_its_reason(post: Post) -> None:
    post.link.open(run="", round_number=0)
    post.port.directives.put(
        wire.Directive(epoch=1, wait=wire.Wait(reason="waiting for turin", finished=True))
    )
    heard = post.link.directive(after=0, timeout_s=8)
    assert heard is not None
    assert (heard.order, heard.reason, heard.finished) == (None, "waiting for turin", True)


def test_heartbeats_come_from_their_own_thread_and_carry_the_counters(post: Post) -> None:
    post.status.set(state="training", run="r1", round=2, step=7, steps=30, tokens_per_s=100.0)
    post.link.open(run="", round_number=0)
    eventually(lambda: post.port.beats)
    beat = post.port.beats[-1]
    assert (beat.state, beat.run, beat.round, beat.step, beat.steps) == ("training", "r1", 2, 7, 30)
    assert np.isnan(beat.loss)


def test_a_beat_can_be_told_that_its_work_is_no_longer_wanted_until_a_new_order_comes(post: Post) -> None:
    post.status.set(state="training", run="r1", round=2)
    post.port.unwanted = True
    post.link.open(run="", round_number=0)
    eventually(lambda: post.link.unwanted("r1", 2))
    assert not post.link.unwanted("r1", 3)
    post.port.unwanted = False
    post.status.set(state="idle")
    eventually(lambda: post.port.beats[-1].state == "idle")
    post.port.directives.put(wire.Directive(epoch=1, assignment=wire.Assignment(note=b"again")))
    eventually(lambda: not post.link.unwanted("r1", 2))


def test_a_refused_stream_is_asked_again_and_says_why(post: Post) -> None:
    post.port.refusal = Refusal(Code.NOT_ENROLLED, "site berlin is not enrolled; acme joins it again")
    post.link.open(run="", round_number=0)
    eventually(lambda: post.port.works >= 2)
    assert "acme joins it again" in post.link.trouble
    post.port.refusal = None
    post.port.directives.put(wire.Directive(epoch=1, wait=wire.Wait(reason="ready")))
    assert post.link.directive(after=0, timeout_s=8) is not None
    assert post.link.trouble == ""


def test_a_coordinator_that_is_not_there_is_waited_for_by_name(tmp_path: Path) -> None:
    post = Post(tmp_path)
    post.port.close()
    try:
        post.link.open(run="", round_number=0)
        eventually(lambda: post.link.trouble)
        assert post.link.trouble.startswith("waiting for coordinator: ")
        assert post.port.address in post.link.trouble
    finally:
        post.close()


def test_a_stop_ends_waiting_and_calls_under_way(post: Post) -> None:
    post.link.open(run="", round_number=0)
    eventually(lambda: post.port.works)
    began = time.monotonic()
    threading.Timer(0.1, post.stop.set).start()
    assert post.link.directive(after=0, timeout_s=30) is None
    assert time.monotonic() - began < 2


def test_only_the_slices_asked_for_and_not_at_hand_are_downloaded(post: Post, tmp_path: Path) -> None:
    state, origin = post.publish(tmp_path)
    post.link.fetch(state, ["slice.0", "slice.2"])
    wanted = [origin.manifest(state)[name].digest for name in ("slice.0", "slice.2")]
    assert [sorted(asked.digests) for asked in post.port.asked] == [[state], sorted(wanted)]
    for name in ("slice.0", "slice.2"):
        assert np.array_equal(
            post.store.tensor(post.store.manifest(state)[name]), origin.tensor(origin.manifest(state)[name])
        )
    post.link.fetch(state, ["slice.0", "slice.2"])
    assert len(post.port.asked) == 2
    assert post.status.now.bytes_down == 2 * 10_000 + len(origin.read(state))


@pytest.mark.parametrize("over", [False, True])
@pytest.mark.parametrize("broken_after", [0, 1_000, 9_000, 10_000, 15_000, 29_000])
def test_a_broken_download_goes_on_at_its_byte(
    post: Post, tmp_path: Path, broken_after: int, over: bool
) -> None:
    """`over`: it is written over what was pruned."""
    state, origin = post.publish(tmp_path)
    if over:
        post.store.save({f"old.{n}": np.full(2500, n, np.float32) for n in range(3)})
        post.store.prune([])
    post.link.fetch(state, [])
    post.port.break_after = broken_after
    names = sorted(origin.manifest(state))
    post.link.fetch(state, names)
    assert post.port.break_after is None and post.store.missing(state) == []
    # A frame in flight when the line broke may be lost, what was on disk is not sent again.
    manifest = len(origin.read(state))
    assert post.status.now.bytes_down == 30_000 + manifest
    assert not list(post.parts.iterdir())


def test_a_leftover_of_another_download_does_not_spoil_this_one(post: Post, tmp_path: Path) -> None:
    state, origin = post.publish(tmp_path, names=1)
    [blob] = origin.manifest(state).values()
    for left in (
        20_000,
        10_000,
    ):  # longer than the blob; what is there when a site is killed that writes over a file
        (post.parts / blob.digest.removeprefix("blake3:")).write_bytes(b"x" * left)
        post.link.fetch(state, ["slice.0"])
        assert post.store.missing(state) == []
        post.store.prune([])
    post.link.fetch(state, ["slice.0"])
    assert post.store.missing(state) == []


@pytest.mark.parametrize("what", ["manifest", "slice"])
def test_bytes_that_are_not_what_was_asked_for_are_refused(post: Post, tmp_path: Path, what: str) -> None:
    state, origin = post.publish(tmp_path, names=1)
    wrong = state if what == "manifest" else origin.manifest(state)["slice.0"].digest
    post.port.blobs[wrong] = bytes(len(post.port.blobs[wrong]))
    with pytest.raises(StoreError):
        post.link.fetch(state, ["slice.0"])
    assert not post.store.has(wrong)
    post.port.blobs[wrong] = origin.read(wrong)
    post.link.fetch(state, ["slice.0"])
    assert post.store.missing(state) == []


def test_a_state_without_a_slice_of_the_expert_map_is_named(post: Post, tmp_path: Path) -> None:
    state, _ = post.publish(tmp_path, names=1)
    with pytest.raises(HansaError, match=r"lacks slice\.9"):
        post.link.fetch(state, ["slice.0", "slice.9"])


def test_an_upload_arrives_whole_with_its_notes(post: Post, tmp_path: Path) -> None:
    what, payload = sealed(tmp_path)
    assert post.link.upload(what, run="r1", round_number=2) == 17
    assert bytes(post.port.received) == payload
    [header] = post.port.headers
    assert (header.update, header.usage, header.manifest, header.offset) == (
        what.update,
        b"usage",
        what.manifest,
        0,
    )
    assert post.status.now.bytes_up == len(payload)


def test_a_broken_upload_goes_on_where_the_coordinator_has_it(post: Post, tmp_path: Path) -> None:
    what, payload = sealed(tmp_path)
    post.port.break_after = 2 << 20
    assert post.link.upload(what, run="r1", round_number=2) == 17
    assert bytes(post.port.received) == payload
    assert post.port.headers[1].offset >= 2 << 20


def test_an_update_admitted_before_is_not_sent_again(post: Post, tmp_path: Path) -> None:
    post.port.admitted = True
    what, _ = sealed(tmp_path)
    assert post.link.upload(what, run="r1", round_number=2) is None
    assert post.port.headers == []


def test_a_refused_upload_brings_the_coordinators_reason(post: Post, tmp_path: Path) -> None:
    post.port.refusal = Refusal(Code.ROUND_CLOSED, "round 2 is closed")
    with pytest.raises(Refused, match="round 2 is closed"):
        post.link.upload(sealed(tmp_path)[0], run="r1", round_number=2)


def order() -> AssignmentNote:
    return AssignmentNote(
        consortium="demo", run="r1", round=2, work="train", site="berlin", base="-", charter_version=1, charter="-",
        expert_map="-", rounds=3, lease="lease/r1/2/berlin/1", lease_until=1, hold="hold/r1/2/berlin", hold_micro=7,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("answered_s", "mb", "lines"), [(0.1, 40, 2), (0.1, 600, 4), (0.001, 40, 1), (0.001, 600, 1)]
)
def test_a_near_coordinator_is_sent_bulk_over_one_line_and_a_far_one_over_several(
    post: Post, answered_s: float, mb: int, lines: int
) -> None:
    calls = Calls("there", threading.Event())
    calls.fastest_s = answered_s
    with (
        closing(connect(post.port.open())) as orders,
        closing(Lines(post.port.open(), orders, calls)) as made,
    ):
        bulk = made.for_bytes(mb << 20)
        assert len(bulk) == lines
        assert orders not in [line.channel for line in bulk], "heartbeats do not wait behind payload"
        [small] = made.for_bytes(1 << 20)
        assert small.channel is orders


def test_a_top_up_names_the_orders_lease_and_brings_a_refusal(post: Post) -> None:
    post.link.top_up(order(), 1, 500)
    post.port.refusal = Refusal(Code.EXCEEDS_BUDGET, "budget exceeded: elm needs 900")
    with pytest.raises(Refused, match="elm needs 900"):
        post.link.top_up(order(), 2, 900)
    asked = [(t.run, t.round, t.lease, t.number, t.amount_micro) for t in post.port.topups]
    assert asked == [("r1", 2, "lease/r1/2/berlin/1", 1, 500), ("r1", 2, "lease/r1/2/berlin/1", 2, 900)]


def test_a_top_up_that_nobody_answers_is_unreachable(post: Post) -> None:
    post.port.close()
    with pytest.raises(Unreachable):
        post.link.top_up(order(), 1, 500)


def test_an_upload_is_named_by_the_digest_of_what_was_signed(tmp_path: Path) -> None:
    what, _ = sealed(tmp_path, 1)
    assert digest(b"hansa-update/v1\n") != digest(what.update)
