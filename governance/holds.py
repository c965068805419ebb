"""Values of the ledger: accounts, holds, budgets; the records that end a hold and the refusals about one.

Amounts are whole micro. `governance.ledger` holds the state and decides.
"""

from __future__ import annotations

from dataclasses import dataclass

from commons.errors import Code, Refusal
from commons.names import Digest
from commons.records import Kind, Record, fact

AMOUNT_LIMIT = 2**63
"""Amounts are 0 <= amount < 2**63 micro."""


@dataclass(frozen=True, kw_only=True)
class HoldRequest:
    """Money to be held for one site's work in one round."""

    id: str
    """``hold/<run>/<round>/<site>``, with ``/<attempt>`` for a further attempt at the round."""
    payer: str
    site: str
    run: str
    round: int
    amount_micro: int
    expires_ms: int
    """From then on the hold may no longer be settled, unless the site's update was admitted before."""
    rate_card: Digest
    """Digest of the rate card the amount was computed from."""


@dataclass
class Account:
    """Four counters in micro; the posted ones never fall."""

    debits_pending: int = 0
    debits_posted: int = 0
    credits_pending: int = 0
    credits_posted: int = 0


@dataclass(frozen=True)
class Hold:
    request: HoldRequest
    partner: str
    """Owner of the site: the one who contributes."""
    state: str = "held"
    """held | settled | released | expired"""
    charged_micro: int = 0
    usage: str = ""
    """The usage the settle was for."""
    admitted: bool = False
    """The site's update of this round is in the journal: the hold waits for its settle and does not expire."""


@dataclass(frozen=True)
class Budget:
    partner: str
    granted_micro: int
    held_micro: int
    spent_micro: int
    available_micro: int
    contributed_micro: int


def budget_account(partner: str) -> str:
    return f"partner/{partner}/budget"


def contributed_account(partner: str) -> str:
    return f"partner/{partner}/contributed"


def consumed_account(run: str) -> str:
    return f"run/{run}/consumed"


def available(account: Account) -> int:
    return account.credits_posted - account.debits_posted - account.debits_pending


def is_amount(value: object) -> bool:
    return type(value) is int and 0 <= value < AMOUNT_LIMIT


def require(true: bool, what: str) -> None:
    if not true:
        raise ValueError(what)


def ending(hold: Hold, kind: str, amount_micro: int, now_ms: int, **more: object) -> Record:
    """A settle, release or expire of `hold`; its id is the hold's with the first word changed."""
    request = hold.request
    return fact(
        Kind.TRANSFER,
        now_ms,
        type=kind,
        id=request.id.replace("hold/", f"{kind}/", 1),
        hold=request.id,
        debit=budget_account(request.payer),
        credit=consumed_account(request.run),
        amount_micro=amount_micro,
        run=request.run,
        round=request.round,
        site=request.site,
        payer=request.payer,
        rate_card=request.rate_card,
        **more,
    )


def difference(stands: HoldRequest, request: HoldRequest) -> Refusal | None:
    for name in HoldRequest.__dataclass_fields__:
        old, new = getattr(stands, name), getattr(request, name)
        if old != new:
            message = f"{request.id} stands already with {name} {old}, not {new}: a new hold needs a new id"
            return Refusal(Code.EXISTS_WITH_DIFFERENT_FIELDS, message, {"field": name})
    return None


def invalid_amount(what: str, amount: object) -> Refusal:
    return Refusal(Code.AMOUNT_INVALID, f"{what}: {amount!r} is no amount; whole micro, 0 to 2^63 - 1")


def unknown_hold(hold: str) -> Refusal:
    return Refusal(Code.HOLD_NOT_FOUND, f"there is no {hold}")


def ended(hold: Hold) -> Refusal:
    code, how = {
        "settled": (Code.HOLD_ALREADY_SETTLED, f"was settled for {hold.charged_micro} micro"),
        "released": (Code.HOLD_ALREADY_RELEASED, "was released"),
        "expired": (Code.HOLD_EXPIRED, f"expired at {hold.request.expires_ms} ms"),
    }[hold.state]
    return Refusal(code, f"{hold.request.id} {how}: a hold ends once")
