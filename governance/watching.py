"""Many watchers of one view: it is made once for all of them, and there is room for the dashboards of all partners.

Knows when a view may have changed (`governance.moments`) and nothing of what views say.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from commons.errors import Refusal
from governance.moments import Moments

WATCHERS_MAX = 1024
"""Each watcher holds a thread of the server; a dashboard watches a dozen views."""
WATCHERS_EACH = 48
"""Of one member, site or the operator, so that nobody takes the room of the others."""
PAUSE_S = 0.25
"""A view is made anew at most so often."""
_KEPT_MAX = 256


@dataclass(frozen=True)
class Answer:
    view: bytes
    fresh: bool
    """False: it may have changed already, and was made too short a time ago to be made again."""


@dataclass
class _Kept:
    making: threading.Lock
    view: bytes = b""
    moment: tuple[int, int] | None = None
    made_s: float = 0.0


class Answers:
    """What watchers were last told. Safe to share between threads."""

    def __init__(self, moments: Moments, clock: Callable[[], float] = time.monotonic) -> None:
        self._moments, self._clock = moments, clock
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[str, str, str], _Kept] = OrderedDict()

    def newest(
        self, view: str, key: str, whose: str, make: Callable[[], bytes | Refusal]
    ) -> Answer | Refusal:
        """The view as it is for `whose` (empty: for all); by `make` only where nobody else has made it just now."""
        kept = self._place((view, key, whose))
        with kept.making:
            moment = self._moments.of(view)
            if kept.moment == moment:
                return Answer(kept.view, fresh=True)
            if kept.moment is not None and self._clock() - kept.made_s < PAUSE_S:
                return Answer(kept.view, fresh=False)
            made = make()
            if isinstance(made, Refusal):
                return made
            kept.view, kept.moment, kept.made_s = made, moment, self._clock()
            return Answer(made, fresh=True)

    def _place(self, place: tuple[str, str, str]) -> _Kept:
        with self._lock:
            kept = self._kept.setdefault(place, _Kept(threading.Lock()))
            self._kept.move_to_end(place)
            if len(self._kept) > _KEPT_MAX:
                self._kept.popitem(last=False)
            return kept


class Room:
    """How many watch, in all and each."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._here: Counter[str] = Counter()

    @contextmanager
    def seat(self, who: str) -> Iterator[str]:
        """A seat for one watcher; gives why there is none, or an empty text."""
        with self._lock:
            full = ""
            if self._here[who] >= WATCHERS_EACH:
                full = (
                    f"{who} watches {WATCHERS_EACH} views already; one of these watchers has to leave first"
                )
            elif self._here.total() >= WATCHERS_MAX:
                full = f"{WATCHERS_MAX} watchers are here already; one of them has to leave first"
            else:
                self._here[who] += 1
        try:
            yield full
        finally:
            if not full:
                with self._lock:
                    self._here[who] -= 1
