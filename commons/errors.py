"""Refusals and errors: one table of stable codes.

A partner's doing is a value, `Refusal`; the world failing is an exception under `HansaError`;
our own mistake is an assertion. Every code has a gRPC status here, and a test proves none is missing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from commons.words import Word


class Code(Word):
    """Stable names of refusals. Never renamed, never reused."""

    # who and where
    NOT_AUTHORISED = "not_authorised"
    NOT_ENROLLED = "not_enrolled"
    INVITE_INVALID = "invite_invalid"
    INVITE_USED = "invite_used"
    INVITE_EXPIRED = "invite_expired"
    # notes and proofs
    NOTE_MALFORMED = "note_malformed"
    SIGNATURE_INVALID = "signature_invalid"
    PROOF_INVALID = "proof_invalid"
    LOG_FORKED = "log_forked"
    CHARTER_UNPROVEN = "charter_unproven"
    POLICY_FORBIDS = "policy_forbids"
    # charter, proposals, ballots
    CHARTER_INVALID = "charter_invalid"
    FEATURE_UNKNOWN = "feature_unknown"
    FEATURE_PARAMETERS_INVALID = "feature_parameters_invalid"
    PROPOSAL_UNKNOWN = "proposal_unknown"
    PROPOSAL_EXISTS = "proposal_exists"
    PROPOSAL_CLOSED = "proposal_closed"
    PROPOSAL_STALE = "proposal_stale"
    BALLOT_MISMATCH = "ballot_mismatch"
    NOT_IN_ELECTORATE = "not_in_electorate"
    # ledger
    EXISTS_WITH_DIFFERENT_FIELDS = "exists_with_different_fields"
    ID_ALREADY_FAILED = "id_already_failed"
    ACCOUNT_NOT_FOUND = "account_not_found"
    AMOUNT_INVALID = "amount_invalid"
    EXCEEDS_BUDGET = "exceeds_budget"
    HOLD_NOT_FOUND = "hold_not_found"
    HOLD_ALREADY_SETTLED = "hold_already_settled"
    HOLD_ALREADY_RELEASED = "hold_already_released"
    HOLD_EXPIRED = "hold_expired"
    EXCEEDS_HOLD = "exceeds_hold"
    ACCOUNT_CLOSED = "account_closed"
    UNIT_MISMATCH = "unit_mismatch"
    LINKED_FAILED = "linked_failed"
    TRANSFER_NOT_FOUND = "transfer_not_found"
    REVERSAL_EXCEEDS_ORIGINAL = "reversal_exceeds_original"
    PERIOD_CLOSED = "period_closed"
    STATEMENT_MISMATCH = "statement_mismatch"
    RATE_UNKNOWN = "rate_unknown"
    RATE_CARD_UNKNOWN = "rate_card_unknown"
    USAGE_OUTSIDE_LEASE = "usage_outside_lease"
    USAGE_IMPLAUSIBLE = "usage_implausible"
    USAGE_OVERLAP = "usage_overlap"
    # rounds and updates
    RUN_UNKNOWN = "run_unknown"
    RUN_EXISTS = "run_exists"
    NO_RUN = "no_run"
    ROUND_CLOSED = "round_closed"
    NOT_ASSIGNED = "not_assigned"
    STALE_BASE = "stale_base"
    LEASE_EXPIRED = "lease_expired"
    EPOCH_STALE = "epoch_stale"
    EXPERT_MAP_MISMATCH = "expert_map_mismatch"
    UPDATE_MALFORMED = "update_malformed"
    UPDATE_TOO_LARGE = "update_too_large"
    UPDATE_DIGEST_MISMATCH = "update_digest_mismatch"
    UPDATE_NOT_FINITE = "update_not_finite"
    UPDATE_NORM = "update_norm"
    UPDATE_HARMFUL = "update_harmful"
    QUARANTINED = "quarantined"
    UPDATE_ALREADY_ADMITTED = "update_already_admitted"
    UPLOAD_STALLED = "upload_stalled"
    TOO_MANY_STREAMS = "too_many_streams"
    BLOB_UNKNOWN = "blob_unknown"
    REQUEST_INVALID = "request_invalid"
    # secure aggregation
    MASK_ATTEMPT_REFUSED = "mask_attempt_refused"
    MASK_ROSTER_TOO_SMALL = "mask_roster_too_small"
    MASK_KEYS_INVALID = "mask_keys_invalid"
    MASK_SHARES_INVALID = "mask_shares_invalid"
    MASK_SURVIVORS_REFUSED = "mask_survivors_refused"
    MASK_BELOW_THRESHOLD = "mask_below_threshold"
    # differential privacy
    EXCEEDS_EPSILON = "exceeds_epsilon"


GRPC_STATUS: dict[Code, str] = {
    Code.NOT_AUTHORISED: "PERMISSION_DENIED",
    Code.NOT_ENROLLED: "UNAUTHENTICATED",
    Code.INVITE_INVALID: "UNAUTHENTICATED",
    Code.INVITE_USED: "ALREADY_EXISTS",
    Code.INVITE_EXPIRED: "FAILED_PRECONDITION",
    Code.NOTE_MALFORMED: "INVALID_ARGUMENT",
    Code.SIGNATURE_INVALID: "UNAUTHENTICATED",
    Code.PROOF_INVALID: "INVALID_ARGUMENT",
    Code.LOG_FORKED: "DATA_LOSS",
    Code.CHARTER_UNPROVEN: "FAILED_PRECONDITION",
    Code.POLICY_FORBIDS: "FAILED_PRECONDITION",
    Code.CHARTER_INVALID: "INVALID_ARGUMENT",
    Code.FEATURE_UNKNOWN: "NOT_FOUND",
    Code.FEATURE_PARAMETERS_INVALID: "INVALID_ARGUMENT",
    Code.PROPOSAL_UNKNOWN: "NOT_FOUND",
    Code.PROPOSAL_EXISTS: "ALREADY_EXISTS",
    Code.PROPOSAL_CLOSED: "FAILED_PRECONDITION",
    Code.PROPOSAL_STALE: "FAILED_PRECONDITION",
    Code.BALLOT_MISMATCH: "INVALID_ARGUMENT",
    Code.NOT_IN_ELECTORATE: "PERMISSION_DENIED",
    Code.EXISTS_WITH_DIFFERENT_FIELDS: "ALREADY_EXISTS",
    Code.ID_ALREADY_FAILED: "FAILED_PRECONDITION",
    Code.ACCOUNT_NOT_FOUND: "NOT_FOUND",
    Code.AMOUNT_INVALID: "INVALID_ARGUMENT",
    Code.EXCEEDS_BUDGET: "FAILED_PRECONDITION",
    Code.HOLD_NOT_FOUND: "NOT_FOUND",
    Code.HOLD_ALREADY_SETTLED: "FAILED_PRECONDITION",
    Code.HOLD_ALREADY_RELEASED: "FAILED_PRECONDITION",
    Code.HOLD_EXPIRED: "FAILED_PRECONDITION",
    Code.EXCEEDS_HOLD: "FAILED_PRECONDITION",
    Code.ACCOUNT_CLOSED: "FAILED_PRECONDITION",
    Code.UNIT_MISMATCH: "INVALID_ARGUMENT",
    Code.LINKED_FAILED: "FAILED_PRECONDITION",
    Code.TRANSFER_NOT_FOUND: "NOT_FOUND",
    Code.REVERSAL_EXCEEDS_ORIGINAL: "FAILED_PRECONDITION",
    Code.PERIOD_CLOSED: "FAILED_PRECONDITION",
    Code.STATEMENT_MISMATCH: "FAILED_PRECONDITION",
    Code.RATE_UNKNOWN: "FAILED_PRECONDITION",
    Code.RATE_CARD_UNKNOWN: "FAILED_PRECONDITION",
    Code.USAGE_OUTSIDE_LEASE: "FAILED_PRECONDITION",
    Code.USAGE_IMPLAUSIBLE: "INVALID_ARGUMENT",
    Code.USAGE_OVERLAP: "ALREADY_EXISTS",
    Code.RUN_UNKNOWN: "NOT_FOUND",
    Code.RUN_EXISTS: "ALREADY_EXISTS",
    Code.NO_RUN: "FAILED_PRECONDITION",
    Code.ROUND_CLOSED: "FAILED_PRECONDITION",
    Code.NOT_ASSIGNED: "PERMISSION_DENIED",
    Code.STALE_BASE: "FAILED_PRECONDITION",
    Code.LEASE_EXPIRED: "FAILED_PRECONDITION",
    Code.EPOCH_STALE: "ABORTED",
    Code.EXPERT_MAP_MISMATCH: "FAILED_PRECONDITION",
    Code.UPDATE_MALFORMED: "INVALID_ARGUMENT",
    Code.UPDATE_TOO_LARGE: "RESOURCE_EXHAUSTED",
    Code.UPDATE_DIGEST_MISMATCH: "DATA_LOSS",
    Code.UPDATE_NOT_FINITE: "INVALID_ARGUMENT",
    Code.UPDATE_NORM: "INVALID_ARGUMENT",
    Code.UPDATE_HARMFUL: "FAILED_PRECONDITION",
    Code.QUARANTINED: "FAILED_PRECONDITION",
    Code.UPDATE_ALREADY_ADMITTED: "ALREADY_EXISTS",
    Code.UPLOAD_STALLED: "ABORTED",
    Code.TOO_MANY_STREAMS: "RESOURCE_EXHAUSTED",
    Code.BLOB_UNKNOWN: "NOT_FOUND",
    Code.REQUEST_INVALID: "INVALID_ARGUMENT",
    Code.MASK_ATTEMPT_REFUSED: "FAILED_PRECONDITION",
    Code.MASK_ROSTER_TOO_SMALL: "FAILED_PRECONDITION",
    Code.MASK_KEYS_INVALID: "INVALID_ARGUMENT",
    Code.MASK_SHARES_INVALID: "INVALID_ARGUMENT",
    Code.MASK_SURVIVORS_REFUSED: "FAILED_PRECONDITION",
    Code.MASK_BELOW_THRESHOLD: "FAILED_PRECONDITION",
    Code.EXCEEDS_EPSILON: "FAILED_PRECONDITION",
}


@dataclass(frozen=True)
class Refusal:
    """A partner's command declined: nothing changed. `message` says what, between which values, and who acts next."""

    code: Code
    message: str
    details: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.message} [{self.code}]"


class HansaError(Exception):
    """The world failed in a way a person can act on. The text is shown as it is, without a traceback."""

    exit_code = 1


class ConfigError(HansaError):
    """A file a person wrote is wrong; lists every problem at once, each as `path:line: what`."""

    exit_code = 2

    def __init__(self, problems: list[str]) -> None:
        assert problems, "a ConfigError names at least one problem"
        self.problems = problems
        super().__init__("\n".join(problems))


class Refused(HansaError):
    """The coordinator (or a local check) refused a command; carries the `Refusal`."""

    exit_code = 3

    def __init__(self, refusal: Refusal) -> None:
        self.refusal = refusal
        super().__init__(str(refusal))


class Unreachable(HansaError):
    """The other side cannot be reached now; trying again may help."""

    exit_code = 4


class StoreError(HansaError):
    """A store on disk cannot be used: locked, broken, of another version, or the disk is full."""

    exit_code = 5
