"""A state being written: slice by slice, each block by block, from one thread or several.

Blobs grow in drafts and are made durable as soon as they are whole, while others are still being written; the manifest
comes last. Nothing of a state is seen before that.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from math import prod
from pathlib import Path

import numpy as np

from commons.errors import StoreError
from commons.names import Digest
from commons.states.drafts import Draft, saving
from commons.states.known import Known
from commons.states.manifest import FP32, Blob, Step, Tensor, manifest_bytes
from commons.states.place import Place

_AT_ONCE = 8
"""Blobs being made durable together: a file system commits concurrent fsyncs in one go, a bucket takes uploads so."""


class BlobWriter:
    """Bytes of one blob, in order; for one thread at a time. Made by `StateWriter.frames`."""

    def __init__(self, state: StateWriter, size: int | None = None) -> None:
        """`size`: the bytes there will be, where that is known."""
        self._state = state
        self._draft = state._draft(size)

    def write(self, data: bytes | memoryview) -> None:
        """The next bytes; written, but not yet durable. Raises StoreError when the disk is full."""
        with saving(self._state.where):
            self._draft.append(memoryview(data).cast("B"))

    def close(self, expected: Digest | None = None) -> Digest:
        """The blob is whole; its digest. It is durable when its state is finished.

        Raises StoreError when the disk fails, or when it is not the `expected` blob: nothing is left of it then.
        """
        return self._state._settle(self._draft, expected)


class SliceWriter:
    """Elements of one slice, in C order; for one thread at a time. Made by `StateWriter.slice`."""

    def __init__(self, state: StateWriter, name: str, shape: tuple[int, ...]) -> None:
        self._state, self._name, self._shape = state, name, shape
        self._lacking = prod(shape)
        self._blob = BlobWriter(state, self._lacking * FP32.itemsize)

    def write(self, block: Tensor) -> None:
        """The next elements, of any number and shape. Raises StoreError when the disk is full."""
        raw = np.ascontiguousarray(block, FP32).reshape(-1)
        self._lacking -= raw.size
        assert self._lacking >= 0, (
            f"{self._name} is of shape {self._shape}, {-self._lacking} elements too many"
        )
        self._blob.write(raw.view(np.uint8).data)

    def close(self, step: Step | None = None) -> Blob:
        """The slice is whole and of the state; durable when that is finished. Raises StoreError.

        `step`: how whoever has its base builds the slice; its frames are a blob of the same writer (`frames`).
        """
        assert not self._lacking, (
            f"{self._name} is of shape {self._shape}, {self._lacking} elements are lacking"
        )
        blob = Blob(self._blob.close(), self._shape, prod(self._shape) * FP32.itemsize, step)
        self._state._enter(self._name, blob)
        return blob


class StateWriter:
    """Made by `StateStore.writer`. Different slices may be written from different threads."""

    def __init__(self, place: Place, known: Known) -> None:
        self._place, self._known = place, known
        self._lock = threading.Lock()
        self._slices: dict[str, Blob] = {}
        self._drafts = place.drafts()
        self._open: set[Draft] = set()
        self._new: dict[Digest, Path] = {}
        self._pins: list[Digest] = []
        self._pool: ThreadPoolExecutor | None = None
        self._room = threading.BoundedSemaphore(_AT_ONCE)
        self._securing: list[Future[None]] = []

    @property
    def where(self) -> str:
        """The store, for messages."""
        return self._place.where

    def slice(self, name: str, shape: Iterable[int]) -> SliceWriter:
        """One slice that comes in blocks. Raises StoreError when the disk is full."""
        return SliceWriter(self, name, tuple(shape))

    def frames(self) -> BlobWriter:
        """A blob that is no slice. Raises StoreError when the disk is full."""
        return BlobWriter(self)

    def add(self, name: str, tensor: Tensor) -> Blob:
        """One slice as a whole; written, but not yet durable. Raises StoreError when the disk is full."""
        slice_ = self.slice(name, tensor.shape)
        slice_.write(tensor)
        return slice_.close()

    def keep(self, name: str, blob: Blob) -> None:
        """One slice as another state of the same store has it."""
        self._pin(blob.digest)
        self._enter(name, blob)

    def finish(self) -> Digest:
        """Make the state durable; its digest.

        Raises StoreError when the disk is full, or a blob that was kept is not here any more.
        """
        self.publish()
        for name, blob in sorted(self._slices.items()):
            for part in (blob, blob.step) if blob.step else (blob,):
                if self._place.size(part.digest) != part.bytes:
                    raise StoreError(f"slice {name}: blob {part.digest} is not in {self.where} any more")
        manifest = self.frames()
        manifest.write(manifest_bytes(self._slices))
        state = manifest.close()
        self.publish()
        return state

    def publish(self) -> None:
        """Make every blob that is whole durable and readable; of no state yet. Raises StoreError."""
        assert not self._open, "every slice is closed before its state is finished"
        for future in self._securing:
            future.result()
        self._securing.clear()
        self._place.publish([(draft, digest) for digest, draft in self._new.items()])
        self._known.vouch(self._new)
        self._new.clear()

    def discard(self) -> None:
        """Remove what was not published."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        for draft in self._open:
            draft.close()
        self._drafts.remove()
        self._known.unpin(self._pins)

    def _draft(self, size: int | None) -> Draft:
        with self._lock, saving(self.where):
            draft = self._drafts.new(size)
            self._open.add(draft)
            return draft

    def _settle(self, draft: Draft, expected: Digest | None) -> Digest:
        """A draft is whole: begin to make it durable, or drop it when its blob is here already."""
        digest = draft.close()
        if expected not in (None, digest):
            self._forget(draft)
            raise StoreError(f"what was computed as blob {expected} is {digest}: nothing is kept of it")
        self._pin(digest)
        with self._lock:
            fresh = digest not in self._new and not self._place.surely_holds(digest, draft.bytes)
            if fresh:
                self._new[digest] = draft.path
                self._open.discard(draft)
        if not fresh:
            self._forget(draft)
        elif self._place.durable:
            self._secure(draft.path, digest)
        return digest

    def _forget(self, draft: Draft) -> None:
        with self._lock:
            self._open.discard(draft)
        with suppress(OSError):
            draft.remove()

    def _secure(self, draft: Path, digest: Digest) -> None:
        self._room.acquire()
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(_AT_ONCE)
        self._securing.append(self._pool.submit(self._secured, draft, digest))

    def _secured(self, draft: Path, digest: Digest) -> None:
        try:
            self._place.secure(draft, digest)
        finally:
            self._room.release()

    def _pin(self, digest: Digest) -> None:
        self._known.pin(digest)
        with self._lock:
            self._pins.append(digest)

    def _enter(self, name: str, blob: Blob) -> None:
        with self._lock:
            self._slices[name] = blob
