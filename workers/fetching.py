"""Blobs that a state needs and this site lacks: dealt over several streams, each blob in a part file that can go on.

Owns part files. What a blob is worth, its digest says, and the store checks it when it takes the file over.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

from blake3 import blake3

from commons.errors import StoreError, Unreachable
from commons.names import Digest
from commons.states import MANIFEST_BYTES_MAX, Blob, StateStore
from commons.states.naming import file_name, name_of, named
from commons.wire import channel
from commons.wire.v1 import consortium_pb2 as wire
from workers.calls import Calls, begun
from workers.lines import Line, Lines, at_once, persistently
from workers.status import Status

log = logging.getLogger("hansa.site")

BLOBS_PER_CALL = 1024
_OVER_BYTES_MAX = 64 << 20
"""Of a blob that is written over a file nobody needs: killed meanwhile, this site fetches it from its beginning again."""


@dataclass(frozen=True)
class Wanted:
    """A blob and its size in bytes."""

    blob: Digest
    bytes: int


class Fetching:
    def __init__(self, calls: Calls, lines: Lines, status: Status, store: StateStore, parts: Path) -> None:
        self._calls, self._lines, self._status, self._store, self._parts = calls, lines, status, store, parts

    def manifest(self, state: Digest) -> None:
        """Bring the manifest of a state into the store. Raises as `blobs`."""
        data = self.file(state, MANIFEST_BYTES_MAX)
        if name_of(data) != state:
            raise StoreError(
                f"the coordinator sent {len(data)} bytes for state {state} that are not it; its operator must check "
                "its store"
            )
        self._store.put(data)

    def file(self, digest: Digest, most: int) -> bytes:
        """Some small file the coordinator has, of at most so many bytes; the caller checks them. Raises as `blobs`."""
        [line] = self._lines.for_bytes(0)

        def read(_: None, over: threading.Event) -> bytes:
            return persistently(partial(self._whole, digest, most, line, over), over, lambda: 0, self._say)

        [data] = at_once(self._calls, [None], read)
        return bytes(data)

    def slices(self, wanted: Sequence[Blob]) -> None:
        """Have these slices in the store, by way of steps where their bases are there. Raises as `blobs`."""
        self._blobs(self._store.lacking(wanted))
        for blob in wanted:
            try:
                self._store.advance(blob)
            except StoreError as error:
                log.warning("a slice is fetched whole: %s", error)
        self._blobs(self._store.lacking(wanted, steps=False))

    def _blobs(self, lacking: Mapping[Digest, int]) -> None:
        self.blobs([Wanted(blob, size) for blob, size in lacking.items()])

    def blobs(self, wanted: Sequence[Wanted]) -> None:
        """Bring them into the store; none of them is there.

        A line that breaks is tried again for a minute after the last byte. Raises Refused, Unreachable (what came
        stays, a repeat goes on at that byte), StoreError when bytes do not have their digest or the disk is full.
        """
        if not wanted:
            return
        lines = self._lines.for_bytes(sum(one.bytes for one in wanted))
        hands = self._deal(wanted, len(lines))
        jobs = [(hand, line) for hand, line in zip(hands, lines, strict=True) if hand]

        def carry(job: tuple[deque[Wanted], Line], over: threading.Event) -> None:
            hand, line = job
            while hand:
                calls = partial(self._attempt, hand, line, over)
                persistently(calls, over, lambda: line.pace.total, self._say)

        at_once(self._calls, jobs, carry)

    def _deal(self, wanted: Sequence[Wanted], number: int) -> list[deque[Wanted]]:
        """Hands of nearly equal bytes, what has begun to come first of all: only the first of a call can go on."""
        hands: list[deque[Wanted]] = [deque() for _ in range(number)]
        for one in sorted(wanted, key=lambda one: (self._begun(one) == 0, -one.bytes, one.blob)):
            min(hands, key=lambda hand: sum(other.bytes for other in hand)).append(one)
        return hands

    def _attempt(self, hand: deque[Wanted], line: Line, over: threading.Event) -> None:
        """One call: blobs leave the hand as they come, up to one that begins within itself."""
        asked = [hand[0]]
        for one in islice(hand, 1, BLOBS_PER_CALL):
            if self._begun(one):
                break
            asked.append(one)
        try:
            with closing(self._frames(asked, line, over)) as frames:
                for one in asked:
                    if not self._take(one, frames):
                        return
                    hand.popleft()
        except OSError as error:
            raise StoreError(f"cannot keep downloads in {self._parts}: {error.strerror}") from error

    def _take(self, one: Wanted, frames: _Frames) -> bool:
        """One blob from the stream into the store; False when what had come of it earlier was wrong, and is gone."""
        begun_at = at = self._begun(one)
        path, total = self._part(one.blob), blake3()
        over = not at and one.bytes <= _OVER_BYTES_MAX and self._store.reuse(one.bytes, path)
        with path.open("r+b" if over else "ab", buffering=0) as part:
            try:
                while at < one.bytes:
                    piece = frames.take(one.bytes - at)
                    total.update(piece)
                    at += len(piece)
                    while piece:
                        piece = piece[part.write(piece) :]
            finally:
                if over and at < one.bytes:
                    part.truncate(at)
        found = None if begun_at else named(total)
        try:
            self._store.adopt(path, one.blob, found=found)
        except StoreError:
            if not begun_at or path.exists():
                raise
            return False
        return True

    def _frames(self, asked: Sequence[Wanted], line: Line, over: threading.Event) -> _Frames:
        return _Frames(self._stream([one.blob for one in asked], self._begun(asked[0]), line, over))

    def _stream(
        self, blobs: Sequence[Digest], offset: int, line: Line, over: threading.Event
    ) -> Generator[bytes, None, None]:
        request = wire.FetchRequest(digests=blobs, offset=offset).SerializeToString()
        call = begun(channel.raw_fetch(line.channel), request)
        try:
            with self._calls.under_way(call, over):
                for frame in call:
                    self._status.moved(down=len(frame))
                    line.pace.carried(len(frame))
                    yield frame
        except Unreachable:
            line.pace.broke()
            raise
        finally:
            call.cancel()

    def _whole(self, digest: Digest, most: int, line: Line, over: threading.Event) -> bytes:
        data = bytearray()
        with closing(self._stream([digest], 0, line, over)) as frames:
            for frame in frames:
                data += frame
                if len(data) > most:
                    raise StoreError(f"the coordinator sent more than {most} bytes for {digest}")
        return bytes(data)

    def _begun(self, one: Wanted) -> int:
        """Bytes of the blob that came earlier."""
        part = self._part(one.blob)
        try:
            size = part.stat().st_size
        except FileNotFoundError:
            return 0
        if size > one.bytes:
            part.unlink()
            return 0
        return size

    def _part(self, blob: Digest) -> Path:
        return self._parts / file_name(blob)

    def _say(self, why: str) -> None:
        self._status.set(why=why)


class _Frames:
    """The bytes of a stream, as many at a time as are wanted."""

    def __init__(self, frames: Generator[bytes, None, None]) -> None:
        self._frames = frames
        self._rest = memoryview(b"")

    def take(self, most: int) -> memoryview:
        """At least one byte. Raises Unreachable when there are no more."""
        while not self._rest:
            frame = next(self._frames, None)
            if frame is None:
                raise Unreachable("the coordinator ended a download early")
            self._rest = memoryview(frame)
        taken, self._rest = self._rest[:most], self._rest[most:]
        return taken

    def close(self) -> None:
        self._frames.close()
