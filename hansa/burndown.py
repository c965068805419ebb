"""A budget burning down, as bars in a terminal: what was left after each round, and what will be at this pace."""

from __future__ import annotations

from collections.abc import Sequence

from commons.written import moneys
from governance.burndown import Level, levels
from governance.forecast import Forecast

ROWS_MAX = 24
WIDTH_MIN, WIDTH_MAX = 10, 60


def chosen(found: Sequence[Level], most: int = ROWS_MAX) -> list[Level]:
    """At most `most` of them, evenly, with the first, the last of what was and the last of all."""
    if len(found) <= most:
        return list(found)
    now = next((n for n, level in enumerate(found) if level.ahead), len(found)) - 1
    evenly = {round(n * (len(found) - 1) / (most - 2)) for n in range(most - 1)}
    return [found[n] for n in sorted(evenly | {max(0, now)})][:most]


def chart(f: Forecast, currency: str) -> str:
    """The chart as text, coloured on a terminal; empty when nothing was charged yet."""
    from rich.bar import Bar
    from rich.console import Console
    from rich.table import Table

    rows = chosen(levels(f))
    if not rows:
        return ""
    size = max(f.available_micro + sum(s.amount_micro for s in f.rounds), 1)
    amounts = [f"{amount} {currency}" for amount in moneys(*(row.left_micro for row in rows))]
    console = Console(highlight=False)
    written = max(len(row.label) for row in rows) + max(map(len, amounts)) + 4
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(width=max(WIDTH_MIN, min(WIDTH_MAX, console.width - written)))
    grid.add_column(justify="right", no_wrap=True)
    for level, amount in zip(rows, amounts, strict=True):
        bar = Bar(size, 0, level.left_micro, color="yellow" if level.ahead else "cyan")
        grid.add_row(level.label, bar, amount, style="dim" if level.ahead else "")
    with console.capture() as captured:
        console.print(grid)
    return captured.get().rstrip("\n")
