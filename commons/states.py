"""Model states on disk, addressed by content.

Owns blobs and the manifests that make a state of them. Knows nothing of rounds or of what a slice means.
A state is a manifest, canonical JSON ``{"slices": {name: {"digest", "shape", "bytes"}}}``, which is itself a
blob whose digest IS the state's digest; every slice is one blob of raw little-endian fp32. Slices that two
states share are stored, and fetched, once.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from commons.errors import StoreError
from commons.names import Digest
from commons.notes import digest_file
from commons.records import canonical_json

Tensor = NDArray[np.float32]
FP32 = np.dtype("<f4")
MANIFEST_BYTES_MAX = 64 << 20
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_SYNCS_AT_ONCE = 8  # a file system commits concurrent fsyncs together


@dataclass(frozen=True)
class Blob:
    """One slice of a state."""

    digest: Digest
    shape: tuple[int, ...]
    bytes: int


class StateWriter:
    """A state being written: made by `StateStore.writer`."""

    def __init__(self, store: StateStore) -> None:
        self._store = store
        self._slices: dict[str, Blob] = {}
        self._drafts: list[tuple[Path, Digest]] = []

    def add(self, name: str, tensor: Tensor) -> None:
        """One slice; written, but not yet durable. Raises StoreError when the disk is full."""
        raw = np.ascontiguousarray(tensor, FP32)
        data = raw.reshape(-1).view(np.uint8).data
        blob = Blob(_digest(data), tuple(tensor.shape), raw.nbytes)
        self._slices[name] = blob
        if not self._store.holds(blob.digest, blob.bytes):
            with self._store.failing():
                self._drafts.append((self._store.draft(data), blob.digest))

    def keep(self, name: str, blob: Blob) -> None:
        """One slice as another state of the same store has it."""
        self._slices[name] = blob

    def finish(self) -> Digest:
        """Make the state durable; its digest. Raises StoreError when the disk is full."""
        with self._store.failing():
            self._store.publish(self._drafts)
        return self._store.put(manifest_bytes(self._slices))

    def discard(self) -> None:
        """Remove what was not published."""
        for draft, _ in self._drafts:
            draft.unlink(missing_ok=True)


class StateStore:
    """A folder of blobs. Safe for many threads; two processes may share it as long as only one prunes."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._blobs = root / "blobs"
        self._drafts = root / "drafts"
        try:
            self._blobs.mkdir(parents=True, exist_ok=True)
            self._drafts.mkdir(exist_ok=True)
        except OSError as error:
            raise StoreError(f"cannot use {root} for model states: {error.strerror}") from error

    def save(self, tensors: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]]) -> Digest:
        """Store a state durably and return its digest; the same tensors give the same digest.

        Tensors are taken one at a time, so that an iterator may compute each as it is asked for. Raises
        StoreError when the disk is full or fails: no state is half written, earlier ones are intact.
        """
        with self.writer() as writer:
            for name, tensor in tensors.items() if isinstance(tensors, Mapping) else tensors:
                writer.add(name, tensor)
            return writer.finish()

    @contextmanager
    def writer(self) -> Iterator[StateWriter]:
        """Write a state slice by slice; nothing of it is seen unless `finish` is called."""
        writer = StateWriter(self)
        try:
            yield writer
        finally:
            writer.discard()

    def put(self, data: bytes) -> Digest:
        """Store one blob durably; a repeat writes nothing. Raises StoreError when the disk is full."""
        digest = _digest(data)
        if not self.holds(digest, len(data)):
            with self.failing():
                self.publish([(self.draft(data), digest)])
        return digest

    def adopt(self, file: Path, digest: Digest) -> None:
        """Take over a complete file of the same file system as blob `digest`; the file is gone afterwards.

        Raises StoreError (and removes the file) when its bytes have another digest.
        """
        found = digest_file(file)
        if found != digest:
            file.unlink()
            raise StoreError(f"{file} should be {digest} but its bytes are {found}: fetch it again")
        with self.failing():
            self.publish([(file, digest)])

    def path(self, digest: Digest) -> Path:
        """Where the blob is or would be. Raises ValueError for a text that is no digest."""
        if not _DIGEST.fullmatch(digest):
            raise ValueError(f"not a digest: {digest[:80]!r}")
        return self._blobs / digest.removeprefix("sha256:")

    def has(self, digest: Digest) -> bool:
        return self.path(digest).exists()

    def read(self, digest: Digest) -> bytes:
        """The blob's bytes, checked. Raises StoreError when it is missing or damaged."""
        try:
            data = self.path(digest).read_bytes()
        except OSError as error:
            raise StoreError(f"blob {digest} cannot be read from {self.root}: {error.strerror}") from error
        if _digest(data) != digest:
            file = self.path(digest)
            raise StoreError(f"blob {digest} in {self.root} is damaged: remove {file} and fetch it again")
        return data

    def tensor(self, blob: Blob) -> Tensor:
        """One slice, checked and read-only. Raises StoreError when it is missing or damaged."""
        return np.frombuffer(self.read(blob.digest), FP32).reshape(blob.shape)

    def manifest(self, state: Digest) -> dict[str, Blob]:
        """The slices of a state in name order. StoreError when it is missing, damaged or no manifest."""
        return read_manifest(self.read(state))

    def load(self, state: Digest) -> dict[str, Tensor]:
        """All tensors of a state in name order (fp32, writable). Raises StoreError as `tensor` does."""
        return {name: self.tensor(blob).copy() for name, blob in self.manifest(state).items()}

    def missing(self, state: Digest) -> list[Digest]:
        """Blobs to fetch before `load`, each once; just the state itself while its manifest is missing."""
        if not self.has(state):
            return [state]
        wanted = {blob.digest: blob.bytes for blob in self.manifest(state).values()}
        return [digest for digest, size in wanted.items() if not self.holds(digest, size)]

    def prune(self, keep: Iterable[Digest]) -> int:
        """Remove every blob that no state in `keep` uses, and abandoned drafts; returns how many went."""
        used: set[str] = set()
        for state in keep:
            blobs = [blob.digest for blob in self.manifest(state).values()]
            used |= {self.path(digest).name for digest in (state, *blobs)}
        gone = [file for file in self._blobs.iterdir() if file.name not in used]
        for file in (*gone, *self._drafts.iterdir()):
            file.unlink(missing_ok=True)
        return len(gone)

    def holds(self, digest: Digest, size: int) -> bool:
        """Whether the blob is here at its full size; its bytes are checked when they are read."""
        try:
            return self.path(digest).stat().st_size == size
        except FileNotFoundError:
            return False

    def draft(self, data: bytes | memoryview) -> Path:
        """Write bytes under no name yet."""
        handle, name = tempfile.mkstemp(dir=self._drafts)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
        except OSError:
            Path(name).unlink(missing_ok=True)
            raise
        return Path(name)

    def publish(self, drafts: list[tuple[Path, Digest]]) -> None:
        """Make drafts durable under their digests: contents first, then names."""
        if len(drafts) > 1:
            with ThreadPoolExecutor(_SYNCS_AT_ONCE) as pool:
                list(pool.map(_sync, (draft for draft, _ in drafts)))
        elif drafts:
            _sync(drafts[0][0])
        for draft, digest in drafts:
            draft.replace(self.path(digest))
        if drafts:
            _sync(self._blobs)

    @contextmanager
    def failing(self) -> Iterator[None]:
        """Turns an error of the disk into a StoreError that says what still holds."""
        try:
            yield
        except OSError as error:
            why = error.strerror or str(error)
            raise StoreError(
                f"cannot save a model state in {self.root}: {why}; earlier states are intact"
            ) from error


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
        if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
            raise ValueError(f"slice {name!r} has no digest")
        if not isinstance(shape, list) or not all(type(n) is int and n > 0 for n in shape):
            raise ValueError(f"slice {name!r} has no shape")
        if size != prod(shape) * FP32.itemsize:
            raise ValueError(f"slice {name!r} has {size} bytes, not those of its shape")
        yield name, Blob(Digest(digest), tuple(shape), prod(shape) * FP32.itemsize)


def _digest(data: bytes | memoryview) -> Digest:
    return Digest("sha256:" + hashlib.sha256(data).hexdigest())


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
