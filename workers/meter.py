"""What a round took at this site: the facts that its usage record states.

Owns one small file, so that a site killed in the middle of a round still says when its work began. Knows nothing of
prices; those are the charter's.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from commons.clock import Clock
from commons.identity import write_file


@dataclass(frozen=True)
class Usage:
    started_ms: int
    """When work under this lease began, in any process of this site (Unix ms)."""
    ended_ms: int
    device_ms: int
    """Time the device worked in the process that finished: what a killed process had done is not charged."""


class Meter:
    """One clock per lease. `begin` and `end` of the same lease may be repeated by a restarted process."""

    def __init__(self, path: Path, clock: Clock) -> None:
        self._path, self._clock = path, clock
        self._lease, self._started_ms, self._here_ms = "", 0, 0

    def begin(self, lease: str) -> None:
        """Work under `lease` begins, or goes on. Raises HansaError when the disk refuses."""
        now_ms = self._clock.now_ms()
        self._lease, self._here_ms = lease, now_ms
        self._started_ms = self._earlier_start(lease) or now_ms
        write_file(self._path, json.dumps({"lease": lease, "started_ms": self._started_ms}).encode())

    def end(self) -> Usage:
        """Work under the lease of the last `begin` is done. Time that ran backwards counts as none."""
        assert self._lease, "end() before begin()"
        ended_ms = max(self._clock.now_ms(), self._started_ms)
        return Usage(self._started_ms, ended_ms, max(0, ended_ms - self._here_ms))

    def _earlier_start(self, lease: str) -> int | None:
        try:
            kept = json.loads(self._path.read_bytes())
            return int(kept["started_ms"]) if kept["lease"] == lease else None
        except (OSError, ValueError, KeyError, TypeError):
            return None  # no round yet, or a file of no use: this lease begins now
