"""What work costs: the charter's rate card applied to useful model FLOPs. Integers in, integers out."""

from __future__ import annotations

from commons.charter import Charter, RateCard
from commons.errors import Code, Refusal
from commons.names import Digest
from commons.notes import digest
from commons.records import canonical_json


def price_micro(charter: Charter, device: str, gflop: int) -> int | Refusal:
    """Price in micro of `gflop` (1e9 floating-point operations, >= 0) on `device`.

    Refuses with rate_unknown a device that has no rate in this version of the charter, with amount_invalid work
    that is negative or would cost 2**63 micro or more.
    """
    rate = next((r for r in charter.rate_card.rates if r.device == device), None)
    if rate is None:
        known = ", ".join(sorted(r.device for r in charter.rate_card.rates))
        message = (
            f"the rate card of charter version {charter.version} has no rate for {device} (it has {known})"
        )
        return Refusal(Code.RATE_UNKNOWN, message)
    price = rate.micro_per_gflop * gflop
    if gflop < 0 or price >= 2**63:
        return Refusal(Code.AMOUNT_INVALID, f"{gflop} gflop on {device} is no work that can be charged")
    return price


def rate_card_digest(card: RateCard) -> Digest:
    """Digest of the card's canonical JSON: stored on every hold, so that a bill names the rates it used."""
    return digest(canonical_json(card.model_dump(mode="json")))
