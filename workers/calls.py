"""Calls under way, so that a stop ends them all and one that gave up ends its own; failures in `commons.errors`' words."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Iterator
from typing import Any

import grpc

from commons.errors import Unreachable
from commons.wire import channel

ANSWER_S = 30.0
"""How long a call that moves no payload waits; downloads and uploads take as long as bytes move."""


class Calls:
    """Safe for many threads. `stop` ends nothing by itself: whoever sets it calls `cancel`."""

    def __init__(self, address: str, stop: threading.Event) -> None:
        self.address, self.stop = address, stop
        self._lock = threading.Lock()
        self._under_way: dict[Any, threading.Event] = {}
        self._transfers: set[threading.Event] = set()
        self.fastest_s = math.inf
        """Of all answers so far: how far away the coordinator is at most."""

    def ask(
        self, method: Any, request: Any, *, timeout_s: float = ANSWER_S, over: threading.Event | None = None
    ) -> Any:
        """One answer. Raises Refused, Unreachable."""
        asked_s = time.monotonic()
        call = begun(method.future, request, timeout=timeout_s)
        with self.under_way(call, over):
            answer = call.result()
            self.fastest_s = min(self.fastest_s, time.monotonic() - asked_s)
            return answer

    @contextlib.contextmanager
    def under_way(self, call: Any, over: threading.Event | None = None) -> Iterator[None]:
        """A call that a stop cancels, or the transfer it belongs to. Its failure is raised as Refused or Unreachable."""
        over = over or self.stop
        with self._lock:
            self._under_way[call] = over
        try:
            if over.is_set():
                call.cancel()
            yield
        except grpc.FutureCancelledError as error:
            raise Unreachable("stopped by this site") from error
        except grpc.RpcError as error:
            raise channel.translate(error, self.address) from error
        finally:
            with self._lock:
                del self._under_way[call]

    @contextlib.contextmanager
    def transfer(self) -> Iterator[threading.Event]:
        """Set at its end, and by a stop; its calls are cancelled then."""
        over = threading.Event()
        with self._lock:
            self._transfers.add(over)
        if self.stop.is_set():
            over.set()
        try:
            yield over
        finally:
            self.cancel(over)
            with self._lock:
                self._transfers.discard(over)

    def cancel(self, over: threading.Event | None = None) -> None:
        """End the calls of that transfer, or all there are."""
        with self._lock:
            for transfer in [over] if over else self._transfers:
                transfer.set()
            for call in [c for c, of in self._under_way.items() if over in (None, of)]:
                call.cancel()


def begun(method: Any, request: Any, **options: Any) -> Any:
    """A call. Raises Unreachable when this site has closed its channel meanwhile."""
    try:
        return method(request, **options)
    except ValueError as closed:
        raise Unreachable("stopped by this site") from closed
