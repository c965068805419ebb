"""The operator's reversal of a charge: what may be asked, and how a repeat is known to be one.

The caller makes the token before it asks. `token_for` derives it from what is asked, so that the same command given
again, whatever happened to the first answer, is the same reversal.
"""

from __future__ import annotations

import hashlib
import re
from typing import get_args

from commons.errors import Code, Refusal
from commons.records import Record, canonical_json
from governance.ledger import Ledger, decide_reverse
from governance.ledger.correcting import Why

REASONS: tuple[Why, ...] = tuple(w for w in get_args(Why) if w != "dispute_upheld")
_TOKEN = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,62}[a-z0-9])?")
_OF_A_DISPUTE = re.compile(r"[0-9a-f]{32}")
"""A dispute that is upheld ends in ``reversal/<32 hex digits>``."""


def token_for(settle: str, amount_micro: int | None, reason: str) -> str:
    """The token of this reversal unless the caller names another; `amount_micro` None: all that is left."""
    wanted = canonical_json([settle, amount_micro, reason])
    return f"r-{hashlib.sha256(wanted).hexdigest()[:20]}"


def reversal_id(token: str) -> str:
    return f"reversal/{token}"


def decide_operator_reversal(
    ledger: Ledger, *, token: str, settle: str, amount_micro: int | None, reason: str, now_ms: int
) -> list[Record] | Refusal:
    """The transfers of a reversal; asked twice with the same token: nothing.

    `amount_micro` None: all of the charge that is neither reversed nor disputed. Refuses: request_invalid (a token or
    reason that cannot be), reversal_exceeds_original (nothing is left), and what `decide_reverse` refuses.
    """
    why = next((known for known in REASONS if known == reason), None)
    if why is None:
        message = f"a charge is reversed for {', '.join(REASONS)}, not for {reason[:40]!r}"
        return Refusal(Code.REQUEST_INVALID, message)
    if not _TOKEN.fullmatch(token) or _OF_A_DISPUTE.fullmatch(token):
        what = "lower-case letters, digits, dots and hyphens, at most 64, and not 32 hex digits"
        return Refusal(Code.REQUEST_INVALID, f"a reversal's token is {what}; this one is {token[:80]!r}")
    name = reversal_id(token)
    if amount_micro is None:
        known, hold = ledger.booked.get(name), ledger.settled(settle)
        if known is not None:
            amount_micro = int(known["amount_micro"])
        elif hold is not None:
            amount_micro = hold.correctable_micro
            if not amount_micro:
                message = f"nothing is left of {settle}: all of it is reversed or disputed"
                return Refusal(Code.REVERSAL_EXCEEDS_ORIGINAL, message)
    return decide_reverse(ledger, name, settle[:300], amount_micro or 0, why, now_ms)
