"""Files being written, under no name yet: a blob is built here and seen only when it is whole.

Every writer has a folder of its own and holds its lock, so that who tidies up (this process or another one) can tell
what a crash left from what somebody is still writing.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from blake3 import blake3

from commons.disk import begin_writeback
from commons.errors import StoreError
from commons.names import Digest
from commons.spare import SpareFiles
from commons.states.naming import named

BLOCK_BYTES = 1 << 20
"""What is hashed and copied at a time: it stays in the processor's cache between the two."""
_WRITE_BACK_BYTES = 8 << 20
_LOCK = "lock"


@contextmanager
def saving(where: str) -> Iterator[None]:
    """Turns an error of the disk into a StoreError that says what still holds."""
    try:
        yield
    except OSError as error:
        why = error.strerror or str(error)
        raise StoreError(f"cannot save a model state in {where}: {why}; earlier states are intact") from error


class Draft:
    """One file that grows, and the digest of what is in it. For one thread at a time."""

    def __init__(self, path: Path, *, durable: bool, over: bool) -> None:
        """`durable`: it will be synced. `over`: there is a file of just the bytes that will come. Raises OSError."""
        self._durable, self._written_back = durable, 0
        self.path = path
        self.bytes = 0
        new = 0 if over else os.O_CREAT | os.O_EXCL
        self._file = os.fdopen(os.open(path, os.O_WRONLY | new, 0o600), "wb", buffering=0)
        self._digest = blake3()

    def append(self, data: memoryview) -> None:
        """Bytes (one dimension, format B). Raises OSError."""
        for start in range(0, len(data), BLOCK_BYTES):
            rest = data[start : start + BLOCK_BYTES]
            self._digest.update(rest)
            self.bytes += len(rest)
            while rest:
                rest = rest[self._file.write(rest) :]
            behind = self.bytes - self._written_back
            if self._durable and behind >= _WRITE_BACK_BYTES:
                begin_writeback(self._file.fileno(), self._written_back, behind)
                self._written_back = self.bytes

    def close(self) -> Digest:
        """No more is coming; the digest of all that came."""
        self._file.close()
        return named(self._digest)

    def remove(self) -> None:
        """The file goes, whether it was closed or not; nothing when it has got a name meanwhile."""
        self._file.close()
        self.path.unlink(missing_ok=True)


class Drafts:
    """The folder of one writer, made when the first draft is."""

    def __init__(self, parent: Path, *, durable: bool, spare: SpareFiles | None = None) -> None:
        """`durable`: its drafts will be synced. `spare`: what may be written over."""
        self._parent, self._durable, self._spare = parent, durable, spare
        self._folder: Path | None = None
        self._lock: IO[bytes] | None = None
        self._made = 0

    def new(self, size: int | None = None) -> Draft:
        """`size`: the bytes it will have, where that is known. Raises OSError. Not for two threads at a time."""
        while self._folder is None:
            self._begin()
        self._made += 1
        path = self._folder / str(self._made)
        over = size is not None and self._spare is not None and self._spare.take(size, path)
        return Draft(path, durable=self._durable, over=over)

    def remove(self) -> None:
        """The folder goes with all that is left in it."""
        if self._folder is not None:
            _remove(self._folder)
            self._folder = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _begin(self) -> None:
        self._parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix="hansa-", dir=self._parent))
        with suppress(FileNotFoundError):  # who tidies up came between: another folder
            self._lock = (folder / _LOCK).open("wb")
            with suppress(OSError):  # no locks on this file system: then nobody takes it for abandoned either
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if (folder / _LOCK).exists():
                self._folder = folder


def sweep(parent: Path) -> None:
    """Remove the drafts of writers that are no more. Raises OSError."""
    for found in parent.iterdir():
        if not found.is_dir():
            found.unlink(missing_ok=True)
        elif _abandoned(found):
            _remove(found)


def _abandoned(folder: Path) -> bool:
    try:
        with (folder / _LOCK).open("rb+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
