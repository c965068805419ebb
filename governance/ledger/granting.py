"""Where budget comes from: the charter's grants, and pledged device time turned into money."""

from __future__ import annotations

from commons.accounting import Grant
from commons.amounts import DEVICE_MS, MICRO, PICO, PICO_PER_MICRO, is_amount
from commons.charter import Charter
from commons.claims import ConvertNote
from commons.errors import Code, Refusal
from commons.names import Digest
from commons.records import Kind, Record, fact
from governance.ledger.accounts import budget_account, pledge_account
from governance.ledger.books import Ledger
from governance.ledger.holds import invalid_amount
from governance.ratecard import exact_pico, rate_card_digest, rates_of


def decide_grants(ledger: Ledger, charter: Charter, now_ms: int) -> list[Record]:
    """What the charter grants and the books do not have yet. Asked twice: nothing.

    Founding budgets are brought up to the charter's `budget_micro`; one that the charter lowered is left as it is.
    Every entry of `grants` is booked once, by its name.
    """
    founding = [
        fact(
            Kind.TRANSFER,
            now_ms,
            type="grant",
            id=f"grant/{charter.version}/{member.name}",
            debit="issuance",
            credit=budget_account(member.name),
            amount_micro=member.budget_micro - ledger.founding_micro.get(member.name, 0),
            partner=member.name,
        )
        for member in charter.members
        if member.budget_micro > ledger.founding_micro.get(member.name, 0)
    ]
    voted = [
        _granted(grant, now_ms) for grant in charter.grants if f"grant/{grant.name}" not in ledger.booked
    ]
    return [*founding, *voted]


def decide_convert(
    ledger: Ledger, note: ConvertNote, digest: Digest, charter: Charter, now_ms: int
) -> list[Record] | Refusal:
    """Pledged device time becomes budget at the card in force, rounded down to whole micro, the remainder booked.

    `note` is a member's. Refuses: amount_invalid, account_not_found (nothing pledged), rate_unknown (no price of
    time), exceeds_budget (less pledged than that).
    """
    partner, device, tail = note.partner, note.device, digest.partition(":")[2][:32]
    if f"convert/{tail}/time" in ledger.booked:
        return []
    if not is_amount(note.amount_ms) or note.amount_ms == 0:
        return invalid_amount(f"conversion by {partner}", note.amount_ms, 1)
    pledge = ledger.accounts.get(pledge_account(partner, device))
    if pledge is None:
        return Refusal(Code.ACCOUNT_NOT_FOUND, f"{partner} has no pledged time of {device[:80]} to convert")
    rates = rates_of(charter.rate_card, device, "any") or rates_of(charter.rate_card, device, None)
    if not rates or not rates[0].micro_per_device_second:
        message = f"the rate card in force has no price for a second of {device}; the members vote for one"
        return Refusal(Code.RATE_UNKNOWN, message)
    left = pledge.credits_posted - pledge.debits_posted
    if note.amount_ms > left:
        message = f"{partner} has {left} ms of {device} pledged and not converted, not {note.amount_ms}"
        return Refusal(Code.EXCEEDS_BUDGET, message)
    exact = exact_pico(rates[0], 0, note.amount_ms)
    amount_micro, rest = divmod(exact, PICO_PER_MICRO)
    if not is_amount(amount_micro):
        message = f"{note.amount_ms} ms of {device} would be {amount_micro} micro, 2^63 or more: convert less at once"
        return Refusal(Code.AMOUNT_INVALID, message)
    more = {"partner": partner, "rate_card": rate_card_digest(charter.rate_card), "linked": f"convert/{tail}"}
    unit = f"{DEVICE_MS}{device}"
    legs = [
        (
            "convert",
            f"convert/{tail}/time",
            pledge_account(partner, device),
            f"fx/{unit}",
            unit,
            note.amount_ms,
        ),
        ("convert", f"convert/{tail}/money", f"fx/{MICRO}", budget_account(partner), MICRO, amount_micro),
        ("rounding", f"rounding/convert/{tail}", f"fx/{PICO}", "rounding", PICO, rest),
    ]
    return [
        fact(
            Kind.TRANSFER, now_ms, type=kind, id=name, debit=debit, credit=credit,
            **({"amount_micro": amount} if u == MICRO else {"unit": u, "amount": amount}), **more,
        )
        for kind, name, debit, credit, u, amount in legs
        if amount
    ]  # fmt: skip


def _granted(grant: Grant, now_ms: int) -> Record:
    if grant.unit != MICRO:
        device = grant.unit.removeprefix(DEVICE_MS)
        return fact(
            Kind.TRANSFER,
            now_ms,
            type="grant",
            id=f"grant/{grant.name}",
            debit=f"issuance/{grant.unit}",
            credit=pledge_account(grant.member, device),
            unit=grant.unit,
            amount=grant.amount,
            partner=grant.member,
        )
    return fact(
        Kind.TRANSFER,
        now_ms,
        type="grant",
        id=f"grant/{grant.name}",
        debit="issuance",
        credit=budget_account(grant.member),
        amount_micro=grant.amount,
        partner=grant.member,
        priority=grant.priority,
        not_before_ms=grant.not_before_ms,
        expires_ms=grant.expires_ms,
    )
