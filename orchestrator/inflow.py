"""The messages of one incoming stream, read ahead by a thread of their own so that the handler never hangs on them.

gRPC's iterator blocks until a message comes, and nothing but the end of its call wakes it. Here the call's handler
waits with a limit instead, and can refuse a caller that is too slow. What is read ahead is bounded: the caller is
held back by the connection's flow control.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Iterator

import grpc
from typing_extensions import Self

log = logging.getLogger("hansa.coordinator")

AHEAD = 3
"""Messages that may lie here while the handler works on one."""


class Stalled(Exception):
    """Nothing came in time."""


class Inflow:
    """Used by one handler, in a `with` block: on leaving, the thread ends with the call."""

    def __init__(self, messages: Iterator[bytes]) -> None:
        self._messages = messages
        self._changed = threading.Condition()
        self._waiting: deque[bytes] = deque()
        self._ended = self._closed = False

    def __enter__(self) -> Self:
        threading.Thread(target=self._read, name="inflow", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._closed = True
            self._waiting.clear()
            self._changed.notify_all()

    def take(self, wait_s: float) -> bytes | None:
        """The next message; None when the caller has sent its last, or is gone. Raises Stalled after `wait_s`."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._waiting or self._ended, max(0.0, wait_s)):
                raise Stalled
            if not self._waiting:
                return None
            self._changed.notify_all()
            return self._waiting.popleft()

    def _read(self) -> None:
        try:
            for message in self._messages:
                with self._changed:
                    self._changed.wait_for(lambda: len(self._waiting) < AHEAD or self._closed)
                    if self._closed:
                        return
                    self._waiting.append(message)
                    self._changed.notify_all()
        except grpc.RpcError:
            log.debug("an upload broke off")  # the caller is gone; what came stays
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()
