"""Holds and charges: the values of the two-phase life of a charge, and the refusals about one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from commons.amounts import MICRO
from commons.errors import Code, Refusal
from commons.names import Digest
from commons.records import Kind, Record, fact
from governance.ledger.accounts import Lot, budget_account, consumed_account


@dataclass(frozen=True, kw_only=True, slots=True)
class HoldRequest:
    """Money to be held for one site's work in one round."""

    id: str
    """``hold/<run>/<round>/<site>``, with ``/<attempt>`` for a further attempt at the round; a top-up has the id of
    its base hold and ``/top<n>``."""
    payer: str
    site: str
    run: str
    round: int
    amount_micro: int
    expires_ms: int
    """From then on the hold may no longer be settled, unless the site's usage was taken before."""
    rate_card: Digest
    """Digest of the rate card the amount was computed from."""
    tops: str = ""
    """Base hold that this one adds to."""
    unit: str = MICRO

    @property
    def work(self) -> tuple[str, int, str]:
        """What it pays for: run, round, site."""
        return self.run, self.round, self.site


@dataclass(slots=True)
class Hold:
    """A journal has a third as many holds as records, and the ledger keeps every one: nothing here is kept twice."""

    request: HoldRequest
    partner: str
    """Owner of the site: the one who contributes."""
    at_ms: int = 0
    draws: Sequence[tuple[Lot, int]] = ()
    """While it is held: what it took of each lot."""
    state: str = "held"
    """held | settled | released | expired"""
    charged_micro: int = 0
    usage: str = ""
    """The usage the settle was for."""
    claimed: bool = False
    """The site's usage of this round is in the journal: the hold waits for its settle and does not expire."""
    accepted: bool = True
    """False: what was charged was a rejected update."""
    ended_ms: int = 0
    reversed_micro: int = 0
    suspended_micro: int = 0
    """Disputed now."""
    rounded_pico: int = 0
    owner_credit: int | None = None
    """Of a base hold: contribution booked for it and its top-ups; None: not booked."""
    payer_credit: int | None = None

    @property
    def tail(self) -> str:
        """Its id without the first word: what the ids of all transfers about it end in."""
        return self.request.id.removeprefix("hold/")

    @property
    def settle_id(self) -> str:
        return f"settle/{self.tail}"

    @property
    def correctable_micro(self) -> int:
        """What of the charge is neither reversed nor disputed."""
        return self.charged_micro - self.reversed_micro - self.suspended_micro

    @property
    def contributed(self) -> dict[str, int]:
        """Partner -> credited for it and its top-ups. Empty for a top-up and before the settle."""
        booked = [(self.partner, self.owner_credit), (self.request.payer, self.payer_credit)]
        return {partner: credit for partner, credit in booked if credit is not None}


@dataclass(frozen=True, kw_only=True)
class Charge:
    """What a usage costs, and the measure of it that a bill shows."""

    amount_micro: int
    usage: str
    """Digest of the usage note's text."""
    rounded_pico: int = 0
    """How much of the amount is there because prices are rounded up to a whole micro."""
    device: str = ""
    precision: str = ""
    gflop: int = 0
    device_ms: int = 0
    tokens: int = 0
    energy_j: int | None = None
    percent: int = 100
    """Share of the price that is charged; less for a rejected update."""
    accepted: bool = True
    """The update was taken: its owner contributes."""


def ending(hold: Hold, kind: str, amount_micro: int, now_ms: int, **more: object) -> Record:
    """A settle, release or expire of `hold`; its id is the hold's with the first word changed."""
    request = hold.request
    return fact(
        Kind.TRANSFER,
        now_ms,
        type=kind,
        id=f"{kind}/{hold.tail}",
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


def invalid_amount(what: str, amount: object, least: int = 0) -> Refusal:
    whole = f"whole numbers, {least} to 2^63 - 1"
    return Refusal(Code.AMOUNT_INVALID, f"{what}: {str(amount)[:40]} is no amount it can have; {whole}")


def unknown_hold(hold: str) -> Refusal:
    return Refusal(Code.HOLD_NOT_FOUND, f"there is no {hold}")


def ended(hold: Hold, state: str = "") -> Refusal:
    """Why a hold that has ended cannot end again; `state`: the end it would have by now."""
    code, how = {
        "settled": (Code.HOLD_ALREADY_SETTLED, f"was settled for {hold.charged_micro} micro"),
        "released": (Code.HOLD_ALREADY_RELEASED, "was released"),
        "expired": (Code.HOLD_EXPIRED, f"expired at {hold.request.expires_ms} ms"),
    }[state or hold.state]
    return Refusal(code, f"{hold.request.id} {how}: a hold ends once")
