"""Who is here now: open work streams and the last heartbeat of every site. In memory only, never a truth.

Owns presence; everything durable about a site is in the journal.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from commons.clock import Clock
from commons.names import SiteId
from governance.bell import Bell

GONE_AFTER_MS = 10_000
"""Silence after which a connected site is shown as gone."""
BLINK_MS = 3_000
"""A stream that is opened again within this time was never away."""
WHY_CHARS_MAX = 300
WORKING = frozenset({"verifying", "fetching", "training", "sealing", "uploading"})
"""What a site says of itself while it is at an order."""


@dataclass(frozen=True)
class Beat:
    """What a site last said of itself."""

    run: str = ""
    round: int = 0
    state: str = "idle"
    why: str = ""
    step: int = 0
    steps: int = 0
    tokens_per_s: float = 0.0
    loss: float | None = None
    bytes_up: int = 0
    bytes_down: int = 0
    model_bytes: int = 0


@dataclass(frozen=True)
class Presence:
    stream: int = 0
    """Number of the site's newest work stream; 0: none is open."""
    left_ms: int = 0
    """When the last stream ended."""
    beat: Beat = field(default_factory=Beat)
    beat_ms: int = 0


class Live:
    """Safe for many threads. `bell` rings when a site comes or goes or refuses, `pulse` on every heartbeat."""

    def __init__(self, clock: Clock, bell: Bell, pulse: Bell) -> None:
        self._clock, self._bell, self._pulse = clock, bell, pulse
        self._since_ms = clock.now_ms()
        self._lock = threading.Lock()
        self._sites: dict[SiteId, Presence] = {}
        self._streams = 0
        self._fetched = 0
        self._norms: dict[SiteId, float] = {}
        self.trouble = ""
        """What holds up the run at the coordinator itself, such as a full disk; empty when nothing does."""

    def weighed(self, site: SiteId, norm: float) -> None:
        """The L2 norm of an update that is about to be admitted."""
        with self._lock:
            self._norms[site] = norm

    def norm(self, site: SiteId) -> float | None:
        """Of its last one since this coordinator started; None: there was none."""
        with self._lock:
            return self._norms.get(site)

    @contextmanager
    def stream(self, site: SiteId) -> Iterator[int]:
        """Hold while a work stream is open; yields its number, by which `is_newest` knows it."""
        with self._lock:
            self._streams += 1
            number = self._streams
            self._sites[site] = replace(self._sites.get(site, Presence()), stream=number)
        self._changed()
        try:
            yield number
        finally:
            with self._lock:
                if self._sites[site].stream == number:
                    left = self._clock.now_ms()
                    self._sites[site] = replace(self._sites[site], stream=0, left_ms=left)
            self._changed()

    def is_newest(self, site: SiteId, stream: int) -> bool:
        with self._lock:
            return self._sites[site].stream == stream

    def beat(self, site: SiteId, beat: Beat) -> None:
        now_ms = self._clock.now_ms()
        kept = replace(beat, why=beat.why[:WHY_CHARS_MAX])
        with self._lock:
            before = self._sites.get(site, Presence())
            self._sites[site] = replace(before, beat=kept, beat_ms=now_ms)
        if kept.state == "refused" and before.beat != kept:
            self._bell.ring()
        self._pulse.ring()

    def present(self) -> set[SiteId]:
        """Sites with an open work stream, or whose stream ended less than `BLINK_MS` ago."""
        recent = self._clock.now_ms() - BLINK_MS
        with self._lock:
            return {s for s, p in self._sites.items() if p.stream or p.left_ms > recent}

    def refusing(self, run: str, number: int) -> dict[SiteId, str]:
        """Sites that said they will not do this round's work, and why."""
        with self._lock:
            return {
                site: presence.beat.why or "it gave no reason"
                for site, presence in self._sites.items()
                if (presence.beat.state, presence.beat.run, presence.beat.round) == ("refused", run, number)
            }

    def of(self, site: SiteId) -> Presence:
        with self._lock:
            return self._sites.get(site, Presence())

    def is_silent(self, site: SiteId) -> bool:
        """Connected, but not heard of for `GONE_AFTER_MS`."""
        found = self.of(site)
        return bool(found.beat_ms) and self._clock.now_ms() - found.beat_ms > GONE_AFTER_MS

    def working(self, run: str, number: int) -> set[SiteId]:
        """Sites that are heard of and say that they are at this round's work."""
        with self._lock:
            said = {
                site
                for site, presence in self._sites.items()
                if presence.stream and (presence.beat.run, presence.beat.round) == (run, number)
            }
        return {site for site in said if self.of(site).beat.state in WORKING and not self.is_silent(site)}

    def maybe_working(self, run: str, number: int, sites: Collection[SiteId]) -> set[SiteId]:
        """Those of `sites` that are `working`, or that this process, young as it is, had no chance yet to hear of."""
        young = self._clock.now_ms() - self._since_ms < GONE_AFTER_MS
        unheard = {site for site in sites if young and not self.of(site).beat_ms}
        return unheard | self.working(run, number).intersection(sites)

    def count_fetched(self, payload_bytes: int) -> None:
        with self._lock:
            self._fetched += payload_bytes

    def take_fetched(self) -> int:
        """Bytes sites fetched since this was last asked."""
        with self._lock:
            fetched, self._fetched = self._fetched, 0
            return fetched

    def _changed(self) -> None:
        self._bell.ring()
        self._pulse.ring()
