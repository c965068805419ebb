"""Where model states are kept: saved, read, brought from elsewhere, pruned."""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from functools import partial
from hashlib import sha256
from pathlib import Path

import numpy as np

from commons.errors import StoreError
from commons.names import Digest
from commons.notes import digest_file
from commons.states.known import Known
from commons.states.local import Folder
from commons.states.manifest import FP32, Blob, Tensor, read_manifest
from commons.states.reading import BlobReader
from commons.states.writing import StateWriter

_READ_BYTES = 64 << 20


class StateStore:
    """A folder of blobs. Safe for many threads; two processes may share it as long as only one prunes."""

    def __init__(self, root: Path | str, *, durable: bool = True) -> None:
        """`durable` False is for a cache of what can be fetched again: nothing waits for the disk, a blob is checked at
        its first use in a process unless this process wrote it, and one found damaged is dropped.

        Raises StoreError when `root` cannot be used.
        """
        self.root = Path(root)
        self._durable = durable
        self._folder = Folder(self.root, durable=durable)
        self._known = Known()

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
        writer = StateWriter(self._folder, self._known)
        try:
            yield writer
        finally:
            writer.discard()

    def put(self, data: bytes) -> Digest:
        """Store one blob durably; a repeat writes nothing. Raises StoreError when the disk is full."""
        digest = Digest("sha256:" + sha256(data).hexdigest())
        if not self.holds(digest, len(data)):
            with self.writer() as writer:
                blob = writer.frames()
                blob.write(data)
                blob.close()
                writer.publish()
        return digest

    def adopt(self, file: Path, digest: Digest) -> None:
        """Take over a complete file of the same file system as blob `digest`; the file is gone afterwards.

        Raises StoreError (and removes the file) when its bytes have another digest.
        """
        found = digest_file(file)
        if found != digest:
            file.unlink()
            raise StoreError(f"{file} should be {digest} but its bytes are {found}: fetch it again")
        self._folder.secure(file, digest)
        self._folder.publish([(file, digest)])
        self._known.vouch([digest])

    def path(self, digest: Digest) -> Path:
        """Where the blob is or would be. Raises ValueError for a text that is no digest."""
        return self._folder.path(digest)

    def has(self, digest: Digest) -> bool:
        """Raises ValueError for a text that is no digest."""
        return self._folder.size(digest) is not None

    def holds(self, digest: Digest, size: int) -> bool:
        """Whether the blob is here at its full size; its bytes are checked when they are read."""
        return self._folder.size(digest) == size

    def open(self, blob: Blob) -> BlobReader:
        """Read a slice part by part; close it in the end. Raises StoreError when it is missing or damaged."""
        return BlobReader(
            self._folder.open(blob.digest),
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
        """One slice as a read-only mapping of its file, checked once in a process. Raises StoreError as `tensor`."""
        with self.open(blob) as reader:
            reader.check()
        with self.path(blob.digest).open("rb") as file:
            mapped = mmap.mmap(file.fileno(), blob.bytes, access=mmap.ACCESS_READ)
        return np.frombuffer(mapped, FP32).reshape(blob.shape)

    def read(self, digest: Digest) -> bytes:
        """The blob's bytes, checked. Raises StoreError when it is missing or damaged."""
        data = b"".join(self.stream([digest], 0, _READ_BYTES))
        if self._durable or not self._known.vouched(digest):
            if "sha256:" + sha256(data).hexdigest() != digest:
                raise self._damaged(digest, f"it has {len(data)} other bytes")
            self._known.vouch([digest])
        return data

    def stream(self, digests: Iterable[Digest], offset: int, frame_bytes: int) -> Iterator[bytes]:
        """The blobs' bytes one after another from `offset`, in frames of `frame_bytes`; the last may be shorter.

        Not checked: whoever receives them does. Raises StoreError when a blob is missing.
        """
        pieces, room = list[bytes](), frame_bytes
        for digest in digests:
            with closing(self._folder.open(digest)) as source:
                at = min(offset, source.size)
                offset -= at
                while piece := source.read(at, room):
                    pieces.append(piece)
                    at, room = at + len(piece), room - len(piece)
                    if not room:
                        yield b"".join(pieces)
                        pieces, room = [], frame_bytes
        if pieces:
            yield b"".join(pieces)

    def manifest(self, state: Digest) -> dict[str, Blob]:
        """The slices of a state in name order. StoreError when it is missing, damaged or no manifest."""
        return read_manifest(self.read(state))

    def load(self, state: Digest) -> dict[str, Tensor]:
        """All tensors of a state in name order (fp32, writable). Raises StoreError as `tensor` does."""
        return {name: self._filled(blob) for name, blob in self.manifest(state).items()}

    def missing(self, state: Digest) -> list[Digest]:
        """Blobs to fetch before `load`, each once; just the state itself while its manifest is missing."""
        if not self.has(state):
            return [state]
        wanted = {blob.digest: blob.bytes for blob in self.manifest(state).values()}
        return [digest for digest, size in wanted.items() if not self.holds(digest, size)]

    def prune(self, keep: Iterable[Digest]) -> int:
        """Remove every blob that no state in `keep` and none being written uses, and what crashed writers left; returns
        how many blobs went."""
        used: set[Digest] = set()
        for state in keep:
            used |= {state, *(blob.digest for blob in self.manifest(state).values())}
        with self._known.removing(d for d in self._folder.digests() if d not in used) as gone:
            self._folder.remove(gone)
        self._folder.sweep()
        return len(gone)

    def _filled(self, blob: Blob) -> Tensor:
        tensor = np.empty(blob.shape, FP32)
        with self.open(blob) as reader:
            reader.read_into(0, tensor)
        return tensor

    def _damaged(self, digest: Digest, why: str) -> StoreError:
        self._known.forget(digest)
        text = f"blob {digest} in {self.root} is damaged: {why}"
        if self._durable:
            place = self._folder.place(digest)
            return StoreError(f"{text}; bring {place} back from a backup, or remove it and fetch it again")
        self._folder.remove([digest])
        return StoreError(f"{text}; it is dropped and fetched again")
