"""Who looks at a page, and what they may see."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.exceptions import HTTPException
from starlette.requests import Request

from commons.words import Word


class Role(Word):
    READER = "reader"
    VOTER = "voter"
    ACCOUNTANT = "accountant"
    OPERATOR = "operator"


@dataclass(frozen=True)
class Viewer:
    name: str
    partner: str | None
    """None: nobody's, as the operator."""
    roles: frozenset[Role]


def require(request: Request, role: Role, partner: str | None = None) -> Viewer:
    """The viewer, who has the role, for that partner. Raises HTTPException 403."""
    viewer: Viewer = request.state.viewer
    if role in viewer.roles and (
        partner is None or partner == viewer.partner or Role.OPERATOR in viewer.roles
    ):
        return viewer
    whose = f" of {partner}" if partner else ""
    raise HTTPException(403, f"This is for the {role}{whose}; you are signed in as {viewer.name}.")
