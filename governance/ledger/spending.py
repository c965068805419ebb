"""The life of a charge: hold, then settle, release or expire. Decisions over the books; nothing changes here.

Every function answers the same again when asked twice: what stands already adds nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from commons.amounts import DEVICE_MS, MICRO, PICO, PICO_PER_MICRO, is_amount
from commons.errors import Code, Refusal
from commons.records import Kind, Record, fact
from governance.ledger.accounts import (
    budget_account,
    consumed_account,
    contributed_account,
    rounding_account,
)
from governance.ledger.books import Ledger
from governance.ledger.holds import (
    Charge,
    Hold,
    HoldRequest,
    difference,
    ended,
    ending,
    invalid_amount,
    unknown_hold,
)
from governance.ledger.transfers import breakage_id

HOLDS_MAX = 1024
"""Requests of one linked batch: as many as a charter may have sites."""


def decide_hold(ledger: Ledger, requests: Sequence[HoldRequest], now_ms: int) -> list[Record] | Refusal:
    """All of the holds or none. Requests that stand already, field for field, add nothing.

    Refuses, first cause first: exists_with_different_fields, id_already_failed, amount_invalid, unit_mismatch or
    rate_unknown (a unit that is not the budget's), hold_expired, account_not_found, account_closed,
    rate_card_unknown, linked_failed (a top-up whose base hold has ended), exceeds_budget with
    ``details["lacking"] = {payer: {"needs": micro, "available": micro}}`` for every payer who lacks.
    """
    assert len(requests) <= HOLDS_MAX, f"{len(requests)} holds in one batch"
    fresh: dict[str, HoldRequest] = {}
    for request in requests:
        known = ledger.hold(request.id)
        stands = known.request if known else fresh.get(request.id)
        refusal = difference(stands, request) if stands else _refuse_hold(ledger, request, fresh, now_ms)
        if refusal is not None:
            return refusal
        if stands is None:
            fresh[request.id] = request
    lacking = _lacking(ledger, fresh, now_ms)
    if lacking:
        whose = "; ".join(
            f"{payer} needs {need['needs']} micro and has {need['available']}"
            for payer, need in lacking.items()
        )
        message = f"budget exceeded: {whose}; the consortium grants more by an executed proposal"
        return Refusal(Code.EXCEEDS_BUDGET, message, {"lacking": lacking})
    return [_hold_record(ledger, request, now_ms) for request in fresh.values()]


def decide_failed(ledger: Ledger, ids: Sequence[str], refusal: Refusal, now_ms: int) -> list[Record]:
    """Make ids fail for ever, so that a retried refusal can never succeed later. Known ids are left as they are."""
    return [
        fact(Kind.REFUSED, now_ms, id=i, code=refusal.code, message=refusal.message)
        for i in dict.fromkeys(ids)
        if ledger.hold(i) is None and i not in ledger.failed and i not in ledger.booked
    ]


def decide_settle(ledger: Ledger, hold: str, charge: Charge, now_ms: int) -> list[Record] | Refusal:
    """Charge a hold and its top-ups, in that order, and return the remainder. Asked twice: nothing.

    For accepted work the site's owner is credited the contribution, or shares it with the payer by the charter's
    rule. Refuses: hold_not_found, amount_invalid, hold_already_settled (for another amount or usage),
    hold_already_released, hold_expired, exceeds_hold.
    """
    base = ledger.hold(hold)
    if base is None:
        return unknown_hold(hold)
    assert not base.request.tops, f"{hold} is a top-up: it ends with its base hold"
    assert 0 <= charge.rounded_pico < PICO_PER_MICRO, (
        f"{charge.rounded_pico} pico are no rounding of one charge"
    )
    if not is_amount(charge.amount_micro):
        return invalid_amount(hold, charge.amount_micro)
    family = [base, *ledger.topups(hold)]
    if base.state == "settled" and base.usage == charge.usage:
        charged = sum(h.charged_micro for h in family)
        return [] if charged == charge.amount_micro else ended(base)
    if base.state != "held":
        return ended(base)
    if not base.claimed and now_ms >= base.request.expires_ms:
        return ended(base, "expired")
    held = [h for h in family if h.state == "held"]
    most = sum(h.request.amount_micro for h in held)
    if charge.amount_micro > most:
        message = f"{hold} and its top-ups are for {most} micro, the charge would be {charge.amount_micro}"
        return Refusal(Code.EXCEEDS_HOLD, message)
    return [
        *_contributions(ledger, base, charge, now_ms),
        *_settles(held, charge, now_ms),
        *_rounding(base, charge, now_ms),
    ]


def decide_release(ledger: Ledger, hold: str, why: str, now_ms: int) -> list[Record] | Refusal:
    """Return a whole hold and its top-ups. Asked twice: nothing.

    Refuses: hold_not_found, hold_already_settled, hold_expired.
    """
    found = ledger.hold(hold)
    if found is None:
        return unknown_hold(hold)
    if found.state not in ("held", "released"):
        return ended(found)
    family = [found, *ledger.topups(hold)]
    return [
        ending(h, "release", h.request.amount_micro, now_ms, why=why) for h in family if h.state == "held"
    ]


def decide_expire(ledger: Ledger, now_ms: int) -> list[Record]:
    """End every open hold whose time has come and whose site delivered nothing, then book what expired grants lost."""
    due = [h for h in ledger.open.values() if h.request.expires_ms <= now_ms and not h.claimed]
    due.sort(key=lambda h: (h.request.expires_ms, h.request.id))
    expired = [ending(h, "expire", h.request.amount_micro, now_ms) for h in due]
    returned: dict[str, int] = {}
    for hold in due:
        for lot, taken in hold.draws:
            returned[lot.id] = returned.get(lot.id, 0) + taken
    return [*expired, *_breakage(ledger, returned, now_ms)]


def next_expiry_ms(ledger: Ledger) -> int | None:
    """When `decide_expire` next has something to do, if nothing else happens; None: never."""
    holds = [h.request.expires_ms for h in ledger.open.values() if not h.claimed]
    lots = [
        lot.expires_ms
        for purse in ledger.purses.values()
        for lot in purse.lots
        if lot.expires_ms and lot.free
    ]
    return min(holds + lots, default=None)


def _refuse_hold(
    ledger: Ledger, request: HoldRequest, fresh: Mapping[str, HoldRequest], now_ms: int
) -> Refusal | None:
    name = request.id
    if name in ledger.failed:
        message = f"{name} failed before ({ledger.failed[name]}): a new attempt needs a new id"
        return Refusal(Code.ID_ALREADY_FAILED, message)
    if not is_amount(request.amount_micro) or (request.amount_micro == 0 and request.tops):
        return invalid_amount(name, request.amount_micro, 1 if request.tops else 0)
    if request.unit != MICRO:
        return _wrong_unit(ledger, request)
    if request.expires_ms <= now_ms:
        return Refusal(Code.HOLD_EXPIRED, f"{name} would expire before it is made")
    account = ledger.accounts.get(budget_account(request.payer))
    if account is None:
        message = f"{name}: payer {request.payer} has no budget account"
        return Refusal(Code.ACCOUNT_NOT_FOUND, message)
    if account.closed:
        message = f"{name}: payer {request.payer} has left the consortium, its budget account is closed"
        return Refusal(Code.ACCOUNT_CLOSED, message)
    if request.site not in ledger.owners:
        return Refusal(Code.ACCOUNT_NOT_FOUND, f"{name}: the charter names no site {request.site}")
    if request.rate_card not in ledger.cards:
        message = f"{name} is priced by rate card {request.rate_card}, which never was in force here"
        return Refusal(Code.RATE_CARD_UNKNOWN, message)
    return _refuse_topup(ledger, request, fresh) if request.tops else None


def _refuse_topup(ledger: Ledger, request: HoldRequest, fresh: Mapping[str, HoldRequest]) -> Refusal | None:
    found = ledger.hold(request.tops)
    base = found.request if found else fresh.get(request.tops)
    if base is None or (found and (found.state != "held" or found.claimed)):
        message = f"{request.id} tops up {request.tops}, which is not open: it fails with it"
        return Refusal(Code.LINKED_FAILED, message)
    if base.tops:
        message = f"{request.id} tops up {request.tops}, which is a top-up itself: it tops up {base.tops}"
        return Refusal(Code.LINKED_FAILED, message)
    for what in ("payer", "run", "round", "site", "rate_card"):
        own, its = getattr(request, what), getattr(base, what)
        if own != its:
            message = (
                f"{request.id} tops up {request.tops}, which has {what} {its}, not {own}: it fails with it"
            )
            return Refusal(Code.LINKED_FAILED, message)
    return None


def _wrong_unit(ledger: Ledger, request: HoldRequest) -> Refusal:
    device = request.unit.removeprefix(DEVICE_MS)
    if not any(rate.device == device for card in ledger.cards.values() for rate in card.rates):
        message = f"{request.id} is in {request.unit}, for which no rate card ever had a rate"
        return Refusal(Code.RATE_UNKNOWN, message)
    message = (
        f"{request.id} is in {request.unit}, the budget of {request.payer} is in {MICRO}: {request.payer} "
        "converts pledged device time first"
    )
    return Refusal(Code.UNIT_MISMATCH, message)


def _lacking(ledger: Ledger, fresh: Mapping[str, HoldRequest], now_ms: int) -> dict[str, dict[str, int]]:
    needs: dict[str, int] = {}
    for request in fresh.values():
        needs[request.payer] = needs.get(request.payer, 0) + request.amount_micro
    have = {payer: ledger.available_micro(payer, now_ms) for payer in sorted(needs)}
    return {
        payer: {"needs": needs[payer], "available": available}
        for payer, available in have.items()
        if needs[payer] > available
    }


def _hold_record(ledger: Ledger, request: HoldRequest, now_ms: int) -> Record:
    tops = {"tops": request.tops} if request.tops else {}
    return fact(
        Kind.TRANSFER,
        now_ms,
        type="hold",
        id=request.id,
        debit=budget_account(request.payer),
        credit=consumed_account(request.run),
        amount_micro=request.amount_micro,
        partner=ledger.owners[request.site],
        payer=request.payer,
        site=request.site,
        run=request.run,
        round=request.round,
        expires_ms=request.expires_ms,
        rate_card=request.rate_card,
        **tops,
    )


def _settles(held: Sequence[Hold], charge: Charge, now_ms: int) -> list[Record]:
    """The measure of the usage stands on the first; a top-up that was not needed is released."""
    left, records = charge.amount_micro, []
    for hold in held:
        most = hold.request.amount_micro
        part = min(left, most)
        left -= part
        if hold is held[0]:
            measured = {
                "device": charge.device,
                "precision": charge.precision,
                "gflop": charge.gflop,
                "device_ms": charge.device_ms,
                "tokens": charge.tokens,
                "energy_j": charge.energy_j,
                "percent": charge.percent,
            }
        elif part:
            measured = {}
        else:
            records.append(ending(hold, "release", most, now_ms, why="the base hold was enough"))
            continue
        records.append(
            ending(
                hold,
                "settle",
                part,
                now_ms,
                usage=charge.usage,
                returned_micro=most - part,
                accepted=charge.accepted,
                **measured,
            )
        )
    return records


def _contributions(ledger: Ledger, base: Hold, charge: Charge, now_ms: int) -> list[Record]:
    if not charge.accepted:
        return []
    request, owner = base.request, base.partner
    owed = {owner: charge.amount_micro}
    if request.payer != owner:
        theirs = charge.amount_micro * (100 - ledger.rules.contribution_owner_percent) // 100
        owed = {owner: charge.amount_micro - theirs, request.payer: theirs}
    name = f"contribution/{base.tail}"
    return [
        fact(
            Kind.TRANSFER,
            now_ms,
            type="contribution",
            id=name if partner == owner else f"{name}/payer",
            debit="contribution",
            credit=contributed_account(partner),
            amount_micro=amount,
            partner=partner,
            hold=request.id,
            run=request.run,
            round=request.round,
            site=request.site,
        )
        for partner, amount in owed.items()
        if amount or partner == owner
    ]


def _rounding(base: Hold, charge: Charge, now_ms: int) -> list[Record]:
    if not charge.rounded_pico:
        return []
    request = base.request
    return [
        fact(
            Kind.TRANSFER,
            now_ms,
            type="rounding",
            id=f"rounding/{base.tail}",
            debit=rounding_account(request.payer),
            credit="rounding",
            unit=PICO,
            amount=charge.rounded_pico,
            hold=request.id,
        )
    ]


def _breakage(ledger: Ledger, returned: Mapping[str, int], now_ms: int) -> list[Record]:
    """`returned`: what holds that end in the same breath give back to each lot."""
    return [
        fact(
            Kind.TRANSFER,
            now_ms,
            type="breakage",
            id=breakage_id(lot),
            debit=budget_account(partner),
            credit="breakage",
            amount_micro=lot.free + returned.get(lot.id, 0),
            partner=partner,
            grant=lot.id,
        )
        for partner, purse in ledger.purses.items()
        for lot in purse.lots
        if lot.expired(now_ms) and lot.free + returned.get(lot.id, 0)
    ]
