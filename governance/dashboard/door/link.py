"""The local link: who can read what the command printed holds the seat. For a listener of this machine only."""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable, Sequence
from urllib.parse import urlencode

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import Scope

from governance.dashboard.door.sessions import Session
from governance.dashboard.door.ways import Entry, Invitation
from governance.dashboard.viewer import Viewer

PATH = "/sign-in/link"


class LinkWay:
    """One token at a time, good for one session. Once it is used the next one is told to `announce`."""

    def __init__(self, viewer: Viewer, announce: Callable[[str], None]) -> None:
        self._viewer, self._announce = viewer, announce
        self._token = secrets.token_urlsafe(32)

    def link(self, entry: Entry, then: str = "/") -> str:
        """The URL that signs in, once."""
        return entry.url(
            f"{PATH}?{urlencode({'token': self._token} | ({'then': then} if then != '/' else {}))}"
        )

    def routes(self, entry: Entry) -> Sequence[BaseRoute]:
        async def sign_in(request: Request) -> Response:
            entry.attempt(request)
            shown = request.query_params.get("token", "")
            if not hmac.compare_digest(shown.encode(), self._token.encode()):
                what = "This link was used before, or is of an earlier start."
                raise HTTPException(403, f"{what} Open the newest one that `hansa dashboard` printed.")
            self._token = secrets.token_urlsafe(32)
            response = entry.admit(request, self._viewer, then=request.query_params.get("then", "/"))
            self._announce(self.link(entry))
            return response

        return [Route(PATH, sign_in, methods=["GET"])]

    async def invite(self, request: Request) -> Invitation:
        return Invitation(
            ("Open the link that was printed where this dashboard was started. Each link works once.",)
        )

    async def still(self, scope: Scope, session: Session, entry: Entry) -> str:
        return ""
