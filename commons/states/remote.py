"""Blobs at a URL that fsspec knows: S3 and what speaks it, other clouds, memory, a mounted share.

A blob is uploaded from a local draft and seen only when it is whole; it never changes, so what was seen once is asked
for no more. Reading runs ahead in ranges, bounded for all readers together. What may pass is tried again for a while.
"""

from __future__ import annotations

import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from tenacity import (
    Retrying,
    retry_if_exception,
    stop_after_delay,
    stop_when_event_set,
    wait_random_exponential,
)
from tenacity.nap import sleep_using_event

from commons.errors import StoreError
from commons.names import Digest
from commons.states import failing
from commons.states.drafts import Drafts, sweep
from commons.states.naming import DIGEST, file_name, from_file_name

RETRY_S = 20.0
"""How long one request is tried again. Whoever asked for it then fails, and is tried again as a whole by its caller."""
RANGE_BYTES = 4 << 20
AHEAD = 2
"""Ranges that one reader asks for before it needs them."""
AHEAD_IN_ALL = 12
BLOBS_AHEAD = 8
_PART_BYTES, _PARTS_MAX = 8 << 20, 9000
_LARGE_AT_ONCE = 3
"""Uploads of more than one part, of which two are in memory."""
_SEEN_WHOLE = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl"})
"""File systems that show an upload whole or not at all. Elsewhere it goes under another name first."""
_S3 = {
    "config_kwargs": {
        "retries": {"mode": "standard", "total_max_attempts": 3},
        "max_pool_connections": 32,
    }
}
"""One part of an upload is tried again by itself, briefly; the rest is done here."""
_MARK = "hansa-model-states"

T = TypeVar("T")


