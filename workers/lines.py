"""The connections that bulk goes over: several to one coordinator, each with what it has shown to carry.

One TCP connection does not fill a long link, and heartbeats must not wait behind payload. On a short link it does, and
each more costs both ends time and memory. Small transfers use the connection of the orders. Knows nothing of what is moved.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import grpc

from commons.errors import Code, HansaError, Refused, Unreachable
from commons.identity import Seat
from commons.wire import channel
from commons.wire.v1.consortium_pb2_grpc import SiteLinkStub
from workers.backoff import pauses
from workers.calls import Calls

log = logging.getLogger("hansa.site")
T = TypeVar("T")
R = TypeVar("R")

APART_FROM_BYTES, MORE_FROM_BYTES = 32 << 20, 512 << 20
"""Above these, lines of their own: two and four, or one where the coordinator is near."""
NEAR_S = 0.005
"""A call answered as fast as this shows a link that one line fills: `Pace.MOST` in each such time is 800 MB/s."""
PATIENCE_S = 60.0
"""How long a transfer tries without a byte moving before it is the caller's turn to decide."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.3, 3.0
_PASSING = frozenset({Code.EPOCH_STALE, Code.UPLOAD_STALLED, Code.TOO_MANY_STREAMS})
"""Refusals that pass: a new epoch is told with the orders, streams end."""


class Pace:
    """How much a sender may have under way on one line.

    What is under way when the line breaks is sent twice. So a line that broke begins anew with little, and has at most
    1/64 of what it carried since then: however often it breaks, few bytes in a hundred are sent twice.
    """

    LEAST, FIRST, MOST = 128 << 10, 2 << 20, 4 << 20
    _SHARE = 64

    def __init__(self) -> None:
        self._carried = self.FIRST * self._SHARE
        self.total = 0
        """Bytes that arrived, ever."""

    @property
    def window(self) -> int:
        """Bytes."""
        return min(self.MOST, max(self.LEAST, self._carried // self._SHARE))

    def carried(self, payload_bytes: int) -> None:
        self._carried += payload_bytes
        self.total += payload_bytes

    def broke(self) -> None:
        self._carried = 0


class Line:
    """One connection."""

    def __init__(self, opened: grpc.Channel) -> None:
        self.channel = opened
        self.stub = SiteLinkStub(opened)  # made of a channel that is being closed, it would end the process
        self.pace = Pace()


class Lines:
    """Made when they are first needed, then kept. Safe for many threads."""

    def __init__(self, seat: Seat, first: grpc.Channel, calls: Calls) -> None:
        """`calls` tell how near the coordinator is."""
        self._seat, self._small, self._calls = seat, Line(first), calls
        self._lock = threading.Lock()
        self._bulk: list[Line] = []

    def for_bytes(self, payload_bytes: int) -> Sequence[Line]:
        """As many as so much to move is worth."""
        if payload_bytes < APART_FROM_BYTES:
            return [self._small]
        far = 2 if payload_bytes < MORE_FROM_BYTES else 4
        number = 1 if self._calls.fastest_s <= NEAR_S else far
        with self._lock:
            while len(self._bulk) < number:
                self._bulk.append(Line(channel.connect(self._seat, alone=True)))
            return self._bulk[:number]

    def close(self) -> None:
        with self._lock:
            for line in self._bulk:
                line.channel.close()


def at_once(calls: Calls, jobs: Sequence[T], work: Callable[[T, threading.Event], R]) -> list[R]:
    """`work` on every job, each in a thread of its own; what is raised first ends the others and is raised here."""
    with calls.transfer() as over, ThreadPoolExecutor(len(jobs), thread_name_prefix="transfer") as pool:

        def guarded(job: T) -> R:
            try:
                return work(job, over)
            except HansaError:
                calls.cancel(over)
                raise

        futures = [pool.submit(guarded, job) for job in jobs]
        failures = [error for future in futures if (error := future.exception()) is not None]
        fatal = [error for error in failures if not isinstance(error, Unreachable)]
        for error in (*fatal, *failures):
            raise error
        return [future.result() for future in futures]


def persistently(
    attempt: Callable[[], T], over: threading.Event, moved: Callable[[], int], say: Callable[[str], None]
) -> T:
    """What `attempt` gives at last: tried again while the line breaks, for as long as bytes `moved` in between.

    `say` is told what it waits for, and an empty text once it goes on. Raises what is no matter of the line at once,
    Unreachable after `PATIENCE_S` without a byte.
    """
    before, silent_since, waits = moved(), time.monotonic(), _waits()
    while True:
        try:
            return attempt()
        except (Unreachable, Refused) as error:
            if isinstance(error, Refused) and error.refusal.code not in _PASSING:
                raise
            now = time.monotonic()
            if moved() != before:
                before, silent_since, waits = moved(), now, _waits()
            if over.is_set() or now - silent_since > PATIENCE_S:
                raise
            log.debug("tried again soon: %s", error)
            say(f"waiting for coordinator: {error}")
            over.wait(next(waits))
            say("")


def _waits() -> Iterator[float]:
    return pauses(first_s=_FIRST_PAUSE_S, longest_s=_LONGEST_PAUSE_S)
