"""The manifest of a model state: which slice is which blob.

Canonical JSON ``{"slices": {name: {"digest", "shape", "bytes"}}}``; its own digest is the state's. A slice may also
have a ``"step": {"base", "bytes", "codec", "digest"}``, by which it is built from another blob. Knows nothing of where
blobs lie.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from math import prod
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from commons.codec import encoded_bytes
from commons.errors import StoreError
from commons.form import SHAPE, WHOLE, Form, text
from commons.learning import Codec
from commons.names import Digest
from commons.records import canonical_json
from commons.states.naming import DIGEST, name_of

Tensor = NDArray[np.float32]
FP32 = np.dtype("<f4")
MANIFEST_BYTES_MAX = 64 << 20
_FORM = Form(
    head=b'{"slices":{',
    entry=rb'%b:\{"bytes":%b,"digest":%b,"shape":%b(?:,"step":\{"base":%b,"bytes":%b,"codec":%b,"digest":%b\})?\}'
    % (text(800), WHOLE, text(100), SHAPE, text(100), WHOLE, text(16), text(100)),
    tail=rb"\}\}",
)


@dataclass(frozen=True)
class Step:
    """How a slice is built from an earlier one of the same shape: base + what the frames decode to, in fp32."""

    base: Digest
    codec: Codec
    digest: Digest
    """Blob of the encoded frames, one after the other (`commons.codec`)."""
    bytes: int


@dataclass(frozen=True)
class Blob:
    """One slice of a state."""

    digest: Digest
    shape: tuple[int, ...]
    bytes: int
    step: Step | None = None


def manifest_bytes(slices: Mapping[str, Blob]) -> bytes:
    """The manifest of a state."""
    return canonical_json({"slices": {name: _entry(blob) for name, blob in slices.items()}})


def state_digest(slices: Mapping[str, Blob]) -> Digest:
    """What a state of these slices is called."""
    return name_of(manifest_bytes(slices))


def read_manifest(data: bytes) -> dict[str, Blob]:
    """The slices of a manifest in name order. Raises StoreError when it is not one; at most 64 MiB."""
    try:
        if len(data) > MANIFEST_BYTES_MAX:
            raise ValueError("too large")
        _FORM.check(data, "one")
        slices = dict(_slices(json.loads(data)))
        if manifest_bytes(slices) != data:
            raise ValueError("not in canonical form")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StoreError(f"not the manifest of a model state: {error}") from error
    return slices


def _entry(blob: Blob) -> dict[str, object]:
    entry: dict[str, object] = {"digest": blob.digest, "shape": list(blob.shape), "bytes": blob.bytes}
    return entry | {"step": asdict(blob.step)} if blob.step else entry


def _slices(value: dict[str, dict[str, dict[str, Any]]]) -> Iterator[tuple[str, Blob]]:
    for name, entry in value["slices"].items():
        shape = entry["shape"]
        if not isinstance(shape, list) or not all(type(n) is int and n > 0 for n in shape):
            raise ValueError(f"slice {name!r} has no shape")
        size = prod(shape) * FP32.itemsize
        if entry["bytes"] != size:
            raise ValueError(f"slice {name!r} has {entry['bytes']} bytes, not those of its shape")
        step = _step(name, tuple(shape), entry["step"]) if "step" in entry else None
        yield name, Blob(_digest(name, entry["digest"]), tuple(shape), size, step)


def _step(name: str, shape: tuple[int, ...], entry: dict[str, Any]) -> Step:
    codec = entry["codec"]
    if codec not in get_args(Codec):
        raise ValueError(f"the step of slice {name!r} has no codec")
    size = encoded_bytes(codec, shape)
    if entry["bytes"] != size:
        raise ValueError(f"the step of slice {name!r} has {entry['bytes']} bytes, {codec} has {size}")
    return Step(_digest(name, entry["base"]), codec, _digest(name, entry["digest"]), size)


def _digest(name: str, text: object) -> Digest:
    if not isinstance(text, str) or not DIGEST.fullmatch(text):
        raise ValueError(f"slice {name!r} has no digest")
    return Digest(text)
