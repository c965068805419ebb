"""Signing in with an OpenID provider: authorization code with PKCE, state and nonce, and claims that become roles."""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode, urlsplit

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import Scope

from commons.errors import HansaError
from governance.dashboard.door.guard import cookie
from governance.dashboard.door.origin import Origin
from governance.dashboard.door.provider import Provider, TokenRefused
from governance.dashboard.door.sessions import Session
from governance.dashboard.door.settings import Grant
from governance.dashboard.door.ways import Entry, Invitation
from governance.dashboard.viewer import Role, Viewer

BEGIN = "/sign-in/oidc"
BACK = "/sign-in/oidc/back"
"""What is registered with the provider as this client's redirect URI."""
UNDER_WAY_S = 600.0
"""How long somebody may take at the provider."""
UNDER_WAY_MAX = 1000


@dataclass(frozen=True)
class _UnderWay:
    """A sign-in that went to the provider and is not back. Good for one return of one browser."""

    then: str
    began_s: float
    state: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)
    nonce: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)
    verifier: str = field(default_factory=lambda: secrets.token_urlsafe(48), repr=False)

    @property
    def challenge(self) -> str:
        digest = hashlib.sha256(self.verifier.encode()).digest()
        return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


class OidcWay:
    def __init__(
        self, provider: Provider, origin: Origin, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._provider, self._origin, self._clock = provider, origin, clock
        self._under_way: OrderedDict[str, _UnderWay] = OrderedDict()
        """By the browser's cookie, oldest first."""

    def routes(self, entry: Entry) -> Sequence[BaseRoute]:
        async def begin(request: Request) -> Response:
            entry.attempt(request)
            try:
                return await self._begin(request, entry)
            except HansaError as failed:
                raise HTTPException(503, f"Nobody can sign in now: {failed}.") from failed

        async def back(request: Request) -> Response:
            entry.attempt(request)
            try:
                viewer, then = await self._back(request, entry)
            except TokenRefused as refused:
                raise HTTPException(403, f"You are not signed in: {refused}.") from refused
            except HansaError as failed:
                raise HTTPException(503, f"You are not signed in: {failed}.") from failed
            response = entry.admit(request, viewer, then=then)
            response.delete_cookie(self._cookie, secure=self._origin.secure, httponly=True, samesite="lax")
            return response

        return [Route(BEGIN, begin, methods=["GET"]), Route(BACK, back, methods=["GET"])]

    async def invite(self, request: Request) -> Invitation:
        host = urlsplit(self._provider.oidc.issuer).netloc
        return Invitation(
            (f"Your organisation's sign-in at {host} says who you are.",), f"Sign in at {host}", BEGIN, "get"
        )

    async def still(self, scope: Scope, session: Session, entry: Entry) -> str:
        partner = session.viewer.partner
        if partner and not await entry.is_member(partner):
            return f"{partner} is no member by the charter in force"
        return ""

    @property
    def _cookie(self) -> str:
        return self._origin.cookie("sign-in")

    async def _begin(self, request: Request, entry: Entry) -> Response:
        went = _UnderWay(request.query_params.get("then", "/"), self._clock())
        asked = {
            "response_type": "code",
            "client_id": self._provider.oidc.client_id,
            "redirect_uri": entry.url(BACK),
            "scope": " ".join(self._provider.oidc.scopes),
            "state": went.state,
            "nonce": went.nonce,
            "code_challenge": went.challenge,
            "code_challenge_method": "S256",
        }
        url = await self._provider.authorization_url()
        browser = secrets.token_urlsafe(32)
        self._under_way[browser] = went
        if len(self._under_way) > UNDER_WAY_MAX:
            self._under_way.popitem(last=False)
        response = RedirectResponse(f"{url}{'&' if urlsplit(url).query else '?'}{urlencode(asked)}", 303)
        response.set_cookie(
            self._cookie,
            browser,
            max_age=int(UNDER_WAY_S),
            path="/",
            secure=self._origin.secure,
            httponly=True,
            samesite="lax",
        )
        return response

    async def _back(self, request: Request, entry: Entry) -> tuple[Viewer, str]:
        """Who came back from the provider, and where they wanted to go. Raises TokenRefused or HansaError."""
        went = self._under_way.pop(cookie(request, self._cookie), None)
        given = request.query_params
        if went is None or self._clock() - went.began_s > UNDER_WAY_S:
            raise TokenRefused("this browser has begun no sign-in in the last ten minutes; begin again")
        if not hmac.compare_digest(given.get("state", "").encode(), went.state.encode()):
            raise TokenRefused("the provider's answer belongs to another sign-in; begin again")
        if given.get("iss", self._provider.oidc.issuer) != self._provider.oidc.issuer:
            raise TokenRefused("the answer is another provider's")
        if "code" not in given:
            why = given.get("error_description") or given.get("error") or "it sent no code"
            raise TokenRefused(f"the provider says no ({why[:200]})")
        token = await self._provider.exchange(given["code"], went.verifier, entry.url(BACK))
        viewer = viewer_of(
            await self._provider.claims(token, went.nonce),
            self._provider.oidc.grant,
            self._provider.oidc.name_claim,
        )
        if viewer.partner and not await entry.is_member(viewer.partner):
            raise TokenRefused(f"{viewer.partner} is no member by the charter in force")
        return viewer, went.then


def viewer_of(claims: dict[str, Any], grants: Sequence[Grant], name_claim: str = "name") -> Viewer:
    """The one partner and all the roles that the claims are granted. Raises TokenRefused for none, or for two partners."""
    met = [grant for grant in grants if _has(claims.get(grant.claim), grant.value)]
    said = claims.get(name_claim)
    name = said if isinstance(said, str) and said.strip() else str(claims["sub"])
    name = "".join(filter(str.isprintable, name))[:100]
    if not met:
        raise TokenRefused(
            f"nothing here is granted to {name}; whoever keeps the dashboard can add it to the door file"
        )
    partners = {grant.partner for grant in met}
    if len(partners) > 1:
        named = " and ".join(sorted(partner or "the operator" for partner in partners))
        raise TokenRefused(
            f"{name} would act for {named} at once; whoever keeps the dashboard decides in the door file"
        )
    roles = frozenset[Role]().union(*(grant.held for grant in met))
    return Viewer(name, partners.pop(), roles)


def _has(claim: Any, value: str) -> bool:
    return value in claim if isinstance(claim, list) else claim == value
