"""What this process knows of blobs beyond their being there: whose bytes it has checked, and which are in use."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from commons.names import Digest


class Known:
    """For many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._vouched: set[Digest] = set()
        self._pinned: Counter[Digest] = Counter()

    def vouch(self, digests: Iterable[Digest]) -> None:
        """This process has written these blobs, or read them to the end and found them right."""
        with self._lock:
            self._vouched.update(digests)

    def vouched(self, digest: Digest) -> bool:
        return digest in self._vouched

    def forget(self, digest: Digest) -> None:
        with self._lock:
            self._vouched.discard(digest)

    def pin(self, digest: Digest) -> None:
        """A state being written uses this blob: no pruning takes it."""
        with self._lock:
            self._pinned[digest] += 1

    def unpin(self, digests: Iterable[Digest]) -> None:
        with self._lock:
            self._pinned.subtract(digests)
            self._pinned = +self._pinned

    @contextmanager
    def removing(self, digests: Iterable[Digest]) -> Iterator[list[Digest]]:
        """Those that may go now; nobody pins one while the block lasts."""
        with self._lock:
            gone = [digest for digest in digests if digest not in self._pinned]
            self._vouched.difference_update(gone)
            yield gone
