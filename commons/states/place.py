"""What a place must offer to keep model states in: a folder (`commons.states.local`) or a bucket (`.remote`)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from commons.names import Digest
from commons.states.drafts import Drafts


class Source(Protocol):
    """A blob opened for reading; for one thread at a time. Reading raises StoreError when the place fails."""

    size: int

    def read(self, at: int, count: int) -> bytes:
        """Up to `count` bytes from `at`, at least one unless `at` is the end."""

    def read_into(self, at: int, out: memoryview) -> int:
        """Fill `out` from `at` as far as there are bytes; how many there were."""

    def close(self) -> None: ...


class Place(Protocol):
    """For many threads. Everything raises StoreError when the place fails, ValueError for a text that is no digest."""

    where: str
    """A folder or a URL, for people."""
    durable: bool
    """Whether `secure` does anything."""

    def address(self, digest: Digest) -> str:
        """Of one blob, for people."""

    def size(self, digest: Digest) -> int | None:
        """Bytes of the blob; None when it is not here."""

    def surely_holds(self, digest: Digest, size: int) -> bool:
        """Whether the blob is known to be here without asking around."""

    def open(self, digest: Digest) -> Source:
        """Raises StoreError when it is not here."""

    def sources(self, digests: Iterable[Digest]) -> Iterator[Source]:
        """Each opened when its turn comes and closed afterwards."""

    def drafts(self) -> Drafts:
        """Where one writer's blobs grow."""

    def secure(self, draft: Path, digest: Digest) -> None:
        """Make a whole draft durable; nobody need see it under its digest yet."""

    def publish(self, secured: Sequence[tuple[Path, Digest]]) -> None:
        """Make secured drafts seen under their digests, durably; their files are gone afterwards."""

    def digests(self) -> Iterator[Digest]:
        """Of everything that is here, in no order."""

    def remove(self, digests: Iterable[Digest]) -> None:
        """What is not here is no error."""

    def sweep(self) -> None:
        """Remove what crashed writers left, and what was kept to be written over."""

    def close(self) -> None:
        """Nothing is tried again any more."""
