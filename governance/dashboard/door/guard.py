"""What stands before every page: is the request for us, is it bounded, who sends it, and did they mean to.

Pure ASGI, so that nothing of a body is in memory before its size is known, and so that an answer that goes on for hours
is ended with its session.
"""

from __future__ import annotations

import hmac
import time
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, quote

import anyio
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from commons.errors import HansaError
from governance.dashboard.door.limits import (
    BODY_BYTES_MAX,
    BODY_S,
    FORM_BYTES_MAX,
    FORM_S,
    address_of,
    bounded,
    replay,
    too_large,
    whole,
)
from governance.dashboard.door.sessions import Session

if TYPE_CHECKING:
    from governance.dashboard.door.door import Door

METHODS = frozenset({"GET", "HEAD", "POST"})
SIGN_IN, SIGN_OUT = "/sign-in", "/sign-out"
_OPEN = (f"{SIGN_IN}/", "/static/")
"""What nobody has to be signed in for."""
ASK_AGAIN_S = 5.0
"""How long an answer under way goes on before it is asked again whether its session holds."""
_FIELDS_MAX = 200


class Guard:
    def __init__(self, app: ASGIApp, door: Door) -> None:
        self._app, self._door = app, door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        request = Request(scope)
        request.state.viewer, request.state.csrf, request.state.leave = None, "", ""
        try:
            passed = await self._pass(request, scope, receive)
        except HTTPException as refused:
            response = await _explained(request, refused)
            await response(scope, receive, send)
            return
        if isinstance(passed, Response):
            await passed(scope, receive, send)
            return
        session, receive = passed
        if session is None:
            await self._app(scope, receive, send)
            return
        with anyio.CancelScope() as answering:
            await self._app(scope, receive, self._while_it_holds(scope, session, send, answering))

    async def _pass(
        self, request: Request, scope: Scope, receive: Receive
    ) -> Response | tuple[Session | None, Receive]:
        """The session and how to read the body; a response where there is nothing to show. Raises HTTPException."""
        self._check_address(request)
        if request.method == "POST":
            self._check_source(request)
        session = await self._session(request)
        if request.method == "POST":
            self._check_rate(request, session)
            receive = await _checked_body(request, session, receive)
        open_to_all = request.url.path == SIGN_IN or request.url.path.startswith(_OPEN)
        if session is None and not open_to_all:
            return self._stranger(request)
        if session is not None:
            request.state.viewer, request.state.csrf = session.viewer, session.csrf
            request.state.leave = SIGN_OUT
        return session, receive

    def _check_address(self, request: Request) -> None:
        if request.method not in METHODS:
            raise HTTPException(405, "The dashboard knows GET and POST only.", {"allow": "GET, HEAD, POST"})
        host = request.headers.get("host", "")
        if not self._door.origin.answers_to(host):
            raise HTTPException(421, f"The dashboard is at {self._door.origin} and answers to no other name.")

    def _check_source(self, request: Request) -> None:
        """That a browser sends it from a page of ours. A program that is no browser says neither."""
        origin, site = request.headers.get("origin"), request.headers.get("sec-fetch-site")
        own = self._door.origin.is_own(origin, request.headers.get("host", "")) if origin else True
        if not own or site not in (None, "same-origin"):
            raise HTTPException(
                403,
                "This was sent from another site's page. Nothing was done; use the dashboard's own pages.",
            )
        if origin is None and site is None and request.url.path.startswith(SIGN_IN):
            raise HTTPException(
                403, "Nobody can tell which page this was sent from. Sign in with a browser of today."
            )

    async def _session(self, request: Request) -> Session | None:
        by_itself = "text/event-stream" in request.headers.get("accept", "")
        held = cookie(request, self._door.origin.cookie("session"))
        session = self._door.sessions.find(held, used=not by_itself)
        if session is None:
            return None
        try:
            over = await self._door.way.still(request.scope, session, self._door)
        except HansaError as failed:
            raise HTTPException(503, str(failed)) from failed
        if over:
            self._door.sessions.end(session)
            raise HTTPException(401, f"Your session is over: {over}.")
        return session

    def _check_rate(self, request: Request, session: Session | None) -> None:
        client = address_of(request.scope.get("client"))
        waits = [self._door.submits_by_address.wait_s(client)]
        if session is not None:
            waits.append(self._door.submits.wait_s(session.key))
        if (wait_s := max(waits)) > 0:
            raise slow_down(wait_s)

    def _stranger(self, request: Request) -> Response:
        """To the sign-in page, and from there back to where they wanted."""
        if request.method == "POST" or "text/html" not in request.headers.get("accept", ""):
            raise HTTPException(401, f"Sign in first, at {self._door.url(SIGN_IN)}.")
        wanted = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        return RedirectResponse(f"{SIGN_IN}?then={quote(wanted)}", 303, {"cache-control": "no-store"})

    def _while_it_holds(
        self, scope: Scope, session: Session, send: Send, answering: anyio.CancelScope
    ) -> Send:
        asked_s = time.monotonic()

        async def checked(message: Message) -> None:
            nonlocal asked_s
            now_s = time.monotonic()
            if message.get("more_body") and now_s - asked_s > ASK_AGAIN_S:
                asked_s = now_s
                if await self._is_over(scope, session):
                    await send({"type": "http.response.body", "body": b"", "more_body": False})
                    answering.cancel()
                    return
            await send(message)

        return checked

    async def _is_over(self, scope: Scope, session: Session) -> bool:
        door = self._door
        try:
            over = not door.sessions.holds(session) or bool(await door.way.still(scope, session, door))
        except HansaError:  # nobody can tell: the next request says why
            return True
        if over:
            door.sessions.end(session)
        return over


