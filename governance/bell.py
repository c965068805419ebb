"""How waiting threads learn that something changed, without polling.

A bell carries no news: who wakes looks at the state again. It may be rung under any lock.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Collection

from commons.records import Kind, Record


class Bell:
    """Counts its strokes. As a view of the journal it rings for every record."""

    def __init__(self) -> None:
        self._strokes = 0
        self._kinds: Counter[Kind] = Counter()
        self._rung = threading.Condition()

    def ring(self) -> None:
        with self._rung:
            self._strokes += 1
            self._rung.notify_all()

    def apply(self, index: int, record: Record) -> None:
        self._kinds[record.kind] += 1
        self.ring()

    def count(self, kinds: Collection[Kind]) -> int:
        """Records of these kinds it rang for."""
        return sum(self._kinds[kind] for kind in kinds)

    @property
    def strokes(self) -> int:
        """Read it before looking at the state, then wait beyond it: nothing is missed."""
        with self._rung:
            return self._strokes

    def wait_beyond(self, strokes: int, timeout_s: float | None = None) -> int:
        """Wait for a stroke after `strokes`, at most `timeout_s`; the strokes so far."""
        with self._rung:
            self._rung.wait_for(lambda: self._strokes > strokes, timeout_s)
            return self._strokes
