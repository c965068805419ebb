"""Matrices as pictures: who owns which expert, and which text goes to which. A path for each shade, so that they stay small."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from markupsafe import Markup

CELL = 20
CHARS_MAX = 20
"""Of a name."""
SHADES = 8
"""Besides none at all."""
TITLED_MAX = 900
"""Cells that can be pointed at; above it the table below has to do."""


def ownership(owners: Sequence[tuple[str, str | None]], sites: Sequence[str]) -> Markup:
    """A row for each site, a column for each expert, a mark where they belong together."""
    experts = [expert for expert, _ in owners]
    cells = {(sites.index(site), n): SHADES for n, (_, site) in enumerate(owners) if site in sites}
    titles = {
        (sites.index(site), n): f"{expert} is trained by {site}"
        for n, (expert, site) in enumerate(owners)
        if site in sites
    }
    return _matrix(sites, experts, cells, titles, "Which site trains which expert")


def heat_map(routed: Mapping[str, Mapping[str, int]], experts: Sequence[str]) -> Markup:
    """A row for each domain, darker where more of its tokens went. Empty when no token was told."""
    domains = [domain for domain, to in routed.items() if any(to.values())]
    cells: dict[tuple[int, int], int] = {}
    titles: dict[tuple[int, int], str] = {}
    for row, domain in enumerate(domains):
        total = sum(routed[domain].values())
        for column, expert in enumerate(experts):
            share = routed[domain].get(expert, 0) / total
            cells[row, column] = min(SHADES, round(share**0.5 * SHADES))
            titles[row, column] = f"{domain} to {expert}: {100 * share:.1f} %"
    return _matrix(domains, experts, cells, titles, "Share of each domain's tokens that went to each expert")


def _matrix(
    rows: Sequence[str],
    columns: Sequence[str],
    cells: Mapping[tuple[int, int], int],
    titles: Mapping[tuple[int, int], str],
    said: str,
) -> Markup:
    if not rows or not columns:
        return Markup("")
    rows, columns = [name[:CHARS_MAX] for name in rows], [name[:CHARS_MAX] for name in columns]
    left, top = 20 + round(6.2 * max(map(len, rows))), 16 + round(4.8 * max(map(len, columns)))
    width, height = left + CELL * len(columns) + 70, top + CELL * len(rows) + 2
    drawn = [
        Markup('<text class="end" x="{}" y="{}">{}</text>').format(left - 8, top + CELL * n + 14, name)
        for n, name in enumerate(rows)
    ]
    drawn += [
        Markup('<text transform="translate({} {}) rotate(-50)">{}</text>').format(
            left + CELL * n + 13, top - 6, name
        )
        for n, name in enumerate(columns)
    ]
    drawn.append(
        Markup('<rect class="shade0" x="{}" y="{}" width="{}" height="{}"/>').format(
            left, top, CELL * len(columns), CELL * len(rows)
        )
    )
    for shade in range(1, SHADES + 1):
        here = [place for place, found in cells.items() if found == shade]
        if here:
            drawn.append(Markup('<path class="shade{}" d="{}"/>').format(shade, _squares(here, left, top)))
    if len(titles) <= TITLED_MAX:
        drawn += [
            Markup(
                '<rect class="touch" x="{}" y="{}" width="{}" height="{}"><title>{}</title></rect>'
            ).format(left + CELL * column, top + CELL * row, CELL, CELL, title)
            for (row, column), title in titles.items()
        ]
    return Markup(
        '<svg class="matrix" width="{}" height="{}" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>'
    ).format(width, height, width, height, said, Markup("").join(drawn))


def _squares(places: Sequence[tuple[int, int]], left: int, top: int) -> str:
    side = CELL - 2
    return "".join(f"M{left + CELL * c + 1} {top + CELL * r + 1}h{side}v{side}h-{side}z" for r, c in places)
