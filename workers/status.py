"""What a site is doing now, as its heartbeats say it: written by the round, read by the heartbeat thread."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from typing import Any, Literal

State = Literal["idle", "verifying", "fetching", "training", "sealing", "uploading", "refused"]


@dataclass(frozen=True)
class Report:
    """One moment of a site. `loss` is the running mean of the round so far in nats per byte."""

    state: State = "idle"
    why: str = ""
    run: str = ""
    round: int = 0
    step: int = 0
    steps: int = 0
    tokens_per_s: float = 0.0
    loss: float | None = None
    bytes_up: int = 0
    """Payload bytes since the process started; `bytes_down` likewise."""
    bytes_down: int = 0
    model_bytes: int = 0
    """Weights, gradients and moments the trainer held in its last round."""


class Status:
    """The latest report. Safe for many threads; never blocks on anything but itself."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._report = Report()
        self._up = self._down = 0

    @property
    def now(self) -> Report:
        return replace(self._report, bytes_up=self._up, bytes_down=self._down)

    def enter(self, state: State, why: str = "") -> None:
        """Change the state; step counters stay until the next round sets them."""
        self.set(state=state, why=why)

    def set(self, **changes: Any) -> None:
        with self._lock:
            self._report = replace(self._report, **changes)

    def moved(self, *, up: int = 0, down: int = 0) -> None:
        with self._lock:
            self._up += up
            self._down += down
