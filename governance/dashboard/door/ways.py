"""What a way of signing in is to the door; `link`, `certificate` and `oidc` are the three there are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.types import Scope

from governance.dashboard.door.sessions import Session
from governance.dashboard.viewer import Viewer


@dataclass(frozen=True)
class Invitation:
    """What the sign-in page says: sentences, and what to press."""

    sentences: tuple[str, ...]
    action: str = ""
    """Words on the button; empty: there is none."""
    path: str = ""
    method: str = "post"


class Entry(Protocol):
    """What a way needs of the door once it knows who somebody is."""

    def admit(self, request: Request, viewer: Viewer, *, bound_to: str = "", then: str = "/") -> Response:
        """Begin a session, under a new identifier, and lead to the page that was asked for."""

    def attempt(self, request: Request) -> None:
        """Count an attempt to sign in. Raises HTTPException 429."""

    async def is_member(self, partner: str) -> bool:
        """By the charter in force. Raises HansaError while the coordinator never answered."""

    def url(self, path: str) -> str:
        """Of this dashboard, as browsers reach it."""


class Way(Protocol):
    def routes(self, entry: Entry) -> Sequence[BaseRoute]:
        """Below ``/sign-in/``."""

    async def invite(self, request: Request) -> Invitation: ...

    async def still(self, scope: Scope, session: Session, entry: Entry) -> str:
        """Asked at each request: empty, or why the session is over."""
