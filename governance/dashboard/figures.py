"""Numbers and moments as pages show them: filters of the templates."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from typing import Any

from markupsafe import Markup

DASH = "–"
"""For what is not known."""


def count(value: float | None) -> str:
    """1234567 -> "1,234,567"."""
    return DASH if value is None else f"{value:,.0f}"


def short_count(value: float | None) -> str:
    """1234567 -> "1.23 M"."""
    if value is None:
        return DASH
    for limit, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            return f"{value / (limit if unit != 'k' else 1e3):.3g} {unit}"
    return f"{value:,.0f}"


def loss(value: float | None) -> str:
    """Nats per byte."""
    return DASH if value is None else f"{value:.4f}"


def ppm(value: int | None) -> str:
    """Parts per million as a percentage with its sign."""
    return DASH if value is None else f"{value / 10_000:+.2f} %"


def digest(value: str) -> str:
    """Enough of a digest to be found."""
    return value.removeprefix("sha256:")[:12]


def key_name(vkey: str) -> str:
    """Name and hash of a verifier key."""
    return "+".join(vkey.split("+")[:2])


def when(at_ms: int | None) -> Markup | str:
    """A moment, in UTC; where scripts run it also says how long ago, and the viewer's own time on hovering."""
    if not at_ms:
        return DASH
    try:
        at = datetime.fromtimestamp(at_ms / 1000, timezone.utc)
    except (ValueError, OverflowError, OSError):
        return "after the year 9999"
    return Markup('<time datetime="{}">{} UTC</time>').format(
        at.isoformat(timespec="milliseconds").replace("+00:00", "Z"), at.strftime("%Y-%m-%d %H:%M:%S")
    )


def tojson_plain(value: Any) -> str:
    """A value of the charter as its JSON, for reading."""
    return json.dumps(value, ensure_ascii=False)


def days(seconds: float) -> str:
    """A span that may be long: 93600 -> "1 d 2 h"."""
    rest = round(seconds)
    parts: list[str] = []
    for unit, name in ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s")):
        value, rest = divmod(rest, unit)
        if value or (unit == 1 and not parts):
            parts.append(f"{value} {name}")
    return " ".join(parts[:2])


FILTERS: dict[str, Any] = {
    "tojson_plain": tojson_plain,
    "count": count,
    "short_count": short_count,
    "loss": loss,
    "ppm": ppm,
    "digest": digest,
    "key_name": key_name,
    "when": when,
    "days": days,
}
