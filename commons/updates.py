"""The manifest of an update: which slice lies where in the payload, in which encoding.

The payload is the parts' encoded bytes one after another, in name order and without gaps. Every part is a
DELTA against the assignment's base state: trunk, router and the site's own experts alike. Site and
coordinator compare the manifest by the digest of its exact bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

from commons.charter import Codec
from commons.names import Digest
from commons.records import canonical_json

MANIFEST_BYTES_MAX = 8 << 20
Sha256 = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
Size = Annotated[int, Field(ge=1, lt=2**63)]


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Part(_Value):
    """One encoded slice of the payload."""

    name: Annotated[str, Field(min_length=1, max_length=200)]
    codec: Codec
    shape: Annotated[tuple[Size, ...], Field(max_length=8)]
    offset: Annotated[int, Field(ge=0, lt=2**63)]
    bytes: Size
    sha256: Sha256
    """Digest of the encoded bytes."""


class UpdateManifest(_Value):
    parts: Annotated[tuple[Part, ...], Field(min_length=1, max_length=1 << 17)]
    payload_bytes: Size

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

    def to_bytes(self) -> bytes:
        """Canonical JSON: what is sent, and what the update note's `manifest` digest is taken over."""
        return canonical_json(self.model_dump(mode="json"))

    @classmethod
    def from_bytes(cls, data: bytes) -> UpdateManifest:
        """Raises ValueError (pydantic's) saying what is wrong; at most 8 MiB, canonical form only."""
        if len(data) > MANIFEST_BYTES_MAX:
            raise ValueError(f"an update manifest of {len(data)} bytes is above {MANIFEST_BYTES_MAX}")
        manifest = cls.model_validate_json(data)
        if manifest.to_bytes() != data:
            raise ValueError("the update manifest is not in canonical form")
        return manifest


def lay_out(encoded: Iterable[tuple[str, Codec, tuple[int, ...], bytes]]) -> tuple[UpdateManifest, bytes]:
    """Manifest and payload of encoded slices (name, codec, shape, bytes), given in any order."""
    parts, position, payload = [], 0, bytearray()
    for name, codec, shape, data in sorted(encoded, key=lambda part: part[0]):
        digest = Digest("sha256:" + hashlib.sha256(data).hexdigest())
        part = Part(name=name, codec=codec, shape=shape, offset=position, bytes=len(data), sha256=digest)
        parts.append(part)
        payload += data
        position += len(data)
    return UpdateManifest(parts=tuple(parts), payload_bytes=position), bytes(payload)
