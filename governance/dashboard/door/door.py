"""The door: sessions, and the one way of signing in that the dashboard was started with."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from urllib.parse import urlsplit

from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from commons.errors import HansaError
from governance.dashboard.door.guard import SIGN_IN, SIGN_OUT, Guard, cookie, slow_down
from governance.dashboard.door.limits import SIGN_INS, SUBMITS, Limiter, Rate, address_of
from governance.dashboard.door.origin import Origin
from governance.dashboard.door.sessions import Sessions
from governance.dashboard.door.ways import Way
from governance.dashboard.viewer import Viewer

log = logging.getLogger("hansa.dashboard")

MEMBERS_S = 5.0
"""For so long a charter that was read is believed to be in force."""
_THEN_CHARS_MAX = 500

Members = Callable[[], frozenset[str]]
"""Names of the members of the charter in force. Runs in a thread; raises HansaError."""


class Door:
    """What `dashboard` takes. `clock` gives seconds and never goes back."""

    def __init__(
        self, way: Way, origin: Origin, members: Members, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.way, self.origin = way, origin
        self.sessions = Sessions(clock)
        self.sign_ins = Limiter(SIGN_INS, clock)
        self.submits = Limiter(SUBMITS, clock)
        self.submits_by_address = Limiter(Rate(4 * SUBMITS.burst, 4 * SUBMITS.per_minute), clock)
        self._members, self._clock = members, clock
        self._known: tuple[float, frozenset[str]] | None = None

    def routes(self) -> Sequence[BaseRoute]:
        return [
            Route(SIGN_IN, self._sign_in),
            *self.way.routes(self),
            Route(SIGN_OUT, self._sign_out, methods=["POST"]),
        ]

    def middleware(self) -> Sequence[Middleware]:
        return [Middleware(Guard, door=self)]

    def url(self, path: str) -> str:
        return f"{self.origin}{path}"

    def admit(self, request: Request, viewer: Viewer, *, bound_to: str = "", then: str = "/") -> Response:
        """Whatever session the browser came with ends, so that nobody goes on in one that was planted there."""
        self._end(request)
        log.info("%r of %s signed in from %s", viewer.name, viewer.partner or "no member", _address(request))
        response = RedirectResponse(within(then), 303)
        response.set_cookie(
            self.origin.cookie("session"),
            self.sessions.begin(viewer, bound_to),
            path="/",
            secure=self.origin.secure,
            httponly=True,
            samesite="lax",
        )
        return response

    async def is_member(self, partner: str) -> bool:
        now_s = self._clock()
        if self._known is None or now_s - self._known[0] > MEMBERS_S:
            try:
                self._known = (now_s, await run_in_threadpool(self._members))
            except HansaError:
                if self._known is None:
                    raise
        return partner in self._known[1]

    def attempt(self, request: Request) -> None:
        """Count an attempt to sign in. Raises HTTPException 429."""
        if (wait_s := self.sign_ins.wait_s(_address(request))) > 0:
            log.warning("too many attempts to sign in from %s", _address(request))
            raise slow_down(wait_s)

    async def _sign_in(self, request: Request) -> Response:
        if request.state.viewer is not None:
            return RedirectResponse("/", 303)
        invitation = await self.way.invite(request)
        then = within(request.query_params.get("then", "/"))
        page: Response = request.app.state.hall.render(
            request, "sign-in.html.j2", invitation=invitation, then=then, out="out" in request.query_params
        )
        return page

    async def _sign_out(self, request: Request) -> Response:
        self._end(request)
        response = RedirectResponse(f"{SIGN_IN}?out=1", 303)
        response.delete_cookie(
            self.origin.cookie("session"), secure=self.origin.secure, httponly=True, samesite="lax"
        )
        return response

    def _end(self, request: Request) -> None:
        session = self.sessions.find(cookie(request, self.origin.cookie("session")))
        if session is not None:
            self.sessions.end(session)


def _address(request: Request) -> str:
    return address_of(request.scope.get("client"))


def within(then: str) -> str:
    """The path if it is one of this dashboard, else its first page: nobody is led elsewhere by a link to us."""
    split = urlsplit(then)
    plain = then.isprintable() and then.isascii() and "\\" not in then and len(then) <= _THEN_CHARS_MAX
    if split.scheme or split.netloc or not then.startswith("/") or then.startswith("//") or not plain:
        return "/"
    return "/" if split.path.startswith(("/sign-", "/static/")) else then
