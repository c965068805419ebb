"""The manifest of a model state: which slice is which blob.

Canonical JSON ``{"slices": {name: {"digest", "shape", "bytes"}}}``; its SHA-256 is the state's digest. Knows nothing of
where blobs lie.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from commons.errors import StoreError
from commons.names import Digest
from commons.records import canonical_json

Tensor = NDArray[np.float32]
FP32 = np.dtype("<f4")
MANIFEST_BYTES_MAX = 64 << 20
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True)
class Blob:
    """One slice of a state."""

    digest: Digest
    shape: tuple[int, ...]
    bytes: int


def manifest_bytes(slices: Mapping[str, Blob]) -> bytes:
    """The manifest of a state: its SHA-256 is the state's digest."""
    listed = {n: {"digest": b.digest, "shape": list(b.shape), "bytes": b.bytes} for n, b in slices.items()}
    return canonical_json({"slices": listed})


def read_manifest(data: bytes) -> dict[str, Blob]:
    """The slices of a manifest in name order. Raises StoreError when it is not one; at most 64 MiB."""
    try:
        if len(data) > MANIFEST_BYTES_MAX:
            raise ValueError("too large")
        slices = dict(_slices(json.loads(data)))
        if manifest_bytes(slices) != data:
            raise ValueError("not in canonical form")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StoreError(f"not the manifest of a model state: {error}") from error
    return slices


def _slices(value: dict[str, dict[str, dict[str, object]]]) -> Iterator[tuple[str, Blob]]:
    for name, entry in value["slices"].items():
        digest, shape, size = entry["digest"], entry["shape"], entry["bytes"]
        if not isinstance(digest, str) or not DIGEST.fullmatch(digest):
            raise ValueError(f"slice {name!r} has no digest")
        if not isinstance(shape, list) or not all(type(n) is int and n > 0 for n in shape):
            raise ValueError(f"slice {name!r} has no shape")
        if size != prod(shape) * FP32.itemsize:
            raise ValueError(f"slice {name!r} has {size} bytes, not those of its shape")
        yield name, Blob(Digest(digest), tuple(shape), prod(shape) * FP32.itemsize)
