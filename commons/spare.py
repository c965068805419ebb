"""Files nobody needs any more, to be written over: a round's updates take the room of the round before.

Bytes written over a file that is still in memory cost a half of what a new file's cost, and a tenth in a virtual machine
that gives freed memory back to its host.
"""

from __future__ import annotations

import shutil
from collections import defaultdict
from contextlib import suppress
from pathlib import Path


class SpareFiles:
    """A folder of them, by size. For one thread at a time; what another process left is removed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made = 0
        self._by_size: defaultdict[int, list[Path]] = defaultdict(list)
        shutil.rmtree(folder, ignore_errors=True)

    def put(self, file: Path) -> None:
        """Keep a file of the same file system that nobody has open; it stays where it is when the disk fails."""
        self._made += 1
        kept = self._folder / str(self._made)
        with suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            file.replace(kept)
            self._by_size[kept.stat().st_size].append(kept)

    def take(self, size: int, path: Path) -> bool:
        """Put a file of `size` bytes, whose content is anything, at `path`; False when there is none or the disk fails."""
        if not self._by_size[size]:
            return False
        with suppress(OSError):
            self._by_size[size].pop().replace(path)
            return True
        return False

    def clear(self) -> None:
        """Give their room back."""
        self._by_size.clear()
        shutil.rmtree(self._folder, ignore_errors=True)
