"""Validation loss over tokens as a small SVG: lines with their names at their ends, nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape

Points = Sequence[tuple[float, float]]
COLOURS = ("#1b6ca8", "#d1495b", "#2e8b57", "#8e5aa8", "#c77d1e", "#4a4a4a", "#0f9fa8", "#a0522d")
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 760, 420, 60, 190, 34, 44


def svg(title: str, lines: Mapping[str, Points], *, across: str, up: str) -> str:
    """Axes span the data. `across` and `up` name the axes with their units."""
    points = [p for line in lines.values() for p in line]
    low_x, high_x = min(x for x, _ in points), max(x for x, _ in points)
    low_y, high_y = min(y for _, y in points), max(y for _, y in points)

    def place(x: float, y: float) -> tuple[float, float]:
        right = (x - low_x) / (high_x - low_x or 1)
        down = (high_y - y) / (high_y - low_y or 1)
        return LEFT + right * (WIDTH - LEFT - RIGHT), TOP + down * (HEIGHT - TOP - BOTTOM)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif">',
        f'<g font-size="12"><rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="20" font-size="14">{escape(title)}</text>',
        f'<text x="{LEFT}" y="{HEIGHT - 8}">{escape(across)}</text>',
        f'<text x="14" y="{HEIGHT // 2}" transform="rotate(-90 14 {HEIGHT // 2})">{escape(up)}</text>',
    ]
    for n in range(5):
        x, y = low_x + (high_x - low_x) * n / 4, low_y + (high_y - low_y) * n / 4
        at_x, _ = place(x, low_y)
        _, at_y = place(low_x, y)
        parts.append(
            f'<line x1="{LEFT}" y1="{at_y:.1f}" x2="{WIDTH - RIGHT}" y2="{at_y:.1f}" stroke="#ddd"/>'
            f'<text x="{LEFT - 6}" y="{at_y + 4:.1f}" text-anchor="end">{y:.2f}</text>'
            f'<text x="{at_x:.1f}" y="{HEIGHT - 26}" text-anchor="middle">{x:.2g}</text>'
        )
    parts += _drawn(lines, place)
    return "\n".join([*parts, "</g></svg>"]) + "\n"


def _drawn(lines: Mapping[str, Points], place: Callable[[float, float], tuple[float, float]]) -> list[str]:
    """Names are moved apart where line ends are too near to be read."""
    parts, taken = [], -1e9
    ends = sorted(lines.items(), key=lambda item: -item[1][-1][1])
    for number, (name, line) in enumerate(ends):
        colour = COLOURS[number % len(COLOURS)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*p) for p in line))
        x, y = place(*line[-1])
        taken = max(y, taken + 14)
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.8"/>'
            f'<text x="{x + 6:.1f}" y="{taken + 4:.1f}" fill="{colour}">{escape(name)} {line[-1][1]:.3f}</text>'
        )
    return parts
