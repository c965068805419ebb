"""How the dashboard's server is set up: TLS, bounds on time and size, and the two things uvicorn lacks."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import h11
from uvicorn import Config
from uvicorn.protocols.http.h11_impl import H11Protocol

from governance.dashboard.door.settings import DoorFile

HEAD_S = 10.0
"""How long a request may take to say what it wants."""
HEAD_BYTES_MAX = 16 * 2**10
IDLE_S = 15
"""How long a connection is kept open between two requests."""
CONNECTIONS_MAX = 512
CLOSING_S = 1
"""How long answers under way may take when the dashboard stops."""


class Protocol(H11Protocol):
    """uvicorn's HTTP/1.1, which tells the application who is at the other end and does not wait for ever.

    uvicorn puts nothing of TLS into the ASGI scope, so the peer's certificate is added here, where the connection is
    known, in the form of ASGI's TLS extension. And uvicorn bounds the time between requests but not the time that one
    takes to arrive: a thousand connections that send a byte a minute would keep everybody else out.
    """

    _head_task: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        peer = transport.get_extra_info("ssl_object")
        shown = peer.getpeercert(binary_form=True) if peer is not None else None
        if shown:
            self.app = _told(self.app, ssl.DER_cert_to_PEM_cert(shown))
        self._await_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def _await_head(self) -> None:
        """From the first byte (or the connection's beginning) until the whole head is here."""
        if self.conn.their_state is not h11.IDLE:
            self._stop_waiting()
        elif self._head_task is None:
            self._head_task = self.loop.call_later(HEAD_S, self.transport.abort)

    def _stop_waiting(self) -> None:
        if self._head_task is not None:
            self._head_task.cancel()
            self._head_task = None


def _told(app: Any, certificate: str) -> Callable[..., Any]:
    async def told(scope: dict[str, Any], receive: Any, send: Any) -> None:
        extensions = {**scope.get("extensions", {}), "tls": {"client_cert_chain": [certificate]}}
        await app({**scope, "extensions": extensions}, receive, send)

    return told


def config(app: Any, door: DoorFile, authority: Path) -> Config:
    """For `uvicorn.Server` on a socket that listens already. `authority`: PEM file of the consortium's, which issues the certificates of seats."""
    tls: dict[str, Any] = {}
    if door.tls is not None:
        tls = {"ssl_certfile": door.tls.certificate, "ssl_keyfile": door.tls.key}
    if door.way == "certificate":
        # Optional, so that whoever has none is told so by a page and not by a broken connection.
        tls |= {"ssl_ca_certs": str(authority), "ssl_cert_reqs": ssl.CERT_OPTIONAL}
    proxied = door.tls is None and (door.published or "").startswith("https://")
    return Config(
        app,
        http=cast(Any, Protocol),
        ws="none",
        lifespan="on",
        server_header=False,
        proxy_headers=proxied,
        timeout_keep_alive=IDLE_S,
        timeout_graceful_shutdown=CLOSING_S,
        limit_concurrency=CONNECTIONS_MAX,
        h11_max_incomplete_event_size=HEAD_BYTES_MAX,
        log_config=None,
        access_log=False,
        **tls,
    )
