"""Which states the sites of a round are asked to measure now. In memory only: asked for again after a restart."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from commons.names import Digest, RunId


@dataclass
class Probing:
    """Safe for many threads."""

    _asked: tuple[RunId, tuple[Digest, ...]] = (RunId(""), ())
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def ask(self, run: RunId, states: tuple[Digest, ...]) -> None:
        with self._lock:
            self._asked = run, states

    def asked(self, run: RunId) -> tuple[Digest, ...]:
        """In the order in which a site measures them."""
        with self._lock:
            of, states = self._asked
        return states if of == run else ()
