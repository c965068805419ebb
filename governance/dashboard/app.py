"""The dashboard as an ASGI application: routes, headers, error pages.

Every page is one route; asked for as an event stream it tells of its changes (`governance.dashboard.live`). Who may come
in is the door's.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from http import HTTPStatus
from typing import Protocol, TypeAlias

import anyio
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from commons.errors import GRPC_STATUS, HansaError, Refused, Unreachable
from governance.dashboard.feed import Feed
from governance.dashboard.live import Live, Stream
from governance.dashboard.office import Office
from governance.dashboard.page import STATIC, Hall, Page, Settings
from governance.dashboard.pages import PAGES

log = logging.getLogger("hansa.dashboard")

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
Endpoint: TypeAlias = "Callable[[Request], Awaitable[Response | Stream]]"

_STATUS = {"NOT_FOUND": 404, "PERMISSION_DENIED": 403, "UNAUTHENTICATED": 403, "RESOURCE_EXHAUSTED": 413}
"""gRPC status of a refusal -> HTTP status; any other is 400."""
_MEDIA = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml", ".txt": "text/plain"}


class Door(Protocol):
    """Who may come in. Its middleware sets `request.state.viewer` (and `csrf`) before any page runs."""

    def routes(self) -> Sequence[BaseRoute]: ...

    def middleware(self) -> Sequence[Middleware]: ...


def dashboard(
    office: Office, door: Door, settings: Settings | None = None, pages: Sequence[Page] = PAGES
) -> Starlette:
    """The application. It watches the office from the first request on and lets go of it when it shuts down."""
    feed = Feed(office)
    hall = Hall(office, feed, settings or Settings(), pages)
    live = Live(hall)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with anyio.create_task_group() as live.tasks:
            yield
            live.tasks.cancel_scope.cancel()
        feed.close()

    routes: list[BaseRoute] = [Route("/static/{version}/{name:path}", _static(hall)), *door.routes()]
    for page in hall.pages:
        routes += [*(page.more(hall) if page.more else ()), Route(page.path, _endpoint(hall, live, page))]
    app = Starlette(
        routes=routes,
        middleware=[Middleware(_Headers), *door.middleware()],
        exception_handlers={
            HTTPException: _explained(hall),
            HansaError: _explained(hall),
            500: _explained(hall),
        },
        lifespan=lifespan,
    )
    app.state.hall = hall
    return app


def _endpoint(hall: Hall, live: Live, page: Page) -> Endpoint:
    async def endpoint(request: Request) -> Response | Stream:
        if "text/event-stream" in request.headers.get("accept", ""):
            if not page.is_live(request):
                raise HTTPException(400, "This page does not change by itself.")
            return live.stream(page, request)
        return await run_in_threadpool(hall.show, page, request)

    return endpoint


def _static(hall: Hall) -> Endpoint:
    known = {path.relative_to(STATIC).as_posix(): path for path in STATIC.rglob("*") if path.is_file()}

    async def static(request: Request) -> Response:
        """Only what is in the folder is known by name: no path leads out of it."""
        path = known.get(request.path_params["name"])
        if path is None or request.path_params["version"] != hall.version:
            raise HTTPException(404, "There is no such file.")
        headers = {"cache-control": "public, max-age=31536000, immutable"}
        return FileResponse(path, headers=headers, media_type=_MEDIA.get(path.suffix))

    return static


def _explained(hall: Hall) -> Callable[[Request, Exception], Awaitable[Response]]:
    """A page for whatever went wrong: what happened and who acts next."""

    async def explain(request: Request, error: Exception) -> Response:
        match error:
            case HTTPException():
                status, what = error.status_code, error.detail
                if what == HTTPStatus(status).phrase:
                    what = _PLAIN.get(status, what)
            case Refused():
                status = _STATUS.get(GRPC_STATUS[error.refusal.code], 400)
                what = str(error.refusal)
            case Unreachable():
                status, what = 503, str(error)
            case HansaError():
                status, what = 502, str(error)
            case _:
                log.error("%s %s failed", request.method, request.url.path, exc_info=error)
                status, what = (
                    500,
                    "The dashboard made a mistake; the reason is in its log. Please report it.",
                )
        headers = {**HEADERS, "cache-control": "no-store", **(getattr(error, "headers", None) or {})}
        accepts = request.headers.get("accept", "*/*")
        if "text/html" not in accepts and "*/*" not in accepts:
            return Response(what, status, headers, media_type="text/plain")
        page = hall.render(
            request, "error.html.j2", status=status, code=status, what=what[:1].upper() + what[1:]
        )
        page.headers.update(headers)
        return page

    return explain


_PLAIN = {
    404: "There is no such page.",
    405: "This address cannot be used in that way.",
}


class _Headers:
    """Puts the security headers on every answer, and `no-store` where nothing else was said."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                headers.setdefault("cache-control", "no-store")
            await send(message)

        await self._app(scope, receive, with_headers if scope["type"] == "http" else send)
