"""Who looks at the dashboard, and what they may see and do there.

The door (`governance.dashboard.door`) finds out who it is and puts a `Viewer` into ``request.state.viewer`` before any
page runs. A page says what it needs with `require` or `require_bill`, and with nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass

from starlette.exceptions import HTTPException
from starlette.requests import Request

from commons.certificates import Subject
from commons.charter import Charter
from commons.views import BudgetsView
from commons.words import Word
from governance.bills import Bill, opened, own_part


class Role(Word):
    """What somebody may do for their organisation; `operator` is for the one who runs the coordinator."""

    READER = "reader"
    """Sees what every member sees."""
    VOTER = "voter"
    """Prepares proposals and ballots. They count by their signature, never by the sign-in."""
    ACCOUNTANT = "accountant"
    """Sees the organisation's bill: charges, budget lots, statements."""
    OPERATOR = "operator"
    """Sees every bill, as the coordinator's operator does on the wire."""


@dataclass(frozen=True)
class Viewer:
    name: str
    """Whom the pages greet."""
    partner: str | None
    """The member they belong to; None for the operator, who is no member."""
    roles: frozenset[Role]

    @classmethod
    def of(cls, subject: Subject) -> Viewer | None:
        """Whom a certificate lets in: a member with all its roles, the operator, a site to look. None: nobody."""
        match subject.role:
            case "member":
                roles = {Role.READER, Role.VOTER, Role.ACCOUNTANT}
            case "operator":
                roles = {Role.READER, Role.OPERATOR}
            case "site":
                roles = {Role.READER}
            case "coordinator":
                return None
        return cls(subject.site or subject.partner or subject.role, subject.partner or None, frozenset(roles))

    def may(self, role: Role, partner: str | None = None) -> bool:
        """Whether they have the role, for the partner where one is named. The operator sees every bill."""
        if role is Role.ACCOUNTANT and Role.OPERATOR in self.roles:
            return True
        return role in self.roles and partner in (None, self.partner)

    def may_see_bill(self, partner: str, what: Bill, charter: Charter) -> bool:
        """Its accountants and the operator; every reader, where the charter opens it."""
        return self.may(Role.ACCOUNTANT, partner) or (opened(charter, what) and Role.READER in self.roles)

    def part_of(self, view: BudgetsView, charter: Charter | None) -> BudgetsView:
        """What they may see of the budgets; nobody's before the charter is known."""
        partner = self.partner if Role.ACCOUNTANT in self.roles and self.partner else ""
        return view if charter and self.may_see_bill("", "budgets", charter) else own_part(view, partner)


def require(request: Request, role: Role, *, partner: str | None = None) -> Viewer:
    """The viewer, who has the role (for the partner). Raises HTTPException 403 with a sentence for them."""
    viewer: Viewer = request.state.viewer
    if viewer.may(role, partner):
        return viewer
    whose = f" of {partner}" if partner else ""
    raise _refused(viewer, f"This is for the {role.value}s{whose}.")


def require_bill(request: Request, partner: str, what: Bill, charter: Charter) -> Viewer:
    """The viewer, who may see this of the partner's bill. Raises HTTPException 403."""
    viewer: Viewer = request.state.viewer
    if viewer.may_see_bill(partner, what, charter):
        return viewer
    raise _refused(
        viewer, f"The {what} of {partner} are for its accountants; the charter does not open them."
    )


def _refused(viewer: Viewer, why: str) -> HTTPException:
    have = ", ".join(sorted(role.value for role in viewer.roles)) or "no role"
    of = f" of {viewer.partner}" if viewer.partner else ""
    act = "Whoever keeps this dashboard decides who has which role."
    return HTTPException(403, f"{why} You are signed in as {viewer.name}{of} ({have}). {act}")