class Bucket:
    """`commons.states.place.Place` at a URL."""

    def __init__(self, url: str, drafts: Path | None) -> None:
        """Raises StoreError when it cannot be listed and written to."""
        self.where, self.durable = url.rstrip("/"), True
        self._closed = threading.Event()
        self._files, self._root = _opened(self.where)
        protocols = self._files.protocol
        kinds = {protocols} if isinstance(protocols, str) else set(protocols)
        self._seen_whole = bool(kinds & _SEEN_WHOLE)
        self._options: dict[str, Any] = {"max_concurrency": 2} if "s3" in kinds else {}
        self._drafts = drafts
        self._large = threading.BoundedSemaphore(_LARGE_AT_ONCE)
        self._sizes: dict[Digest, int] = {}
        self.ahead = threading.BoundedSemaphore(AHEAD_IN_ALL)
        self.pool = ThreadPoolExecutor(AHEAD_IN_ALL, thread_name_prefix="states")
        self._begin()

    def address(self, digest: Digest) -> str:
        return f"{self.where}/blobs/{file_name(digest)}"

    def size(self, digest: Digest) -> int | None:
        path = self._path(digest)
        if digest not in self._sizes:
            with suppress(FileNotFoundError):
                found = self._tried(lambda: self._files.info(path))
                if found["type"] == "file":
                    self._sizes[digest] = int(found["size"])
        return self._sizes.get(digest)

    def surely_holds(self, digest: Digest, size: int) -> bool:
        return self._sizes.get(digest) == size

    def open(self, digest: Digest) -> Ranges:
        size = self.size(digest)
        if size is None:
            raise StoreError(f"blob {digest} cannot be read: {self.address(digest)} is not there")
        return Ranges(self, digest, size)

    def sources(self, digests: Iterable[Digest]) -> Iterator[Ranges]:
        opened = deque[Ranges]()
        try:
            for digest in digests:
                opened.append(self.open(digest))
                opened[-1].begin()
                if len(opened) > BLOBS_AHEAD:
                    yield opened[0]
                    opened.popleft().close()
            while opened:
                yield opened[0]
                opened.popleft().close()
        finally:
            for source in opened:
                source.close()

    def range(self, digest: Digest, start: int, end: int) -> bytes:
        """Bytes of a blob. Raises StoreError."""
        path = self._path(digest)
        try:
            return self._tried(lambda: bytes(self._files.cat_file(path, start=start, end=end)))
        except FileNotFoundError as error:
            self._sizes.pop(digest, None)
            raise StoreError(f"blob {digest} cannot be read: {self.address(digest)} is not there") from error

    def drafts(self) -> Drafts:
        return Drafts(self._drafts or Path(tempfile.gettempdir()), durable=False)

    def secure(self, draft: Path, digest: Digest) -> None:
        size = draft.stat().st_size
        if size <= _PART_BYTES:
            self._upload(draft, digest, size)
        else:
            with self._large:
                self._upload(draft, digest, size)
        draft.unlink()
        self._sizes[digest] = size

    def publish(self, secured: Sequence[tuple[Path, Digest]]) -> None:
        """An upload is seen by itself."""

    def digests(self) -> Iterator[Digest]:
        self._list()
        yield from list(self._sizes)

    def remove(self, digests: Iterable[Digest]) -> None:
        paths = []
        for digest in digests:
            paths.append(self._path(digest))
            self._sizes.pop(digest, None)
        if paths:
            with suppress(FileNotFoundError):
                self._tried(lambda: self._files.rm(paths))

    def sweep(self) -> None:
        if self._drafts is not None and self._drafts.exists():
            sweep(self._drafts)

    def close(self) -> None:
        self._closed.set()
        self.pool.shutdown(wait=False, cancel_futures=True)

    def _begin(self) -> None:
        """What is there, and whether more can be put there: wrong credentials shall not cost a round."""
        mark = f"{self._root}/{_MARK}"
        try:
            if not self._seen_whole:
                for folder in ("blobs", "drafts"):
                    self._tried(partial(self._files.makedirs, f"{self._root}/{folder}", exist_ok=True))
            self._tried(lambda: self._files.pipe_file(mark, b"Model states of a Hansa consortium.\n"))
            self._list()
        except FileNotFoundError as error:
            raise failing.missing(self.where) from error

    def _list(self) -> None:
        found = self._tried(lambda: self._files.find(f"{self._root}/blobs", detail=True))
        names = {path.rpartition("/")[2]: int(info["size"]) for path, info in found.items()}
        here = {from_file_name(name): size for name, size in names.items()}
        self._sizes = {digest: size for digest, size in here.items() if DIGEST.fullmatch(digest)}

    def _upload(self, draft: Path, digest: Digest, size: int) -> None:
        options = dict(self._options)
        if options:
            options["chunksize"] = max(_PART_BYTES, -(-size // _PARTS_MAX))
        final = self._path(digest)
        path = final if self._seen_whole else f"{self._root}/drafts/{draft.parent.name}-{draft.name}"
        try:
            self._tried(lambda: self._files.put_file(str(draft), path, **options))
            if path != final:
                self._tried(lambda: self._files.mv(path, final))
        except FileNotFoundError as error:
            raise failing.missing(self.where) from error

    def _path(self, digest: Digest) -> str:
        return f"{self._root}/blobs/{file_name(digest)}"

    def _tried(self, request: Callable[[], T]) -> T:
        """Raises FileNotFoundError, and StoreError for every other failure."""
        try:
            return Retrying(
                retry=retry_if_exception(failing.may_pass),
                stop=stop_after_delay(RETRY_S) | stop_when_event_set(self._closed),
                wait=wait_random_exponential(0.2, max=5),
                sleep=sleep_using_event(self._closed),
                reraise=True,
            )(request)
        except FileNotFoundError:
            raise
        except Exception as error:  # every file system of fsspec has errors of its own
            raise failing.explained(self.where, error) from error


class Ranges:
    """A blob opened for reading (`commons.states.place.Source`)."""

    def __init__(self, bucket: Bucket, digest: Digest, size: int) -> None:
        self.size = size
        self._bucket, self._digest = bucket, digest
        self._current: tuple[int, bytes] = (-1, b"")
        self._coming: dict[int, Future[bytes]] = {}

    def begin(self) -> None:
        """Ask for the first range before anybody reads it."""
        self._ask(0)

    def read(self, at: int, count: int) -> bytes:
        if at >= self.size:
            return b""
        data = self._range(at // RANGE_BYTES)
        start = at % RANGE_BYTES
        return data if len(data) <= count and not start else data[start : start + count]

    def read_into(self, at: int, out: memoryview) -> int:
        filled = 0
        while filled < len(out) and (piece := self.read(at + filled, len(out) - filled)):
            out[filled : filled + len(piece)] = piece
            filled += len(piece)
        return filled

    def close(self) -> None:
        for number in list(self._coming):
            self._drop(number)
        self._current = (-1, b"")

    def _range(self, number: int) -> bytes:
        before, data = self._current
        if number == before:
            return data
        self._current = (-1, b"")
        for other in [n for n in self._coming if not number <= n <= number + AHEAD]:
            self._drop(other)
        if number == before + 1:
            for ahead in range(number + 1, number + AHEAD + 1):
                self._ask(ahead)
        asked = number in self._coming
        data = self._take(number) if asked else self._bucket.range(self._digest, *self._limits(number))
        self._current = (number, data)
        return data

    def _limits(self, number: int) -> tuple[int, int]:
        return number * RANGE_BYTES, min(self.size, (number + 1) * RANGE_BYTES)

    def _ask(self, number: int) -> None:
        start, end = self._limits(number)
        if number in self._coming or start >= end or not self._bucket.ahead.acquire(blocking=False):
            return
        try:
            self._coming[number] = self._bucket.pool.submit(self._bucket.range, self._digest, start, end)
        except RuntimeError:  # the store is closed
            self._bucket.ahead.release()

    def _take(self, number: int) -> bytes:
        coming = self._coming.pop(number)
        try:
            return coming.result()
        except CancelledError as error:
            raise StoreError(f"{self._bucket.where} is closed") from error
        finally:
            self._bucket.ahead.release()

    def _drop(self, number: int) -> None:
        coming = self._coming.pop(number)
        coming.cancel()
        coming.add_done_callback(lambda _: self._bucket.ahead.release())


def _opened(url: str) -> tuple[Any, str]:
    """The file system and the path within it. Raises StoreError when there is none for such a URL."""
    import fsspec  # takes a third of a second, and a folder needs none of it

    options = _S3 if url.startswith(("s3:", "s3a:")) else {}
    try:
        files, root = fsspec.core.url_to_fs(
            url, use_listings_cache=False, skip_instance_cache=True, **options
        )
    except ImportError as error:
        raise StoreError(f"{url} needs more packages ({error}); for S3: pip install 'hansa[s3]'") from error
    except ValueError as error:
        raise StoreError(f"{url} is no place for model states: {error}") from error
    if options:
        files.retries = 1  # s3fs tries again what its client has tried again
    return files, root.rstrip("/")
