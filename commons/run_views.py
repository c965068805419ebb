"""Views of a run that stay small however long it goes on: where it is now, its curves, its last rounds site by site."""

from __future__ import annotations

from pydantic import Field

from commons.views import RoundView, RunView, View

ROUNDS_SHOWN = 12
"""Of `RoundsView`."""
POINTS_MAX = 2_000
"""Of `CurvesView`."""


class NowView(RunView):
    """The latest run with the last two rounds only in `history`."""

    closed: int = 0
    """Rounds."""
    tokens: int = 0
    """Trained on, in all rounds."""
    opened_ms: int = 0


class PointView(View):
    """One closed round."""

    round: int
    closed_ms: int
    loss: float | None
    """Mean training loss of the sites that told theirs, nats per byte."""
    held_out: tuple[float | None, ...]
    """Held-out loss of the round's base state in the order of `CurvesView.domains`; of two sites of one domain the mean."""
    probe_loss: float | None = None
    """Of its new state."""
    rolled_back: bool = False
    tokens: int = 0


class CurvesView(View):
    run: str
    domains: tuple[str, ...]
    points: tuple[PointView, ...]
    """Oldest first; the last `POINTS_MAX`."""
    evaluation: dict[str, float] = Field(default_factory=dict)
    """domain -> held-out loss of the final state, once the run is over."""


class PartView(View):
    """One site's part in one round."""

    site: str
    assigned_ms: int
    """When it got its order."""
    admitted_ms: int | None = None
    rejected_ms: int | None = None
    started_ms: int = 0
    """Of its work, by its own clock; 0: not told."""
    ended_ms: int = 0
    tokens: int = 0
    gflop: int = 0
    payload_bytes: int = 0
    held_micro: int = 0
    code: str = ""
    """Why it was rejected or left out (`commons.errors.Code`)."""
    index: int | None = None
    """Journal record of its update."""
    late_for: int | None = None
    """The round it counts in, where that is a later one."""


class RoundDetailView(RoundView):
    attempt: int = 1
    quorum: int = 0
    quorum_ms: int | None = None
    """When the quorum was met."""
    lease_until_ms: int = 0
    parts: tuple[PartView, ...] = ()
    """Of assigned sites and of those left out, in order of name."""


class RoundsView(View):
    """The last `ROUNDS_SHOWN` rounds of a run up to one of them, oldest first. Key: ``RUN`` or ``RUN/LAST``."""

    run: str
    rounds: tuple[RoundDetailView, ...]
    total: int
    """Rounds opened so far."""
