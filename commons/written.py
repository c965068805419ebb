"""Money, bytes, spans and moments of time as people read them, in the terminal and in the browser."""

from __future__ import annotations

from datetime import datetime, timezone

_LAST_MS = 253_402_300_799_000
"""The end of the year 9999, where calendars here end."""


def money(micro: int, currency: str = "", *, places: int = 2) -> str:
    """Micro-units with as many decimal places as they need, at least `places`: 1500000 -> "1.50"."""
    sign, whole = ("-" if micro < 0 else ""), abs(micro)
    digits = f"{whole % 1_000_000:06d}".rstrip("0").ljust(places, "0")
    return f"{sign}{whole // 1_000_000}.{digits}{' ' if currency else ''}{currency}"


def moneys(*micros: int) -> list[str]:
    """Amounts for one table: all with the places that the most exact one needs."""
    places = max((len(money(m).partition(".")[2]) for m in micros), default=2)
    return [money(m, places=places) for m in micros]


def size(count: float) -> str:
    """Bytes for a person: 1536 -> "1.5 kB" (powers of 1000)."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError("unreachable")


def duration(seconds: float) -> str:
    """72.4 -> "1 min 12 s"."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def instant(at_ms: int) -> str:
    if at_ms > _LAST_MS:
        return "after the year 9999"
    return datetime.fromtimestamp(at_ms / 1000, timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
