"""Uploads as a hostile site would make them: signed with the right key, and wrong at any depth."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import numpy as np

from commons.codec import LARGEST
from commons.notes import Signer, digest, parse
from commons.updates import LANES_MAX, UpdateManifest, lay_out
from commons.wire.v1 import consortium_pb2 as wire
from commons.work import AssignmentNote, UpdateNote, UsageNote
from orchestrator.intake import Upload
from tests.support.consortium import SITES, signer
from tests.support.fuzz_decoders import signed
from tests.support.mutations import damaged, document, message, number, pieces, written
from tests.support.rounds import Stage

_VALUES = (
    0.0,
    -0.0,
    1e-45,
    1e-30,
    1.0,
    3e4,
    1e30,
    float(LARGEST),
    3e38,
    float("inf"),
    float("-inf"),
    float("nan"),
)


@dataclass(frozen=True)
class Packed:
    """What a site would hand in for its order."""

    order: AssignmentNote
    upload: Upload
    payload: bytes

    @classmethod
    def of(cls, stage: Stage, site: str, **changes: Any) -> Packed:
        return cls(stage.order(site), *stage.packed(site, **changes))

    @property
    def key(self) -> str:
        """What the site names the upload by."""
        return digest(parse(self.upload.update).text.encode())

    def header(self, **changes: Any) -> wire.UploadHeader:
        return wire.UploadHeader(**(vars(self.upload) | {"lanes": 1} | changes))

    def restated(self, key: Signer, manifest: bytes, payload: bytes) -> Packed:
        """With notes that state this manifest and these bytes."""
        stated: dict[str, Any] = {"manifest": digest(manifest), "payload_bytes": max(1, len(payload))}
        try:
            read = UpdateManifest.from_bytes(manifest)
            stated |= {"payload": read.payload_digest, "payload_bytes": read.payload_bytes}
        except ValueError:
            pass
        update = replace(UpdateNote.from_note(parse(self.upload.update)), **stated)
        usage = replace(UsageNote.from_note(parse(self.upload.usage)), update=update.payload)
        notes = {"update": key.sign(update.text), "usage": key.sign(usage.text), "manifest": manifest}
        return replace(self, upload=replace(self.upload, **notes), payload=payload)


def hostile(random: Random, site: str, packed: dict[str, Packed]) -> list[bytes]:
    """The messages of one upload of the site, wrong in some way, or right but cut off or cut into odd pieces."""
    made = random.choice(_KINDS)(random, site, packed[site], packed)
    if isinstance(made, list):
        return made
    lanes = random.choice((1, 1, 1, random.randint(1, LANES_MAX)))
    payload = made.payload
    lane = random.randrange(lanes)
    if lanes > 1:
        try:
            cut = UpdateManifest.from_bytes(made.upload.manifest).lanes(lanes)[lane]
            payload = payload[cut.offset : cut.offset + cut.bytes]
        except ValueError:
            pass
    if random.random() < 0.3:
        payload = damaged(random, payload)
    if random.random() < 0.3:
        payload = payload[: random.randrange(len(payload) + 1)]
    header = made.header(lane=lane, lanes=lanes, report_bytes=random.choice((0, 0, 1, number(random))))
    first = message(random, header) if random.random() < 0.2 else header.SerializeToString()
    return [first, *pieces(random, payload)]


def _right(random: Random, site: str, honest: Packed, _: dict[str, Packed]) -> Packed:
    return honest


def _notes(random: Random, site: str, honest: Packed, _: dict[str, Packed]) -> Packed:
    key, upload = signer(f"{site}/{site}"), honest.upload
    which = random.choice(("update", "usage"))
    text = parse(getattr(upload, which)).text
    return replace(honest, upload=replace(upload, **{which: signed(random, text, key)}))


def _manifest(random: Random, site: str, honest: Packed, _: dict[str, Packed]) -> Packed:
    wrong = written(document(random, json.loads(honest.upload.manifest)))
    return honest.restated(signer(f"{site}/{site}"), wrong, honest.payload)


def _values(random: Random, site: str, honest: Packed, _: dict[str, Packed]) -> Packed:
    """Every digest is right: of the bytes of numbers that nobody should send."""
    parts, at = [], 0
    chosen = random.random() < 0.5
    for part in UpdateManifest.from_bytes(honest.upload.manifest).parts:
        array = np.frombuffer(honest.payload[at : at + part.bytes], "<f4").copy()
        at += part.bytes
        if chosen or random.random() < 0.1:
            array[random.randrange(array.size) if random.random() < 0.5 else slice(None)] = random.choice(
                _VALUES
            )
        parts.append((part.name, part.codec, part.shape, array.tobytes()))
    if random.random() < 0.2:
        del parts[random.randrange(len(parts))]
    manifest, payload = lay_out(parts)
    return honest.restated(signer(f"{site}/{site}"), manifest.to_bytes(), payload)


def _others(random: Random, site: str, honest: Packed, packed: dict[str, Packed]) -> Packed:
    return packed[random.choice([other for other in SITES if other != site])]


def _garbage(random: Random, site: str, honest: Packed, _: dict[str, Packed]) -> list[bytes]:
    messages = [random.randbytes(random.choice((0, 1, 30, 3000))) for _ in range(random.randrange(4))]
    if random.random() < 0.5:
        messages.insert(0, honest.header().SerializeToString())
    if random.random() < 0.02:
        messages.append(bytes((1 << 20) + 1))
    return messages


_Kind = Callable[[Random, str, Packed, dict[str, Packed]], Packed | list[bytes]]
_KINDS: tuple[_Kind, ...] = (_right, _notes, _notes, _manifest, _manifest, _values, _others, _garbage)
