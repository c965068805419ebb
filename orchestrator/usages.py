"""Which device was claimed for which time: the view by which no two usage records are paid for the same device's time.

Folds USAGE and ROUND records. Keeps what a further record may still collide with and forgets the rest, so its size
depends on the sites and not on the journal's length.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from commons.work import UsageNote

CLOCK_SLACK_MS = 300_000
"""How far a site's clock may be off the coordinator's before its usage record is refused."""
DEVICE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_/:.-]{0,63}")


@dataclass(frozen=True, slots=True)
class Claimed:
    """Time of one device that a journaled usage record states; the end is not part of it. Unix ms."""

    started_ms: int
    ended_ms: int
    run: str
    round: int
    site: str


class Usages:
    def __init__(self) -> None:
        self._claimed: dict[str, list[Claimed]] = {}

    def take(self, usage: UsageNote) -> None:
        """A usage record is in the journal. One that claims no time, or names no device, claims nothing."""
        if usage.started_ms == usage.ended_ms:
            return
        claimed = Claimed(usage.started_ms, usage.ended_ms, usage.run, usage.round, usage.site)
        for device in device_ids(usage) or ():
            self._claimed.setdefault(device, []).append(claimed)

    def forget_until(self, now_ms: int) -> None:
        """A new round begins at `now_ms`: what ended before it, by any site's clock, can meet no further record."""
        for device, claimed in list(self._claimed.items()):
            kept = [c for c in claimed if c.ended_ms > now_ms - CLOCK_SLACK_MS]
            if kept:
                self._claimed[device] = kept
            else:
                del self._claimed[device]

    def overlap(self, usage: UsageNote) -> tuple[str, Claimed] | None:
        """The first device of `usage` that a journaled record claims for some of its time, and that claim."""
        for device in device_ids(usage) or ():
            for claimed in self._claimed.get(device, ()):
                if usage.started_ms < claimed.ended_ms and claimed.started_ms < usage.ended_ms:
                    return device, claimed
        return None


def device_ids(usage: UsageNote) -> list[str] | None:
    """The devices a usage record names; None when that is no list of different, well-formed ids."""
    ids = usage.device_ids.split(",")
    if len(set(ids)) != len(ids) or not all(DEVICE_ID.fullmatch(i) for i in ids):
        return None
    return ids
