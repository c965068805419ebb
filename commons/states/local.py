"""Blobs as files of one folder: direct calls of the operating system, durable by fsync and rename."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from commons.disk import sync
from commons.errors import StoreError
from commons.names import Digest
from commons.spare import SpareFiles
from commons.states.drafts import Drafts, saving, sweep
from commons.states.naming import file_name, from_file_name


class File:
    """A blob opened for reading (`commons.states.place.Source`)."""

    def __init__(self, path: str) -> None:
        """Raises StoreError when there is none."""
        self._path, self._handle = path, -1
        with self._reading():
            self._handle = os.open(path, os.O_RDONLY)
            found = os.fstat(self._handle)
        self.size = found.st_size
        if not stat.S_ISREG(found.st_mode):
            self.close()
            raise StoreError(f"blob {path} cannot be read: it is no file")

    def read(self, at: int, count: int) -> bytes:
        with self._reading():
            return os.pread(self._handle, count, at)

    def read_into(self, at: int, out: memoryview) -> int:
        filled = 0
        with self._reading():
            while filled < len(out) and (count := os.preadv(self._handle, [out[filled:]], at + filled)):
                filled += count
        return filled

    def close(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StoreError(f"blob {self._path} cannot be read: {error.strerror}") from error


class Folder:
    """Blobs in ``blobs/``, named by their digests; what is being written in ``drafts/``, over what lies in ``.spare/``
    (`commons.states.place.Place`)."""

    def __init__(self, root: Path, *, durable: bool) -> None:
        """`durable`: False leaves it to the system when bytes reach the disk."""
        self.root, self.where = root, str(root)
        self._blobs, self._drafts, self.durable = root / "blobs", root / "drafts", durable
        self._spare = SpareFiles(root / ".spare")
        try:
            self._blobs.mkdir(parents=True, exist_ok=True)
            self._drafts.mkdir(exist_ok=True)
        except OSError as error:
            raise StoreError(f"cannot use {root} for model states: {error.strerror}") from error

    def path(self, digest: Digest) -> Path:
        """Where the blob is or would be. Raises ValueError for a text that is no digest."""
        return Path(self.address(digest))

    def address(self, digest: Digest) -> str:
        return f"{self._blobs}/{file_name(digest)}"  # asked for every slice, many times a round

    def size(self, digest: Digest) -> int | None:
        try:
            found = os.stat(self.address(digest))
        except OSError:
            return None
        return found.st_size if stat.S_ISREG(found.st_mode) else None

    def surely_holds(self, digest: Digest, size: int) -> bool:
        return self.size(digest) == size

    def open(self, digest: Digest) -> File:
        return File(self.address(digest))

    def sources(self, digests: Iterable[Digest]) -> Iterator[File]:
        for digest in digests:
            with closing(self.open(digest)) as source:
                yield source

    def drafts(self) -> Drafts:
        return Drafts(self._drafts, durable=self.durable, spare=self._spare)

    def reuse(self, size: int, path: Path) -> bool:
        """Put a file of `size` bytes that was removed here at `path`, its content being anything; False when there is none."""
        with saving(self.where):
            return self._spare.take(size, path)

    def secure(self, draft: Path, digest: Digest) -> None:
        if self.durable:
            with saving(self.where):
                sync(draft)

    def publish(self, secured: Sequence[tuple[Path, Digest]]) -> None:
        with saving(self.where):
            for draft, digest in secured:
                os.replace(draft, self.address(digest))
            if secured and self.durable:
                sync(self._blobs)

    def digests(self) -> Iterator[Digest]:
        for file in self._blobs.iterdir():
            if file.is_file():
                yield from_file_name(file.name)

    def remove(self, digests: Iterable[Digest]) -> None:
        for digest in digests:
            path = self.path(digest)
            try:
                with suppress(OSError):
                    self._spare.put(path)
                path.unlink(missing_ok=True)
            except OSError as error:
                raise StoreError(f"cannot remove {path}: {error.strerror}") from error
        if self.durable:  # no power cut may bring a name back whose bytes are written over by then
            with saving(self.where):
                sync(self._blobs)

    def sweep(self) -> None:
        sweep(self._drafts)
        self._spare.clear()

    def close(self) -> None:
        pass
