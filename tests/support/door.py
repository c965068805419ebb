"""A dashboard of one page behind a real door, and an office with nothing in it."""

from __future__ import annotations

import asyncio
import re
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Route

from commons.certificates import Subject
from commons.views import View
from governance.dashboard.app import dashboard
from governance.dashboard.door import Door, DoorFile, Origin
from governance.dashboard.door.link import LinkWay
from governance.dashboard.door.serving import config
from governance.dashboard.page import Hall, Page
from governance.dashboard.viewer import Role, Viewer, require

MEMBERS = frozenset({"acme", "beta"})
ACME = Viewer("acme", "acme", frozenset({Role.READER, Role.VOTER, Role.ACCOUNTANT}))
LOOPBACK = Origin("http", "127.0.0.1", 8080)


class Time:
    """Seconds and milliseconds of a clock that a test sets."""

    def __init__(self) -> None:
        self.now_s = 1_000_000.0

    def __call__(self) -> float:
        return self.now_s

    def now_ms(self) -> int:
        return int(self.now_s * 1000)


class NoOffice:
    """Of a member that has nothing to show."""

    consortium, log_key, subject = "demo", "", Subject("member", "acme")

    def read(self, kind: type[View], key: str = "") -> Any:
        raise AssertionError("nothing is read")

    def watch(self, kind: type[View], key: str = "") -> Iterator[Any]:
        return iter(())

    def submit(self, note: bytes) -> Any:
        raise AssertionError("nothing is handed in")


def app_of(door: Door) -> Starlette:
    """``/me`` says who one is, ``/echo`` gives a form back, ``/bill/NAME`` and ``/vote`` need roles, ``/ticks`` never ends."""

    async def me(request: Request) -> Response:
        viewer: Viewer = request.state.viewer
        said = {
            "name": viewer.name,
            "partner": viewer.partner,
            "roles": sorted(viewer.roles),
            "csrf": request.state.csrf,
        }
        return JSONResponse(said)

    async def echo(request: Request) -> Response:
        return Response(await request.body())

    async def bill(request: Request) -> Response:
        require(request, Role.ACCOUNTANT, partner=request.path_params["partner"])
        return Response("12 EUR")

    async def vote(request: Request) -> Response:
        require(request, Role.VOTER)
        return Response("voted")

    async def fail(request: Request) -> Response:
        raise RuntimeError("a secret of the inside")

    async def ticks(request: Request) -> Response:
        async def tick() -> AsyncIterator[bytes]:
            while True:
                yield b"tick\n"
                await asyncio.sleep(0.01)

        return StreamingResponse(tick())

    def more(_: Hall) -> list[BaseRoute]:
        return [
            Route("/me", me),
            Route("/echo", echo, methods=["POST"]),
            Route("/bill/{partner}", bill),
            Route("/vote", vote),
            Route("/fail", fail),
            Route("/ticks", ticks),
        ]

    home = Page("/", "Home", "error.html.j2", lambda hall, request: {"code": 200, "what": "Home"}, more=more)
    return dashboard(NoOffice(), door, pages=(home,))


def by_link(time: Time, origin: Origin = LOOPBACK, viewer: Viewer = ACME) -> tuple[Door, list[str]]:
    """A door for the local link, and the links it gave, oldest first."""
    links: list[str] = []
    way = LinkWay(viewer, links.append)
    door = Door(way, origin, lambda: MEMBERS, time)
    links.append(way.link(door))
    return door, links


def csrf_of(page: str) -> str:
    found = re.search(r'name="csrf" content="([^"]+)"', page)
    assert found, page
    return found.group(1)


@contextmanager
def served(app: Starlette, file: DoorFile, authority: Path) -> Iterator[int]:
    """The port of a real server, as `hansa dashboard` sets it up."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(config(app, file, authority))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        try:
            yield int(listening.getsockname()[1])
        finally:
            server.should_exit = True
            thread.join(10)
