"""Whose bill a caller may read: the one rule that the chamber and the dashboard share.

A bill is a partner's budget, lots and charges (`budgets`), and its signed statement (`statements`).
"""

from __future__ import annotations

from typing import Literal

from commons.certificates import Subject
from commons.charter import Charter
from commons.views import BudgetsView

Bill = Literal["budgets", "statements"]


def opened(charter: Charter, what: Bill) -> bool:
    """Whether the charter lets every member read this of the others (`accounting.others_see`)."""
    return charter.accounting.others_see in (what, "statements")


def readable(charter: Charter, what: Bill, partner: str, caller: Subject) -> bool:
    """By the partner itself, the operator, and where the charter opens it by all."""
    return caller.role == "operator" or caller.partner == partner or opened(charter, what)


def own_part(view: BudgetsView, caller: Subject, charter: Charter) -> BudgetsView:
    """What the caller may read of it. A charge concerns the one who pays it and the one whose site it is for."""
    if opened(charter, "budgets") or caller.role == "operator":
        return view
    charges = tuple(c for c in view.charges if caller.partner in (c.payer, c.partner))
    return view.model_copy(
        update={
            "budgets": tuple(b for b in view.budgets if b.partner == caller.partner),
            "charges": charges,
            "charges_total": len(charges),
            "pledges": tuple(p for p in view.pledges if p.partner == caller.partner),
        }
    )
