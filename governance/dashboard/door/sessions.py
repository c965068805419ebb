"""Sessions of signed-in viewers: in memory, bounded, over after a time.

What a browser holds is a random identifier and nothing else; here only its digest is kept. Times are seconds of a
clock that never goes back: a machine whose clock is set does not lengthen or end a session.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from governance.dashboard.viewer import Viewer

IDLE_S = 2 * 3600.0
"""A session that nobody uses ends. What an open page fetches by itself is no use of it."""
WHOLE_S = 12 * 3600.0
"""No session is longer, however busy."""
SESSIONS_MAX = 2000
SESSIONS_OF_ONE_MAX = 16
"""Of one viewer; one more ends the one that was idle for longest."""


@dataclass
class Session:
    key: str = field(repr=False)
    """Digest of the identifier."""
    viewer: Viewer
    bound_to: str
    """What the browser must show again at each request: a certificate's fingerprint; empty: nothing."""
    began_s: float
    seen_s: float
    csrf: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)


class Sessions:
    """For one event loop; nothing here waits."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._held: OrderedDict[str, Session] = OrderedDict()
        """By digest of the identifier, the one that was idle for longest first."""

    def __len__(self) -> int:
        return len(self._held)

    def begin(self, viewer: Viewer, bound_to: str = "") -> str:
        """A new session; its identifier, 256 random bits, never one that a browser came with."""
        now_s = self._clock()
        self._forget_old(now_s)
        own = [key for key, held in self._held.items() if held.viewer == viewer]
        for key in own[: max(0, len(own) - SESSIONS_OF_ONE_MAX + 1)]:
            del self._held[key]
        while len(self._held) >= SESSIONS_MAX:
            self._held.popitem(last=False)
        identifier = secrets.token_urlsafe(32)
        key = _digest(identifier)
        self._held[key] = Session(key, viewer, bound_to, now_s, now_s)
        return identifier

    def find(self, identifier: str, *, used: bool = True) -> Session | None:
        """The session, which has now been `used`; None when it never was, was ended or is over."""
        key, now_s = _digest(identifier), self._clock()
        session = self._held.get(key)
        if session is None:
            return None
        if _over(session, now_s):
            del self._held[key]
            return None
        if used:
            session.seen_s = now_s
            self._held.move_to_end(key)
        return session

    def holds(self, session: Session) -> bool:
        """Whether it has neither been ended nor run out. Does not count as use."""
        return session.key in self._held and not _over(session, self._clock())

    def end(self, session: Session) -> None:
        self._held.pop(session.key, None)

    def _forget_old(self, now_s: float) -> None:
        for key in [key for key, held in self._held.items() if _over(held, now_s)]:
            del self._held[key]


def _over(session: Session, now_s: float) -> bool:
    return now_s - session.seen_s > IDLE_S or now_s - session.began_s > WHOLE_S


def _digest(identifier: str) -> str:
    return hashlib.sha256(identifier.encode()).hexdigest()
