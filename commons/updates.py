"""The manifest of an update: which slice lies where in the payload, in which encoding, with which bytes.

The payload is the frames (`commons.codec`) of all parts one after another, parts in name order, without gaps. Every part
is a DELTA against the assignment's base state: trunk, router and the site's own experts alike. The manifest holds the
digest of every frame, so each can be verified as it lands and no byte is hashed twice. Site and coordinator compare
manifests by the digest of their exact bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from math import prod
from typing import Annotated, Literal

from blake3 import blake3
from pydantic import BaseModel, ConfigDict, FailFast, Field, model_validator

from commons.charter import Charter
from commons.codec import FRAME, encoded_bytes, frame_bytes, frame_count
from commons.experts.map import Kind
from commons.form import SHAPE, WHOLE, Form, text
from commons.learning import Codec
from commons.names import Digest
from commons.records import canonical_json

MANIFEST_BYTES_MAX = 8 << 20
Encoding = Codec | Literal["masked"]
"""`masked`: 32-bit words that mean nothing but in the sum of all sites' (`commons.masking`)."""
LANES_MAX = 8
Hex = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Size = Annotated[int, Field(ge=1, lt=2**63)]
Routed = tuple[tuple[Annotated[int, Field(ge=0, lt=2**53)], ...], ...]
_COUNTS = rb"\[" + WHOLE + rb"(?:," + WHOLE + rb")*\]"
_FORM = Form(
    head=b'{"parts":[',
    entry=rb'\{"bytes":%b,"codec":%b,"frames":\["[0-9a-f]{64}"(?:,"[0-9a-f]{64}")*\],"name":%b,"offset":%b,"shape":%b\}'
    % (WHOLE, text(16), text(800), WHOLE, SHAPE),
    tail=rb'\],"payload_bytes":%b(?:,"routed":\[%b(?:,%b)*\])?\}' % (WHOLE, _COUNTS, _COUNTS),
)


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Part(_Value):
    """One encoded slice of the payload."""

    name: Annotated[str, Field(min_length=1, max_length=200)]
    codec: Encoding
    shape: Annotated[tuple[Size, ...], Field(max_length=8)]
    offset: Annotated[int, Field(ge=0, lt=2**63)]
    bytes: Size
    frames: Annotated[tuple[Hex, ...], Field(min_length=1)]
    """SHA-256 of each frame's bytes."""

    @property
    def plain(self) -> Codec:
        """Its codec, where it is not masked."""
        assert self.codec != "masked", f"{self.name} means something only in a sum"
        return self.codec

    @model_validator(mode="after")
    def _has_the_frames_of_its_shape(self) -> Part:
        if len(self.frames) != frame_count(prod(self.shape)):
            raise ValueError(
                f"part {self.name!r} of shape {list(self.shape)} lists {len(self.frames)} frames"
            )
        if self.bytes != encoded_bytes(in_length(self.codec), self.shape):
            raise ValueError(f"part {self.name!r} takes {self.bytes} bytes, not those of its codec and shape")
        return self


@dataclass(frozen=True)
class Frame:
    """One frame of a payload."""

    part: Part
    number: int
    """Within its part."""
    offset: int
    """Of its first byte in the payload."""
    bytes: int
    count: int
    """Elements."""

    @property
    def blake3(self) -> str:
        return self.part.frames[self.number]


@dataclass(frozen=True)
class Lane:
    """A run of frames that is sent as one stream."""

    number: int
    frames: tuple[Frame, ...]

    @cached_property
    def bytes(self) -> int:
        return sum(frame.bytes for frame in self.frames)

    @property
    def offset(self) -> int:
        """Of its first byte in the payload; 0 for a lane without frames."""
        return self.frames[0].offset if self.frames else 0


