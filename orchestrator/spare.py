"""Files nobody needs any more, to be written over: a round's updates take the room of the round before.

Bytes written over a file that is still in memory cost a half of what a new file's cost, and a tenth in a virtual machine
that gives freed memory back to its host.
"""

from __future__ import annotations

import os
import shutil
from collections import defaultdict
from pathlib import Path


class SpareFiles:
    """A folder of them, by size. For one thread at a time; what another process left is removed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made = 0
        self._by_size: defaultdict[int, list[Path]] = defaultdict(list)
        shutil.rmtree(folder, ignore_errors=True)

    def put(self, file: Path) -> None:
        """Keep a file of the same file system that nobody has open. Raises OSError."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._made += 1
        kept = self._folder / str(self._made)
        file.replace(kept)
        self._by_size[kept.stat().st_size].append(kept)

    def take(self, size: int, path: Path) -> bool:
        """Put a file of `size` bytes, whose content is anything, at `path`; False when there is none. Raises OSError."""
        if not self._by_size[size]:
            return False
        os.replace(self._by_size[size].pop(), path)
        return True

    def clear(self) -> None:
        """Give their room back."""
        self._by_size.clear()
        shutil.rmtree(self._folder, ignore_errors=True)
