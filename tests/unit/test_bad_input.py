"""What a site may send that is wrong, one row for each: refused with its code, in bounded memory, and the round goes on.

Streams that are slow, abandoned or too many are in `tests/contract/test_streams.py`, on real gRPC.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from commons.errors import Code
from commons.names import SiteId
from commons.notes import parse
from commons.records import Kind
from commons.updates import UpdateManifest, lay_out
from commons.wire.v1 import consortium_pb2 as wire
from commons.work import EvaluationNote, UpdateNote, UsageNote
from tests.support import fuzz_masks, fuzz_services
from tests.support.consortium import SITES, charter, signer
from tests.support.hostile_uploads import Packed
from tests.support.mutations import written
from tests.support.rounds import RUN, Stage
from tests.support.servicer import Aborted, Port

KEY = signer("alder/alder")


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    made = Stage(tmp_path, charter(learning__rounds=9))
    yield made
    made.close()


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(Aborted) as caught:
        call()
    return str(caught.value)


def in_a_round(stage: Stage, does: Callable[[Port, Packed], None], *, takes: tuple[str, ...] = SITES) -> None:
    """What alder does with its order comes first, then all hand in that still may; the round closes with `takes`."""
    port = Port(stage)

    def step() -> None:
        stage.passes(5000)
        packed = {site: Packed.of(stage, site) for site in SITES}
        does(port, packed["alder"])
        for site in stage.desk.runs.by_id[RUN].history[-1].waiting:
            assert port.hand_in(site, packed[site]) > 0

    assert stage.play(step)
    closed = stage.desk.runs.by_id[RUN].history[-1]
    assert tuple(sorted(closed.admitted)) == takes
    assert not list(stage.desk.spool._root.glob("*/*/*"))


def of_values(packed: Packed, value: float) -> Packed:
    """The update with every value another one, all digests and signatures right."""
    parts = UpdateManifest.from_bytes(packed.upload.manifest).parts
    manifest, payload = lay_out(
        (p.name, p.codec, p.shape, np.full(p.shape, value, "<f4").tobytes()) for p in parts
    )
    return packed.restated(KEY, manifest.to_bytes(), payload)


def restated(packed: Packed, change: Callable[[Any], None]) -> Packed:
    """With another manifest, and notes that state it."""
    manifest = json.loads(packed.upload.manifest)
    change(manifest)
    return packed.restated(KEY, written(manifest), packed.payload)


def noted(packed: Packed, **changes: Any) -> Packed:
    """With other notes."""
    update = replace(UpdateNote.from_note(parse(packed.upload.update)), **changes)
    both = {name: value for name, value in changes.items() if name in ("run", "round")}
    usage = replace(UsageNote.from_note(parse(packed.upload.usage)), **both)
    notes = {"update": KEY.sign(update.text), "usage": KEY.sign(usage.text)}
    return replace(packed, upload=replace(packed.upload, **notes))


def stated(packed: Packed, line: str, instead: str) -> Packed:
    """With an update note that no writer of ours would write."""
    text = parse(packed.upload.update).text
    assert line in text
    return replace(packed, upload=replace(packed.upload, update=KEY.sign(text.replace(line, instead))))


def first_part(**changes: Any) -> Callable[[Packed], Packed]:
    return lambda packed: restated(packed, lambda manifest: manifest["parts"][0].update(changes))


OUT = ("birch", "cedar")
"""A signed update that is wrong is out for its round."""
WRONG: dict[str, tuple[Callable[[Packed], Packed], Code, tuple[str, ...]]] = {
    "a frame with a wrong digest": (
        lambda p: replace(p, payload=p.payload[:9] + bytes([p.payload[9] ^ 1]) + p.payload[10:]),
        Code.UPDATE_DIGEST_MISMATCH,
        SITES,
    ),
    "fewer bytes than signed": (lambda p: replace(p, payload=p.payload[:-1]), Code.REQUEST_INVALID, SITES),
    "more bytes than signed": (lambda p: replace(p, payload=p.payload + b"x"), Code.UPDATE_TOO_LARGE, SITES),
    "a part of another length": (first_part(bytes=3), Code.UPDATE_MALFORMED, SITES),
    "an unknown tensor": (
        lambda p: restated(p, lambda m: m["parts"][-1].update(name="zzz")),
        Code.EXPERT_MAP_MISMATCH,
        OUT,
    ),
    "a part that begins elsewhere": (first_part(offset=1), Code.UPDATE_MALFORMED, SITES),
    "a part that begins beyond all": (first_part(offset=2**63 - 1), Code.UPDATE_MALFORMED, SITES),
    "2^63 bytes": (first_part(bytes=2**63), Code.UPDATE_MALFORMED, SITES),
    "2^63 elements": (first_part(shape=[2**62, 2]), Code.UPDATE_MALFORMED, SITES),
    "2^500 elements": (first_part(shape=[2**63 - 1] * 8), Code.UPDATE_MALFORMED, SITES),
    "a number of 4000 digits": (first_part(bytes=10**4000), Code.UPDATE_MALFORMED, SITES),
    "NaN": (lambda p: of_values(p, float("nan")), Code.UPDATE_NOT_FINITE, OUT),
    "infinity": (lambda p: of_values(p, float("inf")), Code.UPDATE_NOT_FINITE, OUT),
    "a stale base": (lambda p: noted(p, base="sha256:" + "0" * 64), Code.STALE_BASE, SITES),
    "another run's update": (lambda p: noted(p, run="run-0"), Code.RUN_UNKNOWN, SITES),
    "the update of a round to come": (lambda p: noted(p, round=2), Code.ROUND_CLOSED, SITES),
    "a loss that is no number": (lambda p: stated(p, "loss 2.0", "loss 1e999"), Code.NOTE_MALFORMED, SITES),
    "a loss beyond all bounds": (lambda p: stated(p, "loss 2.0", "loss 9e300"), Code.NOTE_MALFORMED, SITES),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_update_is_refused_and_the_round_goes_on(stage: Stage, name: str) -> None:
    spoil, code, takes = WRONG[name]

    def does(port: Port, packed: Packed) -> None:
        wrong = spoil(packed)
        header = wrong.header().SerializeToString()
        assert refused(lambda: port.send("alder", [header, wrong.payload])) == code

    in_a_round(stage, does, takes=takes)


def test_an_update_a_million_times_as_large_as_the_others_is_taken_out_of_its_round(stage: Stage) -> None:
    in_a_round(
        stage,
        lambda port, packed: port.hand_in("alder", of_values(packed, 0.01 * 1e6)) and None,
        takes=OUT,
    )
    assert stage.desk.runs.by_id[RUN].history[-1].rejected[SiteId("alder")].code == Code.UPDATE_NORM


@pytest.mark.parametrize("value", [1e17, -3e37])
def test_an_update_that_would_drive_the_state_to_infinity_is_rejected_though_nobody_else_tells(
    stage: Stage, value: float
) -> None:
    """Below three updates there is no median to be out of proportion to."""

    def does(port: Port, packed: Packed) -> None:
        wrong = of_values(packed, value)
        header = wrong.header().SerializeToString()
        assert refused(lambda: port.send("alder", [header, wrong.payload])) == Code.UPDATE_NORM

    in_a_round(stage, does, takes=OUT)


def test_the_same_update_twice_counts_once_and_another_beside_it_not_at_all(stage: Stage) -> None:
    def does(port: Port, packed: Packed) -> None:
        header = packed.header().SerializeToString()
        receipts = {port.send("alder", [header, packed.payload]) for _ in range(3)}
        assert len(receipts) == 1
        other = noted(packed, loss=1.0)
        header = other.header().SerializeToString()
        assert refused(lambda: port.send("alder", [header, other.payload])) == Code.UPDATE_ALREADY_ADMITTED

    in_a_round(stage, does)
    assert len(stage.records(Kind.UPDATE)) == len(stage.records(Kind.USAGE)) == len(SITES)


def test_an_update_of_the_round_before_is_of_no_use(stage: Stage) -> None:
    sent: list[Packed] = []
    in_a_round(stage, lambda port, packed: sent.append(packed))

    def again(port: Port, packed: Packed) -> None:
        header = noted(sent[0], round=2).header().SerializeToString()
        assert refused(lambda: port.send("alder", [header, sent[0].payload])) == Code.LEASE_EXPIRED

    in_a_round(stage, again)


def test_another_sites_update_is_refused(stage: Stage) -> None:
    def does(port: Port, packed: Packed) -> None:
        header = packed.header().SerializeToString()
        assert refused(lambda: port.send("birch", [header, packed.payload])) == Code.NOTE_MALFORMED

    in_a_round(stage, does)


def test_the_beginning_of_a_frame_that_is_not_the_one_signed_is_not_resumed_for_ever(stage: Stage) -> None:
    def does(port: Port, packed: Packed) -> None:
        header, half = (
            packed.header().SerializeToString(),
            UpdateManifest.from_bytes(packed.upload.manifest).frames[0],
        )
        assert refused(lambda: port.send("alder", [header, bytes(half.bytes // 2)])) == Code.REQUEST_INVALID
        assert refused(lambda: port.hand_in("alder", packed)) == Code.UPDATE_DIGEST_MISMATCH
        assert port.hand_in("alder", packed) > 0

    in_a_round(stage, does)


def test_a_claim_that_is_not_in_order_is_not_kept(stage: Stage) -> None:
    def does(port: Port, packed: Packed) -> None:
        wrong = restated(packed, lambda m: m["parts"][-1].update(name="z" * 200))
        for header in (wrong.header(), packed.header(epoch=99), packed.header(offset=1)):
            refused(lambda h=header: port.send("alder", [h.SerializeToString(), packed.payload]))  # type: ignore[misc]
            assert not port.streams._claims

    in_a_round(stage, does, takes=OUT)


@pytest.mark.parametrize("loss", ["1e999", "9e300", "nan", "-1"])
def test_a_loss_that_no_view_could_show_is_not_recorded(stage: Stage, loss: str) -> None:
    note = EvaluationNote(
        consortium="hanse", run=RUN, site="alder", state="-", domain="alder-text", bytes=1, loss=2.0
    )
    signed = KEY.sign(note.text.replace("loss 2.000000000", f"loss {loss}"))
    port = Port(stage)
    asked = wire.NoteRequest(note=signed)
    assert refused(lambda: port.link.Evaluate(asked, port.call("alder"))) == Code.NOTE_MALFORMED


def test_a_fetch_of_millions_of_nothings_is_refused_unread(stage: Stage) -> None:
    port = Port(stage)
    for asked in (b"\n\0" * (8 << 20), b"\n\x01x" * (5 << 20)):
        with pytest.raises(Aborted, match=Code.REQUEST_INVALID) as caught:
            list(port.link.Fetch(asked, port.call("alder")))
        assert "names blobs by their digests" in caught.value.text


BOMBS = """
import resource
from commons.errors import StoreError
from commons.states.manifest import read_manifest
from commons.updates import UpdateManifest

