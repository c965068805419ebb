"""When a watched view may have changed, so that nobody makes one anew for nothing.

Most views follow from the records of a few kinds; some besides from the clock, or from what the coordinator hears of its
sites and witnesses. Knows which, and nothing of what the views say.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from commons.records import Kind
from governance.bell import Bell

LOOK_S = 5.0
"""A view that time alone may change is looked at so often."""
_ROUNDS = frozenset(
    {
        Kind.RUN,
        Kind.ROUND,
        Kind.UPDATE,
        Kind.USAGE,
        Kind.REJECTION,
        Kind.VERDICT,
        Kind.WORTH,
        Kind.CLOSE,
        Kind.FINISH,
    }
)
_MONEY = frozenset(
    {Kind.CHARTER, Kind.TRANSFER, Kind.PERIOD, Kind.DISPUTE, Kind.RULING, Kind.CONVERT, Kind.PLEDGE}
)
_VOTES = frozenset(
    {
        Kind.CHARTER,
        Kind.PROPOSAL,
        Kind.OPENING,
        Kind.BALLOT,
        Kind.MOTION,
        Kind.OUTCOME,
        Kind.EXECUTION,
        Kind.PLEDGE,
        Kind.LODGED,
    }
)
FOLLOWS: Mapping[str, frozenset[Kind]] = {
    "budgets": _MONEY,
    "disputes": _MONEY,
    "proposals": _VOTES,
    "proposal": _VOTES,
    "charter": frozenset({Kind.CHARTER}),
    "rounds": _ROUNDS,
    "curves": frozenset({Kind.RUN, Kind.CLOSE, Kind.EVALUATION, Kind.FINISH, Kind.CHARTER}),
    "experts": frozenset({Kind.RUN, Kind.ROUND, Kind.CLOSE, Kind.REMADE, Kind.CHARTER}),
    "releases": frozenset({Kind.RELEASE, Kind.CHARTER}),
    "members": frozenset({Kind.CHARTER, Kind.SITE, Kind.BALLOT_KEY, Kind.OUTCOME, Kind.CLOSE}),
}
"""View -> kinds of the records it follows from; any other follows from all."""
TIMED = frozenset({"proposals", "proposal", "members"})
"""Votes open and close by the clock; members join, which is no record."""
LIVE = frozenset({"run", "now"})
"""They show what sites say between two records."""
_HEARD = frozenset({"journal"})
"""They show what witnesses and sites have brought about, which is no record either."""


class Moments:
    """`pulse` rings whenever anything may have changed, `bell` for every record and when sites and witnesses act."""

    def __init__(self, pulse: Bell, bell: Bell) -> None:
        self._pulse, self._bell = pulse, bell

    def bell(self, view: str) -> Bell:
        """Which to wait for before the view is looked at again."""
        return self._pulse if view in LIVE else self._bell

    def of(self, view: str) -> tuple[int, int]:
        """The same as before: the view cannot have changed."""
        if view in LIVE or view in _HEARD or view not in FOLLOWS:
            return self.bell(view).strokes, int(time.monotonic() / LOOK_S)
        written = self._bell.count(FOLLOWS[view])
        return written, int(time.monotonic() / LOOK_S) if view in TIMED else 0
