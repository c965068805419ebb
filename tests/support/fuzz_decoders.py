"""What a stranger's bytes can do to the readers of manifests, notes and records: be read, or be refused as documented."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from random import Random
from typing import Any

from commons.codec import FRAME, encoded_bytes, frame_count
from commons.errors import StoreError
from commons.learning import Codec
from commons.log import Checkpoint
from commons.notes import NoteError, Signer, open_note, parse
from commons.records import Kind, Record, canonical_json
from commons.states import read_manifest
from commons.states.manifest import manifest_bytes
from commons.updates import LANES_MAX, UpdateManifest
from commons.work import AssignmentNote, EvaluationNote, ProbeNote, UpdateNote, UsageNote, Words
from tests.support.consortium import signer
from tests.support.mutations import damaged, document, number, text, written

DIGEST = "sha256:" + "5" * 64
BLOB = "blake3:" + "5" * 64
KEY = signer("alder/alder")
_WORDS: tuple[Words, ...] = (
    UpdateNote(
        consortium="hanse", run="run-1", round=1, site="alder", base=DIGEST, manifest=DIGEST, payload=DIGEST,
        payload_bytes=7, steps=4, tokens=128, loss=2.0, held_out_loss=None,
    ),
    UsageNote(
        consortium="hanse", run="run-1", round=1, site="alder", lease="lease/run-1/1/alder/1", device="cpu",
        device_ids="cpu/alder/alder", precision="fp32", started_ms=1000, ended_ms=2000, device_ms=900, steps=4, tokens=128,
        gflop=1, energy_j=None, update=DIGEST,
    ),
    EvaluationNote(
        consortium="hanse", run="run-1", site="alder", state=DIGEST, domain="alder-text", bytes=9, loss=2.0
    ),
    ProbeNote(consortium="hanse", run="run-1", round=1, site="alder", probe=DIGEST, state=DIGEST, losses=(2.0, 1.5)),
    AssignmentNote(
        consortium="hanse", run="run-1", round=1, work="train", site="alder", base=DIGEST, charter_version=1,
        charter=DIGEST, expert_map=DIGEST, rounds=3, lease="lease/run-1/1/alder/1", lease_until=9, hold="hold/run-1/1/alder",
        hold_micro=7,
    ),
)  # fmt: skip


def one(random: Random) -> str:
    """One input for one decoder, both drawn; what came of it. Raises what no decoder may raise."""
    target = random.choice(_TARGETS)
    return f"{target.__name__} {'taken' if target(random) else 'refused'}"


def update_manifest(random: Random) -> bool:
    """Whatever is taken says the same when it is written again, and its lanes tile the payload."""
    data = _document(random, lambda: _parts(random))
    try:
        manifest = UpdateManifest.from_bytes(data)
    except ValueError:
        return False
    assert manifest.to_bytes() == data
    number = random.randint(1, LANES_MAX)
    lanes, at = manifest.lanes(number), 0
    assert [lane.number for lane in lanes] == list(range(number))
    for frame in (frame for lane in lanes for frame in lane.frames):
        assert frame.offset == at and 0 < frame.count <= FRAME and len(frame.blake3) == 64
        at += frame.bytes
    assert at == manifest.payload_bytes == sum(lane.bytes for lane in lanes)
    return True


def state_manifest(random: Random) -> bool:
    data = _document(random, lambda: _slices(random))
    try:
        slices = read_manifest(data)
    except StoreError:
        return False
    assert manifest_bytes(slices) == data
    assert all(blob.bytes == 4 * prod(blob.shape) for blob in slices.values())
    return True


def note(random: Random) -> bool:
    """Signed, so that what is behind the signature is reached; or damaged, so that it is not."""
    words = random.choice(_WORDS)
    data = signed(random, words.text)
    if random.random() < 0.3:
        data = damaged(random, data)
    try:
        opened = open_note(data, [KEY.verifier])
        read = type(words).from_note(opened)
    except NoteError:
        return False
    assert parse(data) == opened
    # Another writing of a number is another note, but one that can be stated.
    assert type(words).from_note(open_note(KEY.sign(read.text), [KEY.verifier])).text == read.text
    return True


def record(random: Random) -> bool:
    words = random.choice(_WORDS)
    body = (
        KEY.sign(words.text)
        if random.random() < 0.5
        else canonical_json({"type": "hold", "n": number(random)})
    )
    leaf = damaged(random, Record(random.choice(list(Kind)), random.randrange(2**41), body).leaf)
    try:
        read = Record.parse(leaf)
    except ValueError:
        return False
    assert read.leaf == leaf
    try:
        return isinstance(read.facts, dict)
    except ValueError:
        return False


def checkpoint(random: Random) -> bool:
    body = f"hanse\n{number(random)}\n{'A' * 43}=\n"
    data = damaged(random, KEY.sign(body))
    try:
        return Checkpoint.read(parse(data)).size >= 0
    except NoteError:
        return False


def signed(random: Random, honest: str, key: Signer = KEY) -> bytes:
    """A note of `key` whose signature holds, of a text that has a value or a line too many, too few, or of another kind."""
    lines = honest.splitlines()
    for _ in range(random.randrange(3)):
        at = random.randrange(len(lines))
        name, _, value = lines[at].partition(" ")
        match random.randrange(6):
            case 0:
                del lines[at : at + 1]
                lines = lines or [""]
            case 1:
                lines.insert(at, lines[at])
            case 2:
                lines[at] = f"{name} {number(random)}"
            case _:
                lines[at] = f"{name} {text(random, value)}"
    made = "".join(f"{line}\n" for line in lines)
    try:
        return key.sign(made)
    except NoteError:  # what no signer of ours signs; a stranger may
        return f"{made}\n".encode() + key.sign("x\n").partition(b"\n\n")[2]


_TARGETS: tuple[Callable[[Random], bool], ...] = (update_manifest, state_manifest, note, record, checkpoint)


def _document(random: Random, honest: Callable[[], Any]) -> bytes:
    value = honest()
    for _ in range(random.choice((0, 1, 1, 2, 3))):
        value = document(random, value)
    data = written(value)
    return damaged(random, data) if random.random() < 0.3 else data


def _parts(random: Random) -> Any:
    parts, offset = [], 0
    for n in range(random.randint(1, 3)):
        codec: Codec = random.choice(("fp32", "bf16", "int8", "int4", "fp8", "top_k"))
        shape = _shape(random)
        size = encoded_bytes(codec, shape)
        frames = [f"{n:064x}"] * frame_count(prod(shape))
        parts.append(
            {
                "bytes": size,
                "codec": codec,
                "frames": frames,
                "name": f"s{n}",
                "offset": offset,
                "shape": shape,
            }
        )
        offset += size
    return {"parts": parts, "payload_bytes": offset}


def _slices(random: Random) -> Any:
    slices: dict[str, Any] = {}
    for n in range(random.randint(1, 3)):
        shape = _shape(random)
        slices[f"s{n}"] = {"bytes": 4 * prod(shape), "digest": BLOB, "shape": shape}
        if random.random() < 0.5:
            step = {"base": BLOB, "bytes": encoded_bytes("int4", shape), "codec": "int4", "digest": BLOB}
            slices[f"s{n}"]["step"] = step
    return {"slices": slices}


def _shape(random: Random) -> tuple[int, ...]:
    return tuple(random.choice((1, 2, 3, 63, 64, 600)) for _ in range(random.randint(0, 3)))
