"""The compute-budget ledger. Start with `books`: the state; the decisions are in the modules beside it."""

from governance.ledger.books import Budget, Ledger
from governance.ledger.claiming import CLAIMS, decide_claim
from governance.ledger.correcting import decide_reverse, decide_rulings
from governance.ledger.granting import decide_grants
from governance.ledger.holds import Charge, Hold, HoldRequest
from governance.ledger.spending import (
    decide_expire,
    decide_failed,
    decide_hold,
    decide_release,
    decide_settle,
    next_expiry_ms,
)

__all__ = [
    "CLAIMS",
    "Budget",
    "Charge",
    "Hold",
    "HoldRequest",
    "Ledger",
    "decide_claim",
    "decide_expire",
    "decide_failed",
    "decide_grants",
    "decide_hold",
    "decide_release",
    "decide_reverse",
    "decide_rulings",
    "decide_settle",
    "next_expiry_ms",
]