def part(frames="", rest=""):
    return '{"parts":[{"bytes":4,"codec":"fp32","frames":[%s],"name":"a","offset":0,"shape":[1]%s}],"payload_bytes":4}' % (frames, rest)

million = 2_700_000
bombs = [
    part('"",' * million + '""'),
    part("1," * million + "1"),
    part("[]," * million + "1"),
    part("{}," * million + "1"),
    part('"' + "0" * 64 + '"', "," + ",".join(f'"{n:x}":0' for n in range(million // 4))),
    '{"parts":[' + "{}," * million + '{}],"payload_bytes":4}',
    '{"parts":[' + "1," * million + '1],"payload_bytes":4}',
    "[" + "[]," * million + "1]",
    "[" * 3 * million,
    '{"slices":{' + ",".join(f'"{n:x}":[]' for n in range(million // 4)) + "}}",
    '{"slices":{"a":{"bytes":4,"digest":"x","shape":[' + "1," * million + "1]}}}",
]
bombs = [bomb.encode() for bomb in bombs]
used = 1024 * int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmData")))
resource.setrlimit(resource.RLIMIT_DATA, (used + (64 << 20),) * 2)
for bomb in bombs:
    for read in (UpdateManifest.from_bytes, read_manifest):
        try:
            read(bomb)
        except (ValueError, StoreError) as error:
            assert len(str(error)) < 2000
        else:
            raise AssertionError("taken")
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="tells what memory is used on Linux only")
def test_a_manifest_of_megabytes_of_braces_is_refused_in_memory_of_a_few_of_them() -> None:
    done = subprocess.run([sys.executable, "-c", BOMBS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_part_after_the_first_wrong_one_is_not_looked_at() -> None:
    one = '{"bytes":4,"codec":"fp32","frames":["%s"],"name":"a","offset":0,"shape":[2]}' % ("0" * 64)
    data = '{"parts":[' + ",".join([one] * 1000) + '],"payload_bytes":4}'
    with pytest.raises(ValueError, match="takes 4 bytes") as caught:
        UpdateManifest.from_bytes(data.encode())
    assert str(caught.value).count("takes 4 bytes") == 1


def test_mutated_requests_are_answered_or_refused_and_every_round_closes() -> None:
    """A slice of what `fuzz_services` runs for hours: the same seed, the same requests."""
    counts: Counter[str] = Counter()
    fuzz_services.decode(3000, 1, counts)
    fuzz_services.disturb(400, 1, counts)
    assert counts["upload admitted"] and counts["upload note_malformed"] and counts["update_manifest taken"]


def test_mutated_words_about_masks_are_answered_or_refused_and_every_sum_is_right() -> None:
    """A slice of what `fuzz_masks` runs for hours."""
    counts: Counter[str] = Counter()
    fuzz_masks.disturb(600, 1, counts)
    masked = sum(times for what, times in counts.items() if what.startswith("round masked"))
    assert masked and counts["restart done"] and counts["another's signature_invalid"]
