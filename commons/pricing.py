"""What work costs by a rate: the one formula that coordinator, site and reader of a bill agree on.

Whole numbers only. Which card is in force, and rounding to whole micro, are the ledger's (`governance.ratecard`).
"""

from __future__ import annotations

from commons.charter import Rate, RateCard


def exact_pico(rate: Rate, gflop: int, device_ms: int) -> int:
    """The exact price in 10^-6 micro of `gflop` (10^9 useful operations) that took `device_ms`, summed over devices."""
    work = gflop * (rate.micro_per_gflop * 1_000_000 + rate.micro_per_pflop)
    return work + device_ms * rate.micro_per_device_second * 1000


def rates_of(card: RateCard, device: str, precision: str | None) -> list[Rate]:
    """The one rate for this precision, else the one for any; all of the device's for None; empty: none."""
    own = [rate for rate in card.rates if rate.device == device]
    if precision is None:
        return own
    exact = [rate for rate in own if rate.precision == precision]
    return exact or [rate for rate in own if rate.precision == "any"]
