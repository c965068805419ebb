"""Which variants are run with which seeds, and which of them stand for what in the figures."""

from __future__ import annotations

from benchmarks.learning_parts.plan import VARIANTS

RANKED = tuple(VARIANTS)
"""The short regime, one seed."""
OURS, OURS_SCRATCH, EIGHT = "lean-read", "lean-read-scratch", "lean-read-8"
UNREAD, FAR, OFTEN = "lean", "lean-130-int4-closing", "lean-read-2"
OWN, WHOLE, WHOLE_OFTEN = "lean-read-own", "lean-read-whole-1", "lean-read-whole-1-often"
_ONE, _THREE = (0,), (0, 1, 2)
T1: dict[str, tuple[int, ...]] = {
    "central": _THREE,
    "lean": _THREE,
    "lean-read": _THREE,
    "untrained": _THREE,
    "lean-read-public": _ONE,
    "lean-read-2": _ONE,
    "central-faster": _ONE,
    "alone": _THREE,
    "central-scratch": _THREE,
    "lean-scratch": _ONE,
    "lean-read-scratch": _THREE,
    "lean-130-int4": _ONE,
    "lean-130": _ONE,
    "lean-int4": _ONE,
    "lean-int4-closing": _THREE,
    "lean-130-int4-closing": _ONE,
    "lean-int2-closing": _THREE,
    "lean-trunk-int4": _ONE,
    "lean-int2": _ONE,
    "lean-8": _ONE,
    "lean-read-8": _ONE,
    "fedavg": _THREE,
    "diloco": _THREE,
    "spes": _THREE,
    "copies": _ONE,
    "copies-kin": _ONE,
    "copies-alike": _ONE,
    "fedavg-alike": _ONE,
    "guests": _ONE,
    "lean-fit": _ONE,
    "flexolmo": _ONE,
    "flexolmo-read": _ONE,
    "flexolmo-read-public": _ONE,
    "btx": _ONE,
    "flexolmo-late": _ONE,
    "flexolmo-layers": _ONE,
    "flexolmo-read-own": _THREE,
    "lean-read-own": _ONE,
    "lean-read-own-1": _THREE,
    "lean-read-whole-1": _THREE,
    "lean-read-whole-1-often": _THREE,
    "lean-read-whole-8": _ONE,
    "lean-read-whole": _ONE,
    "flexolmo-read-whole": _ONE,
    "central-32": _ONE,
    "lean-read-own-often": _ONE,
    "lean-late": _ONE,
    "lean-late-2": _ONE,
}
"""Seeds of each variant of tier T1, the most wanted first."""
T2 = dict.fromkeys(
    ("central", "central-half-rate", "central-double-rate", "lean-read", "untrained", "alone", "fedavg", "diloco", "spes"), _ONE
)  # fmt: skip
"""Likewise of tier T2."""
