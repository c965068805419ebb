"""One lane of an update as it arrives: two threads, so that neither a slow site nor a slow disk hangs the other.

The worker pulls messages, which blocks until one comes, and lands what they hold. The call's own thread waits with a
limit: it tells the site how far its lane has come, and ends a stream that completes no frame in time. Knows nothing of
what an update must be.
"""

from __future__ import annotations

import logging
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import grpc

from commons.errors import Code, Refusal

log = logging.getLogger("hansa.coordinator")

_PIECES_MAX = 64
"""Messages kept apart of an unfinished frame; more are joined, so that tiny ones cost no more than their bytes."""

Outcome = int | Refusal
"""What the reply's `index` says, or why not."""


class Arrival:
    """`run` it once, in the call's thread. The worker uses `first` and `messages`; `end` and `left` are for anyone."""

    def __init__(self, incoming: Iterator[bytes], *, stall_s: float) -> None:
        self._incoming, self._stall_s = incoming, stall_s
        self._changed = threading.Condition()
        self.outcome: Outcome = Refusal(Code.REQUEST_INVALID, "the site is gone")
        """Of the landing, or why it did not come to its end; once `run` is through."""
        self.begun = False
        """Whether the lane's bytes were asked for: what came before them was in order."""
        self._ended: Refusal | None = None
        self._over = self._gone = False
        self._pulling_since: float | None = None
        self._waited_s = 0.0
        """For the messages of the frame under way."""
        self._at = self._reported = self._report_bytes = 0
        self._tail: list[bytes | memoryview] = []

    def run(self, land: Callable[[], Outcome]) -> Iterator[int]:
        """Bytes of the lane that are here, each time enough came; afterwards there is an `outcome`.

        `land` is run by the worker. Raises what `land` raises.
        """
        pool = ThreadPoolExecutor(1, thread_name_prefix="arrival")
        landing = pool.submit(land)
        landing.add_done_callback(self._landed)
        pool.shutdown(wait=False)
        while True:
            with self._changed:
                self._changed.wait_for(self._is_news, self._patience_s())
                if not self._over and self._has_stalled():
                    message = (
                        f"no frame was completed in {self._stall_s:g} s; the site sends what is missing anew"
                    )
                    self._ended = self._ended or Refusal(Code.UPLOAD_STALLED, message)
                if self._over or self._ended or self._gone:
                    break
                here = self._at
            if here - self._reported >= self._report_bytes > 0:
                self._reported = here
                yield here
        self.outcome = self._ended or (landing.result() if landing.done() else self.outcome)

    @property
    def tail(self) -> tuple[int, bytes]:
        """What came of the frame that is not complete, and where in the lane it begins."""
        data = b"".join(self._tail)
        return self._at - len(data), data

    def end(self, refusal: Refusal) -> None:
        """This stream is refused, whatever it was about to do."""
        with self._changed:
            self._ended = self._ended or refusal
            self._changed.notify_all()

    def left(self) -> None:
        """The caller is gone."""
        with self._changed:
            self._gone = True
            self._changed.notify_all()

    def wait_over(self, timeout_s: float) -> bool:
        """Whether the worker has come to its end, after at most so long."""
        with self._changed:
            return self._changed.wait_for(lambda: self._over, timeout_s)

    def first(self) -> bytes:
        """The first message, empty when none came."""
        message = self._pull() or b""
        self._waited_s = 0.0
        return message

    def messages(
        self, ends: Sequence[int], at: int, tail: bytes, *, known: int, report_bytes: int
    ) -> Iterator[bytes]:
        """The lane's bytes from `at` on, `tail` being the first of them, until no more come.

        `ends` are where its frames end, in order. The `known` first bytes that come are here already. The site is
        told where it stands every `report_bytes`; 0: never.
        """
        self.begun = True
        self._at = self._reported = at
        self._report_bytes = report_bytes
        if tail:
            self._take(ends, tail)
            yield tail
        while (message := self._pull()) is not None:
            if not message:
                self.end(Refusal(Code.REQUEST_INVALID, "a message of an upload holds at least one byte"))
                return
            fresh, known = message[known:], max(0, known - len(message))
            if fresh:
                self._take(ends, fresh)
                yield fresh

    def _landed(self, _: Future[Outcome]) -> None:
        with self._changed:
            self._over = True
            self._changed.notify_all()

    def _pull(self) -> bytes | None:
        with self._changed:
            if self._ended or self._gone:
                return None
            self._pulling_since = began = time.monotonic()
        try:
            return next(self._incoming, None)
        except grpc.RpcError:
            log.debug("an upload broke off")  # what came stays
            return None
        finally:
            with self._changed:
                self._waited_s += time.monotonic() - began
                self._pulling_since = None

    def _take(self, ends: Sequence[int], data: bytes) -> None:
        with self._changed:
            before, self._at = self._at, self._at + len(data)
            complete = bisect_right(ends, self._at)
            if complete and ends[complete - 1] > before:
                rest = self._at - ends[complete - 1]
                self._tail, self._waited_s = [memoryview(data)[len(data) - rest :]] if rest else [], 0.0
            else:
                self._tail.append(data)
                if len(self._tail) > _PIECES_MAX:
                    self._tail = [b"".join(self._tail)]
            if self._at - self._reported >= self._report_bytes > 0:
                self._changed.notify_all()

    def _is_news(self) -> bool:
        due = self._at - self._reported >= self._report_bytes > 0
        return bool(self._over or self._ended or self._gone or due or self._has_stalled())

    def _has_stalled(self) -> bool:
        since = self._pulling_since
        return since is not None and self._waited_s + time.monotonic() - since >= self._stall_s

    def _patience_s(self) -> float:
        """Until the frame under way could be late; a worker that does not wait for messages now may yet begin to."""
        since = time.monotonic() if self._pulling_since is None else self._pulling_since
        return max(self._stall_s / 16, since + self._stall_s - self._waited_s - time.monotonic())
