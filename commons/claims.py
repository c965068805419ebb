"""What a member says about money, as typed notes signed by its member key: countersignature, dispute, ruling, conversion.

Owns the fields; whether a claim is lawful is the ledger's to decide. Same writing as `commons.work`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from commons.work import Words


@dataclass(frozen=True, kw_only=True)
class CountersignNote(Words):
    """The partner agrees with its statement of a closed period."""

    KIND = "hansa-countersign/v1"
    consortium: str
    partner: str
    period: str
    """`2026-11` or `2026-q4`, by UTC."""
    statement: str
    """Digest of the statement's text."""


@dataclass(frozen=True, kw_only=True)
class DisputeNote(Words):
    """The payer of a charge says that some or all of it is wrong: it rests in suspense until the dispute ends.

    The digest of its text names the dispute.
    """

    KIND = "hansa-dispute/v1"
    consortium: str
    partner: str
    transfer: str
    """Id of the settle."""
    amount_micro: int
    reason: Literal["metering_error", "hardware_fault", "duplicate", "rate_error"]
    why: str
    """In the partner's words."""


@dataclass(frozen=True, kw_only=True)
class RulingNote(Words):
    """A party ends a dispute: `withdrawn` by the one who raised it, `conceded` by the owner of the site."""

    KIND = "hansa-ruling/v1"
    consortium: str
    partner: str
    dispute: str
    outcome: Literal["withdrawn", "conceded"]


@dataclass(frozen=True, kw_only=True)
class ConvertNote(Words):
    """The partner turns pledged device time into budget, at the rate card in force when it is taken."""

    KIND = "hansa-convert/v1"
    consortium: str
    partner: str
    device: str
    amount_ms: int
    nonce: str
