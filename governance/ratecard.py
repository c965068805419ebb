"""What work costs: a rate card applied to useful FLOPs and device time. Integers in, integers out."""

from __future__ import annotations

from dataclasses import dataclass

from commons.accounting import RateCard
from commons.amounts import AMOUNT_LIMIT, PICO_PER_MICRO
from commons.errors import Code, Refusal
from commons.names import Digest
from commons.notes import digest
from commons.pricing import exact_pico, rates_of, whole_micro
from commons.records import canonical_json

__all__ = ["Price", "exact_pico", "price", "rate_card_digest", "rates_of"]


@dataclass(frozen=True)
class Price:
    amount_micro: int
    rounded_pico: int
    """How much of it is there because the exact price was rounded up to a whole micro; below 10^6."""


def price(
    card: RateCard, device: str, precision: str | None, *, gflop: int, device_ms: int = 0
) -> Price | Refusal:
    """Price of `gflop` (10^9 useful operations) that took `device_ms` of `device`, rounded up once to whole micro.

    `precision` None: by the dearest rate the device has, a bound for work not yet done. Refuses with rate_unknown a
    device or precision without a rate, with amount_invalid work that is negative or would cost 2**63 micro or more.
    """
    rates = rates_of(card, device, precision)
    if not rates:
        known = ", ".join(sorted({f"{r.device} {r.precision}" for r in card.rates}))
        wanted = f"{device} at {precision}" if precision else device
        message = f"the rate card has no rate for {wanted} (it has {known}); the members vote for one"
        return Refusal(Code.RATE_UNKNOWN, message)
    exact = max(exact_pico(rate, gflop, device_ms) for rate in rates)
    amount = whole_micro(exact)
    if gflop < 0 or device_ms < 0 or amount >= AMOUNT_LIMIT:
        what = f"{gflop} gflop in {device_ms} ms on {device}"
        return Refusal(Code.AMOUNT_INVALID, f"{what} is no work that can be charged")
    return Price(amount, amount * PICO_PER_MICRO - exact)


def rate_card_digest(card: RateCard) -> Digest:
    """Digest of the card's canonical JSON: stored on every hold, so that a bill names the rates it used."""
    return digest(canonical_json(card.model_dump(mode="json")))