def slow_down(wait_s: float) -> HTTPException:
    seconds = int(wait_s) + 1
    return HTTPException(429, f"Too many at once; try again in {seconds} s.", {"retry-after": str(seconds)})


def cookie(request: Request, name: str) -> str:
    """The value of the first cookie of that name; empty: there is none. One that comes twice is nobody's."""
    values = []
    for header in request.headers.getlist("cookie"):
        for part in header.split(";"):
            key, _, value = part.strip().partition("=")
            if key == name:
                values.append(value)
    return values[0] if len(values) == 1 else ""


async def _checked_body(request: Request, session: Session | None, receive: Receive) -> Receive:
    """How the page reads the body. Raises HTTPException 403 unless the page that sent it was made for this session."""
    shown = request.headers.get("x-csrf", "")
    most, time_s = (BODY_BYTES_MAX, BODY_S) if shown else (FORM_BYTES_MAX, FORM_S)
    declared = request.headers.get("content-length", "0")
    if not declared.isdecimal() or int(declared) > most:
        raise too_large(most)
    receive = bounded(receive, most, time_s)
    if session is None:
        return receive
    if not shown:
        body = await whole(receive)
        shown, receive = _token_in(request, body), replay(body, receive)
    if not hmac.compare_digest(shown.encode(), session.csrf.encode()):
        raise HTTPException(
            403, "The page this came from is older than your session. Nothing was done; load it again."
        )
    return receive


def _token_in(request: Request, form: bytes) -> str:
    """Empty: there is none. Raises HTTPException 400 for a form that cannot be read."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        return ""
    try:
        fields = parse_qsl(form.decode(), keep_blank_values=True, max_num_fields=_FIELDS_MAX)
    except ValueError:
        raise HTTPException(400, "The form cannot be read.") from None
    return next((value for name, value in fields if name == "csrf"), "")


async def _explained(request: Request, refused: HTTPException) -> Response:
    """By the application's own handler, which stands further in."""
    explain = request.app.exception_handlers.get(HTTPException)
    if explain is None:
        return PlainTextResponse(refused.detail, refused.status_code, refused.headers)
    response: Response = await explain(request, refused)
    return response
