"""Files nobody needs any more, to be written over: what a round writes takes the room of what the round before did.

Bytes written over a file that is still in memory cost a half of what a new file's cost, and a tenth in a virtual machine
that gives freed memory back to its host. A small file costs less too: making and removing one searches the file system.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import threading
from collections import defaultdict
from pathlib import Path


class SpareFiles:
    """A folder of them, by size. Safe for many threads of one process."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._made = 0
        self._by_size: defaultdict[int, list[str]] = defaultdict(list)

    def put(self, file: Path) -> None:
        """Take a file of the same file system away; it is kept unless somebody still reads it. Raises OSError."""
        with self._lock:
            if not self._made:
                self._folder.mkdir(parents=True, exist_ok=True)
            self._made += 1
            kept = f"{self._folder}/{self._made}"
            os.replace(file, kept)
            size = _size_if_free(kept)
            if size is None:
                os.unlink(kept)
            else:
                self._by_size[size].append(kept)

    def take(self, size: int, path: Path) -> bool:
        """Put a file of `size` bytes, whose content is anything, at `path`; False when there is none. Raises OSError."""
        with self._lock:
            if not self._by_size[size]:
                return False
            os.replace(self._by_size[size].pop(), path)
            return True

    def clear(self) -> None:
        """Give their room back, and that of what another process left."""
        with self._lock:
            self._by_size.clear()
            self._made = 0
            shutil.rmtree(self._folder, ignore_errors=True)


def _size_if_free(file: str) -> int | None:
    """Its bytes, when nobody has it open or mapped: Linux gives a lease to write to nobody else. Others know no name of it."""
    handle = os.open(file, os.O_RDONLY)
    try:
        fcntl.fcntl(handle, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        return os.fstat(handle).st_size
    except (OSError, AttributeError):  # other systems know no leases
        return None
    finally:
        os.close(handle)
