"""Where model states are kept: saved, read, brought from elsewhere, pruned."""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np

from commons.errors import StoreError
from commons.names import Digest
from commons.states.known import Known
from commons.states.local import Folder
from commons.states.manifest import FP32, Blob, Tensor, read_manifest
from commons.states.naming import name_of, name_of_file
from commons.states.place import Place
from commons.states.reading import BlobReader
from commons.states.steps import take_step
from commons.states.writing import StateWriter

_READ_BYTES = 64 << 20


class StateStore:
    """Safe for many threads; two processes may share it as long as only one prunes."""

    def __init__(self, root: Path | str, *, durable: bool = True, drafts: Path | None = None) -> None:
        """`root`: a folder, or a URL that fsspec knows, like ``s3://bucket/prefix``; what is written there grows in the
        local folder `drafts` first (default: one in the system's temporary folder).

        `durable` False is for a cache of what can be fetched again: nothing waits for the disk, a blob is checked at
        its first use in a process unless this process wrote it, and one found damaged is dropped. Raises StoreError
        when `root` cannot be used.
        """
        self._durable = durable
        self._known = Known()
        self._manifest: tuple[Digest, dict[str, Blob]] | None = None
        """Of the state that was asked for last: it is asked for several times a round."""
        self._place: Place
        if "://" in str(root):
            from commons.states.remote import Bucket

            self._place = Bucket(str(root), drafts)
        else:
            self._place = Folder(Path(root), durable=durable)

    @property
    def root(self) -> Path:
        """The folder of a local store."""
        return self._local.root

    def close(self) -> None:
        """Whoever still waits for the network gets its StoreError soon. A local store needs no closing."""
        self._place.close()

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
        writer = StateWriter(self._place, self._known)
        try:
            yield writer
        finally:
            writer.discard()

    def put(self, data: bytes) -> Digest:
        """Store one blob durably; a repeat writes nothing. Raises StoreError when the disk is full."""
        digest = name_of(data)
        if not self.holds(digest, len(data)):
            with self.writer() as writer:
                blob = writer.frames()
                blob.write(data)
                blob.close()
                writer.publish()
        return digest

    def adopt(self, file: Path, digest: Digest, *, found: Digest | None = None) -> None:
        """Take over a complete file of the same file system as blob `digest`; the file is gone afterwards.

        `found`: the digest of its bytes where whoever wrote them took it on the way. Raises StoreError (and removes the file) when its bytes have another digest.
        """
        found = found or name_of_file(file)
        if found != digest:
            file.unlink()
            raise StoreError(f"{file} should be {digest} but its bytes are {found}: fetch it again")
        self._place.secure(file, digest)
        self._place.publish([(file, digest)])
        self._known.vouch([digest])

    def reuse(self, size: int, path: Path) -> bool:
        """Put a file of `size` bytes that was pruned from a local store at `path`, to be written over; False when there is
        none. Its content is anything. Raises StoreError."""
        return self._local.reuse(size, path)

    def path(self, digest: Digest) -> Path:
        """The blob's file in a local store, be it there or not. Raises ValueError for a text that is no digest."""
        return self._local.path(digest)

    def has(self, digest: Digest) -> bool:
        """Raises ValueError for a text that is no digest."""
        return self._place.size(digest) is not None

    def holds(self, digest: Digest, size: int) -> bool:
        """Whether the blob is here at its full size; its bytes are checked when they are read."""
        return self._place.size(digest) == size

    def open(self, blob: Blob) -> BlobReader:
        """Read a slice part by part; close it in the end. Raises StoreError when it is missing or damaged."""
        return BlobReader(
            self._place.open(blob.digest),
            blob,
            check=self._durable,
            vouched=partial(self._known.vouched, blob.digest),
            right=partial(self._known.vouch, [blob.digest]),
            damaged=partial(self._damaged, blob.digest),
        )

    def tensor(self, blob: Blob) -> Tensor:
        """One slice in memory, checked and read-only. Raises StoreError when it is missing or damaged."""
        tensor = self._filled(blob)
        tensor.setflags(write=False)
        return tensor

    def map(self, blob: Blob) -> Tensor:
        """One slice of a local store as a read-only mapping of its file, checked once in a process. Raises StoreError
        as `tensor`."""
        with self.open(blob) as reader:
            reader.check()
        with self.path(blob.digest).open("rb") as file:
            mapped = mmap.mmap(file.fileno(), blob.bytes, access=mmap.ACCESS_READ)
        return np.frombuffer(mapped, FP32).reshape(blob.shape)

    def read(self, digest: Digest) -> bytes:
        """The blob's bytes, checked. Raises StoreError when it is missing or damaged."""
        data = b"".join(self.stream([digest], 0, _READ_BYTES))
        if self._durable or not self._known.vouched(digest):
            if name_of(data) != digest:
                raise self._damaged(digest, f"it has {len(data)} other bytes")
            self._known.vouch([digest])
        return data

    def stream(self, digests: Iterable[Digest], offset: int, frame_bytes: int) -> Iterator[bytes]:
        """The blobs' bytes one after another from `offset`, in frames of `frame_bytes`; the last may be shorter.

        Not checked: whoever receives them does. Raises StoreError when a blob is missing.
        """
        pieces, room = list[bytes](), frame_bytes
        for source in self._place.sources(digests):
            at = min(offset, source.size)
            offset -= at
            while at < source.size and (piece := source.read(at, room)):
                pieces.append(piece)
                at, room = at + len(piece), room - len(piece)
                if not room:
                    yield b"".join(pieces)
                    pieces, room = [], frame_bytes
        if pieces:
            yield b"".join(pieces)

    def manifest(self, state: Digest) -> dict[str, Blob]:
        """The slices of a state in name order. StoreError when it is missing, damaged or no manifest."""
        last = self._manifest
        if last is None or last[0] != state or not self.has(state):
            self._manifest = last = state, read_manifest(self.read(state))
        return dict(last[1])

    def load(self, state: Digest) -> dict[str, Tensor]:
        """All tensors of a state in name order (fp32, writable), advanced where that is to be done. Raises StoreError
        as `tensor` and `advance` do."""
        slices = self.manifest(state)
        for blob in slices.values():
            self.advance(blob)
        return {name: self._filled(blob) for name, blob in slices.items()}

    def missing(self, state: Digest) -> list[Digest]:
        """Blobs to fetch before `load`, each once; just the state itself while its manifest is missing."""
        return list(self.lacking(self.manifest(state).values())) if self.has(state) else [state]

    def lacking(self, blobs: Iterable[Blob], *, steps: bool = True) -> dict[Digest, int]:
        """What to fetch, and how many bytes each, so that every slice is here or can be advanced; without `steps`, so
        that it is here."""
        wanted: dict[Digest, int] = {}
        for blob in blobs:
            if self.holds(blob.digest, blob.bytes):
                continue
            if blob.step is None or not steps or not self.holds(blob.step.base, blob.bytes):
                wanted[blob.digest] = blob.bytes
            elif not self.holds(blob.step.digest, blob.step.bytes):
                wanted[blob.step.digest] = blob.step.bytes
        return wanted

    def advance(self, blob: Blob) -> None:
        """Build a slice that is not here from its base and its step; nothing when it is here, or has no step.

        Raises StoreError when base or step is missing or damaged, or when they do not give the slice: nothing is left
        then, and the slice itself is to be fetched.
        """
        step = blob.step
        if step is None or self.holds(blob.digest, blob.bytes):
            return
        encoded = Blob(step.digest, (step.bytes,), step.bytes)
        with self.writer() as writer, self.open(encoded) as frames:
            with self.open(Blob(step.base, blob.shape, blob.bytes)) as base:
                take_step(blob, base, frames, writer.frames())
            writer.publish()

    def prune(self, keep: Iterable[Digest]) -> int:
        """Remove every blob that no state in `keep` and none being written uses, nor can be built from, and what crashed
        writers left; returns how many blobs went."""
        here, used = set(self._place.digests()), set[Digest]()
        for state in keep:
            used.add(state)
            for blob in self.manifest(state).values():
                used.add(blob.digest)
                if blob.step is not None:
                    used.add(blob.step.digest)
                    if blob.digest not in here:
                        used.add(blob.step.base)
        self._place.sweep()
        with self._known.removing(here - used) as gone:
            self._place.remove(gone)
        return len(gone)

    @property
    def _local(self) -> Folder:
        assert isinstance(self._place, Folder), f"{self._place.where} has no files here"
        return self._place

    def _filled(self, blob: Blob) -> Tensor:
        tensor = np.empty(blob.shape, FP32)
        with self.open(blob) as reader:
            reader.read_into(0, tensor)
        return tensor

    def _damaged(self, digest: Digest, why: str) -> StoreError:
        self._known.forget(digest)
        text = f"blob {digest} in {self._place.where} is damaged: {why}"
        if self._durable:
            place = self._place.address(digest)
            return StoreError(f"{text}; bring {place} back from a backup, or remove it and fetch it again")
        self._place.remove([digest])
        return StoreError(f"{text}; it is dropped and fetched again")