class UpdateManifest(_Value):
    parts: Annotated[tuple[Part, ...], FailFast(), Field(max_length=1 << 17)]
    """None in a round in which nothing is exchanged."""
    payload_bytes: Annotated[int, Field(ge=0, lt=2**63)]
    routed: Routed = ()
    """Tokens that the site routed to each expert, by index, in each layer that has a router; where the charter asks for it."""

    @model_validator(mode="after")
    def _is_gapless_and_in_name_order(self) -> UpdateManifest:
        position, before = 0, ""
        for part in self.parts:
            if part.name <= before:
                raise ValueError(f"part {part.name!r} is not in name order")
            if part.offset != position:
                raise ValueError(f"part {part.name!r} starts at {part.offset}, not at {position}")
            position, before = position + part.bytes, part.name
        if position != self.payload_bytes:
            raise ValueError(f"the parts take {position} bytes, the payload {self.payload_bytes}")
        return self

    @cached_property
    def payload_digest(self) -> Digest:
        """What the update note's `payload` is: SHA-256 over all frames' raw digests in order."""
        found = hashlib.sha256()
        for part in self.parts:
            found.update(bytes.fromhex("".join(part.frames)))
        return Digest("sha256:" + found.hexdigest())

    @cached_property
    def frames(self) -> tuple[Frame, ...]:
        """All frames in payload order."""
        return tuple(frame for part in self.parts for frame in _frames_of(part))

    def lanes(self, number: int) -> tuple[Lane, ...]:
        """The payload cut into `number` lanes of nearly equal bytes, at frame boundaries; some may be empty."""
        of_lane = groupby(self.frames, lambda frame: frame.offset * number // self.payload_bytes)
        filled = {lane: tuple(frames) for lane, frames in of_lane}
        return tuple(Lane(n, filled.get(n, ())) for n in range(number))

    def to_bytes(self) -> bytes:
        """Canonical JSON: what is sent, and what the update note's `manifest` digest is taken over."""
        return canonical_json(self.model_dump(mode="json", exclude=set() if self.routed else {"routed"}))

    @classmethod
    def from_bytes(cls, data: bytes) -> UpdateManifest:
        """Raises ValueError saying what is wrong first; at most 8 MiB, canonical form only."""
        if len(data) > MANIFEST_BYTES_MAX:
            raise ValueError(f"an update manifest of {len(data)} bytes is above {MANIFEST_BYTES_MAX}")
        _FORM.check(data, "an update manifest")
        manifest = cls.model_validate_json(data)
        if manifest.to_bytes() != data:
            raise ValueError("the update manifest is not in canonical form")
        return manifest


def encoding_of(charter: Charter, kind: Kind, number: int) -> Encoding:
    """How updates of slices of this kind are sent under a charter in round `number`."""
    if charter.privacy.mode == "secagg" and (not kind.owned or charter.learning.strategy == "diloco"):
        return "masked"
    return charter.learning.codecs_in(number).of(kind)


def in_length(encoding: Encoding) -> Codec:
    """The codec whose frames are as long."""
    return "fp32" if encoding == "masked" else encoding


def lay_out(
    encoded: Iterable[tuple[str, Encoding, tuple[int, ...], bytes]], *, routed: Routed = ()
) -> tuple[UpdateManifest, bytes]:
    """Manifest and payload of encoded slices (name, codec, shape, bytes), given in any order."""
    parts, payload = [], bytearray()
    for name, codec, shape, data in sorted(encoded, key=lambda part: part[0]):
        step = frame_bytes(in_length(codec), FRAME)
        digests = [blake3(data[at : at + step]).hexdigest() for at in range(0, len(data), step)]
        parts.append(
            Part(
                name=name,
                codec=codec,
                shape=shape,
                offset=len(payload),
                bytes=len(data),
                frames=tuple(digests),
            )
        )
        payload += data
    return UpdateManifest(parts=tuple(parts), payload_bytes=len(payload), routed=routed), bytes(payload)


def _frames_of(part: Part) -> Iterator[Frame]:
    size, offset = prod(part.shape), part.offset
    for number in range(len(part.frames)):
        count = min(FRAME, size - number * FRAME)
        length = frame_bytes(in_length(part.codec), count)
        yield Frame(part, number, offset, length, count)
        offset += length
