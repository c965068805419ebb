"""A sealed round on its way to the coordinator: cut into lanes, each from where the coordinator has it.

Owns what is in flight: a lane hands over no more than its line has shown to carry. Knows nothing of rounds.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from commons.errors import HansaError, StoreError
from commons.notes import digest, parse
from commons.updates import Lane, UpdateManifest
from commons.wire import channel
from commons.wire.v1 import consortium_pb2 as wire
from workers.calls import Calls, begun
from workers.lines import Line, Lines, at_once, persistently
from workers.outbox import Sealed
from workers.status import Status

MESSAGE_BYTES_MAX = 1 << 20


class Sending:
    """`epoch` gives the coordinator's as last heard."""

    def __init__(self, calls: Calls, lines: Lines, status: Status, epoch: Callable[[], int]) -> None:
        self._calls, self._lines, self._status, self._epoch = calls, lines, status, epoch

    def send(self, sealed: Sealed, *, run: str, round_number: int) -> int | None:
        """Send it; its journal index, None when it was admitted before.

        A line that breaks is tried again for a minute after the last byte. Raises Refused with the coordinator's
        reason, Unreachable, StoreError: a repeat goes on where this ended.
        """
        manifest = UpdateManifest.from_bytes(sealed.manifest)
        lines = self._lines.for_bytes(manifest.payload_bytes)
        lanes = manifest.lanes(len(lines))
        update = digest(parse(sealed.update).text.encode())
        key = wire.UploadKey(run=run, round=round_number, update=update, lanes=len(lanes))
        jobs = [(lane, line) for lane, line in zip(lanes, lines, strict=True) if lane.frames]
        jobs = jobs or [(lanes[0], lines[0])]  # of an update without a slice the notes alone are sent

        def carry(job: tuple[Lane, Line], over: threading.Event) -> int | None:
            lane, line = job
            attempt = partial(self._attempt, sealed, key, lane, line, over)
            return persistently(attempt, over, lambda: line.pace.total, self._say)

        receipts = at_once(self._calls, jobs, carry)
        if receipt := max(found or 0 for found in receipts):
            return receipt - 1
        if None in receipts:
            return None
        raise HansaError(
            f"the coordinator at {self._calls.address} has every byte of the update and did not admit it; it is handed "
            "in again"
        )

    def _attempt(
        self, sealed: Sealed, key: wire.UploadKey, lane: Lane, line: Line, over: threading.Event
    ) -> int | None:
        """What the receipt says; None when the update is admitted already."""
        position = self._calls.ask(line.stub.UploadOffset, key, over=over)
        if position.admitted:
            return None
        flight = _Flight(sealed.payload, lane, position.offsets[lane.number], line, self._status)
        header = wire.UploadHeader(
            epoch=self._epoch(),
            update=sealed.update,
            usage=sealed.usage,
            manifest=sealed.manifest,
            offset=position.offsets[lane.number],
            lane=lane.number,
            lanes=key.lanes,
            report_bytes=line.pace.window // 4,
        )
        call = begun(channel.raw_upload(line.channel), flight.messages(header.SerializeToString()))
        reply = wire.UploadReply()
        try:
            with self._calls.under_way(call, over):
                for answer in call:
                    reply = wire.UploadReply.FromString(answer)
                    flight.arrived(reply.taken)
        except HansaError:
            line.pace.broke()
            raise
        finally:
            flight.end()
        if flight.failed is not None:
            raise StoreError(f"cannot read {sealed.payload}: {flight.failed.strerror}") from flight.failed
        return int(reply.index)

    def _say(self, why: str) -> None:
        self._status.set(why=why)


class _Flight:
    """The bytes of one lane between this site and the coordinator."""

    def __init__(self, payload: Path, lane: Lane, at: int, line: Line, status: Status) -> None:
        self._payload, self._lane, self._line, self._status = payload, lane, line, status
        self._ends = [frame.offset + frame.bytes - lane.offset for frame in lane.frames]
        self._changed = threading.Condition()
        self._handed = self._arrived = at
        self._over = False
        self.failed: OSError | None = None

    def messages(self, header: bytes) -> Iterator[bytes]:
        """The header, then what is missing, as fast as it arrives."""
        yield header
        try:
            with self._payload.open("rb") as file:
                file.seek(self._lane.offset + self._handed)
                while (size := self._next_size()) and (message := file.read(size)):
                    self._handed += len(message)
                    self._status.moved(up=len(message))
                    yield message
        except OSError as error:
            self.failed = error

    def arrived(self, taken: int) -> None:
        with self._changed:
            fresh = max(0, taken - self._arrived)
            self._arrived += fresh
            self._line.pace.carried(fresh)
            self._changed.notify_all()

    def end(self) -> None:
        """Free the thread that waits to send more."""
        with self._changed:
            self._over = True
            self._changed.notify_all()

    def _next_size(self) -> int:
        """Of the next message, once there is room for it; 0 when there is none. It ends with a frame if one fits in."""
        at, whole = self._handed, self._lane.bytes
        with self._changed:
            most = min(MESSAGE_BYTES_MAX, self._line.pace.window // 2)
            frames = bisect_right(self._ends, at + most)
            end = self._ends[frames - 1] if frames and self._ends[frames - 1] > at else min(at + most, whole)
            self._changed.wait_for(lambda: self._over or end - self._arrived <= self._line.pace.window)
            return 0 if self._over else end - at
