"""What work costs by a rate: the one formula that coordinator, site and reader of a bill agree on.

Whole numbers only. Which card is in force is the ledger's to say.
"""

from __future__ import annotations

from commons.accounting import Rate, RateCard
from commons.amounts import PICO_PER_MICRO


def exact_pico(rate: Rate, gflop: int, device_ms: int) -> int:
    """The exact price in 10^-6 micro of `gflop` (10^9 useful operations) that took `device_ms`, summed over devices."""
    return gflop * pico_per_gflop(rate) + device_ms * rate.micro_per_device_second * 1000


def pico_per_gflop(rate: Rate) -> int:
    return rate.micro_per_gflop * PICO_PER_MICRO + rate.micro_per_pflop


def whole_micro(pico: int) -> int:
    """What is charged for an exact price: the next whole micro."""
    return -(-pico // PICO_PER_MICRO)


def rates_of(card: RateCard, device: str, precision: str | None) -> list[Rate]:
    """The one rate for this precision, else the one for any; all of the device's for None; empty: none."""
    own = [rate for rate in card.rates if rate.device == device]
    if precision is None:
        return own
    exact = [rate for rate in own if rate.precision == precision]
    return exact or [rate for rate in own if rate.precision == "any"]
