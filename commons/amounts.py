"""Units of the books and the bounds of an amount. Whole numbers only."""

from __future__ import annotations

AMOUNT_LIMIT = 2**63
"""Amounts are 0 <= amount < 2**63."""
MICRO = "micro"
"""Of the rate card's currency."""
PICO = "pico"
"""10^-6 micro: what rounding left over."""
PICO_PER_MICRO = 1_000_000
DEVICE_MS = "device_ms:"
"""Prefix of the unit of pledged device time."""


def is_amount(value: object) -> bool:
    return type(value) is int and 0 <= value < AMOUNT_LIMIT
