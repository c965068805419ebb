"""Charts drawn on the server as SVG: no style attribute, colours by class, a title for whoever cannot see them."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup


def sparkline(values: Sequence[float | None], title: str, width: int = 240, height: int = 48) -> Markup:
    """A line through the values that are known, from the first to the last; empty for fewer than two."""
    known = [(n, v) for n, v in enumerate(values) if v is not None]
    if len(known) < 2:
        return Markup("")
    low, high = min(v for _, v in known), max(v for _, v in known)
    span, last = (high - low) or 1.0, known[-1][0] or 1
    points = [(4 + n / last * (width - 8), 4 + (high - v) / span * (height - 8)) for n, v in known]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    x, y = points[-1]
    return Markup(
        '<svg class="spark" viewBox="0 0 {} {}" role="img" aria-label="{}"><polyline points="{}"/>'
        '<circle cx="{:.1f}" cy="{:.1f}" r="3"/></svg>'
    ).format(width, height, title, line, x, y)


def stack(
    parts: Sequence[tuple[str, int]], title: str, *, total: int = 0, mark: float | None = None
) -> Markup:
    """A bar of (class, amount) side by side; `total`: what the whole width is, at least their sum. `mark`: an amount at
    which a line stands."""
    whole = max(total, sum(amount for _, amount in parts)) or 1
    rects, at = [], 0.0
    for name, amount in parts:
        width = 100 * amount / whole
        rects.append(
            Markup('<rect class="{}" x="{:.3f}" y="0" width="{:.3f}" height="8"/>').format(name, at, width)
        )
        at += width
    if mark is not None:
        rects.append(
            Markup('<rect class="mark" x="{:.3f}" y="0" width="0.6" height="8"/>').format(100 * mark / whole)
        )
    return Markup(
        '<svg class="stack" viewBox="0 0 100 8" preserveAspectRatio="none" role="img" aria-label="{}">{}</svg>'
    ).format(title, Markup("").join(rects))
