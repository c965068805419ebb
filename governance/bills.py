"""Whose bill one may read: the one rule that the chamber and the dashboard share.

A bill is a partner's budget, lots and charges (`budgets`), and its signed statement (`statements`). The charter says what
members see of each other's (`accounting.others_see`). What a site computed is no secret of its bill: every round says it.
"""

from __future__ import annotations

from typing import Literal

from commons.certificates import Subject
from commons.charter import Charter
from commons.records import Kind, Record
from commons.views import BudgetsView

Bill = Literal["budgets", "statements"]


def opened(charter: Charter, what: Bill) -> bool:
    """Whether the charter lets every member read this of the others."""
    return charter.accounting.others_see in (what, "statements")


def readable(charter: Charter, what: Bill, partner: str, caller: Subject) -> bool:
    """By the partner itself, the operator, and where the charter opens it by all."""
    return caller.role == "operator" or caller.partner == partner or opened(charter, what)


def own_part(view: BudgetsView, partner: str) -> BudgetsView:
    """What concerns the partner; empty: nobody. A charge concerns who pays it and whose site it is for."""
    charges = tuple(c for c in view.charges if partner in (c.payer, c.partner))
    return view.model_copy(
        update={
            "budgets": tuple(b for b in view.budgets if b.partner == partner),
            "charges": charges,
            "charges_total": len(charges),
            "pledges": tuple(p for p in view.pledges if p.partner == partner),
        }
    )


def own_record(record: Record, partner: str) -> bool:
    """Whether a record concerns the partner, or moves no money at all."""
    if record.kind not in (Kind.TRANSFER, Kind.REFUSED):
        return True
    facts = record.facts
    accounts = [str(facts.get(side, "")).split("/") for side in ("debit", "credit")]
    return partner in (
        facts.get("payer"),
        facts.get("partner"),
        *(a[1] for a in accounts if a[0] == "partner"),
    )
