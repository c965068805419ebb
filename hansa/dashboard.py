"""`hansa dashboard`: gives the dashboard a seat's chamber, a door and a port."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import uvicorn
from starlette.middleware import Middleware
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from commons.certificates import Subject
from commons.errors import HansaError
from governance.dashboard.app import dashboard
from governance.dashboard.office import Receipt, V
from governance.dashboard.page import Settings
from governance.dashboard.viewer import Role, Viewer
from hansa.chamber import Chamber
from hansa.hosting import log_to_stderr
from hansa.output import line

CONNECTIONS_MAX = 512
STALLED_MS = 60_000
"""A connection whose other end takes nothing for so long is closed by the system."""


class ChamberOffice:
    """A chamber as the dashboard's office."""

    def __init__(self, chamber: Chamber) -> None:
        self._chamber = chamber

    @property
    def consortium(self) -> str:
        return self._chamber.seat.consortium

    @property
    def subject(self) -> Subject:
        return self._chamber.seat.subject

    @property
    def log_key(self) -> str:
        return self._chamber.seat.log_key

    def read(self, kind: type[V], key: str = "") -> V:
        return self._chamber.read(kind, key)

    def watch(self, kind: type[V], key: str = "") -> Iterator[V]:
        return self._chamber.watch(kind, key)

    def submit(self, note: bytes) -> Receipt:
        return Receipt(*self._chamber.submit_proven(note))


class OpenDoor:
    """Whoever reaches the port is the seat's holder."""

    def __init__(self, subject: Subject) -> None:
        self._viewer = Viewer(str(subject), subject.partner or None, frozenset(Role))

    def routes(self) -> list[BaseRoute]:
        return []

    def middleware(self) -> list[Middleware]:
        return [Middleware(_Enter, viewer=self._viewer)]


class _Enter:
    def __init__(self, app: ASGIApp, viewer: Viewer) -> None:
        self._app, self._viewer = app, viewer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope.setdefault("state", {})["viewer"] = self._viewer
        await self._app(scope, receive, send)


def serve(folder: Path, listen: str, *, mlflow_url: str, ray_url: str, as_json: bool) -> None:
    """Until SIGINT or SIGTERM. Raises HansaError when there is no seat or the port cannot be had."""
    log_to_stderr()
    with Chamber.at(folder) as chamber, _listening(listen) as listening:
        host, port = listening.getsockname()[:2]
        url = f"http://{host}:{port}/"
        app = dashboard(
            ChamberOffice(chamber),
            OpenDoor(chamber.seat.subject),
            Settings(mlflow_url=mlflow_url, ray_url=ray_url),
        )
        config = uvicorn.Config(
            app, log_config=None, access_log=False, server_header=False, limit_concurrency=CONNECTIONS_MAX,
            timeout_graceful_shutdown=1,
        )  # fmt: skip
        if as_json:
            line({"state": "ready", "url": url, "seat": str(folder), "subject": str(chamber.seat.subject)})
        else:
            print(f"The dashboard of {chamber.seat.consortium}, as {chamber.seat.subject}: {url}")
            print("Ctrl-C stops it.", flush=True)
        uvicorn.Server(config).run(sockets=[listening])


def _listening(listen: str) -> socket.socket:
    host, _, port = listen.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65_535:
        raise HansaError(f"{listen!r} is no address to listen on; write HOST:PORT, like 127.0.0.1:8080")
    host = host.strip("[]")
    try:
        found = socket.create_server(
            (host, int(port)), family=socket.AF_INET6 if ":" in host else socket.AF_INET
        )
    except (OSError, OverflowError) as wrong:
        raise HansaError(
            f"cannot listen on {listen} ({wrong}); stop the program that holds the port, or give another --listen"
        ) from wrong
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux; connections inherit it
        found.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, STALLED_MS)
    return found
