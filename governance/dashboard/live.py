"""Open pages that change by themselves: server-sent events with the parts of a page that are different now.

Viewers of the same page with the same rights share one `_Channel`: a change is rendered once for all of them. Every
stream has a bounded queue; who does not read is let go, and a stream ends after a while, so that the door sees the
viewer's rights again when the browser comes back.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from typing import TypeAlias

import anyio
from anyio.abc import TaskGroup
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from commons.errors import HansaError
from governance.dashboard.page import Hall, Page

log = logging.getLogger("hansa.dashboard")

QUEUE_MAX = 16
"""Events that wait for one browser."""
SEND_S = 20.0
"""A browser that takes nothing for so long is gone."""
QUIET_S = 15.0
"""A comment is sent after so long without an event, so that a lost connection is noticed."""
STREAM_S = 900.0
LOOK_AGAIN_S = 30.0
"""A page is made anew after so long without a change: votes close and certificates expire by the clock alone."""
RENDER_PAUSE_S = 0.2
"""Between two renderings of one page; what happens meanwhile is shown together."""

Queue: TypeAlias = "MemoryObjectSendStream[bytes]"


class Live:
    """All streams of one dashboard. Belongs to one event loop; `run` it while the application runs."""

    def __init__(self, hall: Hall) -> None:
        self._hall = hall
        self._channels: dict[object, _Channel] = {}
        self._streams = 0
        self.tasks: TaskGroup | None = None

    def stream(self, page: Page, request: Request) -> Stream:
        """A response that goes on. Raises HTTPException 503 when too many are open."""
        if self._streams >= self._hall.settings.streams_max:
            raise HTTPException(503, "Too many pages are open and live; reload this one to see what is new.")
        return Stream(self, page, request)

    def join(self, page: Page, request: Request) -> tuple[_Channel, MemoryObjectReceiveStream[bytes], Queue]:
        self._streams += 1
        key = (request.url.path, request.url.query, request.state.viewer)
        channel = self._channels.get(key)
        if channel is None:
            assert self.tasks is not None, "the application runs"
            channel = self._channels[key] = _Channel(
                self._hall, page, request, lambda: self._channels.pop(key, None)
            )
            self.tasks.start_soon(channel.run)
        send, receive = anyio.create_memory_object_stream[bytes](QUEUE_MAX)
        channel.join(send)
        return channel, receive, send

    def leave(self, channel: _Channel, queue: Queue) -> None:
        self._streams -= 1
        channel.leave(queue)


class _Channel:
    """One page as one kind of viewer sees it."""

    def __init__(self, hall: Hall, page: Page, request: Request, ended: Callable[[], object]) -> None:
        self._hall, self._page, self._request, self._ended = hall, page, request, ended
        self._queues: set[Queue] = set()
        self._stale = anyio.Event()
        self._stale.set()
        self._shown: dict[str, str] = {}
        self._scope = anyio.CancelScope()

    def join(self, queue: Queue) -> None:
        self._queues.add(queue)
        if self._shown:
            queue.send_nowait(_event(self._shown))

    def leave(self, queue: Queue) -> None:
        self._queues.discard(queue)
        queue.close()
        if not self._queues:
            self._ended()
            self._scope.cancel()

    async def run(self) -> None:
        """Render whenever a view changes, until nobody looks any more."""
        loop = asyncio.get_running_loop()

        def ring() -> None:
            loop.call_soon_threadsafe(self._ring)

        feed = self._hall.feed
        ends = [await anyio.to_thread.run_sync(feed.listen, view, ring) for view in self._page.views]
        try:
            with self._scope:
                while True:
                    with anyio.move_on_after(LOOK_AGAIN_S):
                        await self._stale.wait()
                    self._stale = anyio.Event()
                    await self._render()
                    await anyio.sleep(RENDER_PAUSE_S)
        finally:
            for end in ends:
                end()

    def _ring(self) -> None:
        self._stale.set()

    async def _render(self) -> None:
        try:
            parts = await anyio.to_thread.run_sync(self._hall.parts, self._page, self._request)
        except (HansaError, HTTPException):
            return  # the page itself says it when it is loaded again
        except Exception:  # a mistake in one page must not end the streams of the others
            log.exception("the parts of %s cannot be made", self._request.url.path)
            return
        changed = {name: html for name, html in parts.items() if self._shown.get(name) != html}
        self._shown = parts
        if not changed:
            return
        event = _event(changed)
        for queue in list(self._queues):
            try:
                queue.send_nowait(event)
            except anyio.WouldBlock:
                queue.close()  # it does not read
                self._queues.discard(queue)


class Stream:
    """The ASGI response of one open page."""

    def __init__(self, live: Live, page: Page, request: Request) -> None:
        self._live, self._page, self._request = live, page, request

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [
            (b"content-type", b"text/event-stream"),
            (b"cache-control", b"no-store"),
            (b"x-accel-buffering", b"no"),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        channel, events, queue = self._live.join(self._page, self._request)
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(_until_gone, receive, group.cancel_scope)
                with anyio.move_on_after(STREAM_S):
                    await _relay(events, send)
                group.cancel_scope.cancel()
        except anyio.get_cancelled_exc_class():
            return  # the server stops, or the session is over: there is nobody to say goodbye to
        finally:
            events.close()
            self._live.leave(channel, queue)
        with anyio.move_on_after(SEND_S):
            await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _relay(events: MemoryObjectReceiveStream[bytes], send: Send) -> None:
    """Until the queue is closed or the browser takes nothing any more."""
    while True:
        event = b": still here\n\n"
        with anyio.move_on_after(QUIET_S):
            try:
                event = await events.receive()
            except (anyio.EndOfStream, anyio.ClosedResourceError):
                return
        with anyio.move_on_after(SEND_S) as sending:
            await send({"type": "http.response.body", "body": event, "more_body": True})
        if sending.cancelled_caught:
            return


async def _until_gone(receive: Receive, scope: anyio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


def _event(parts: dict[str, str]) -> bytes:
    return b"event: parts\ndata: " + json.dumps(parts).encode() + b"\n\n"
