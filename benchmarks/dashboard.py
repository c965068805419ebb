"""The dashboard: how soon a page is there and current, what it weighs, what open pages cost the coordinator."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from benchmarks.dashboard_parts.pages import PAGES_OPEN, Pages, measure
from benchmarks.dashboard_parts.stage import SITES
from benchmarks.figures import Figure, save

COMMAND, LONG = "hansa bench dashboard", "hansa bench dashboard --long"
RECORDS, RECORDS_LONG = 20_000, 1_000_000
PAINT_MS, WEIGHT_KB, UPDATE_MS, COST_PERCENT = 300, 300, 1000, 5
NOTES = (
    (
        f"A real coordinator (SQLite) over a journal of charges and of a run of which 100 rounds are closed, {SITES} members "
        "with a site each that all say every two seconds where they are, a record every second; the dashboard as its own "
        "process, with a session as people have one; Debian's Chromium, headless, on the same two cores. The sites' work is "
        "pretended inside the coordinator's process, so that their connections are not in its figures."
    ),
    (
        "First paint: first contentful paint of Overview, cache emptied before each of nine loads. Weight: all bytes over the "
        "wire of the heaviest page with an empty cache, scripts and charts too. Live update: from a record's commit in the "
        "coordinator to the page's own clock when the part that counts it was swapped, fifteen records."
    ),
    (
        f"{PAGES_OPEN} open pages: as many event streams over eight different pages, held open and read; cost is what the "
        "coordinator takes of one core above what it takes with no dashboard at all. Not in it: browsers."
    ),
)


def main(work: Path, *, long: bool = False) -> list[Figure]:
    """Measure what is not yet in `work`, write `results/dashboard.json`, answer the figures."""
    short = _kept(work, RECORDS)
    whole = _kept(work, RECORDS_LONG) if long or (work / f"{RECORDS_LONG}.json").exists() else None
    figures = [*_figures(short, COMMAND), *(_figures(whole, LONG) if whole else ())]
    save("dashboard", figures, notes=NOTES)
    return figures


def _figures(p: Pages, command: str) -> list[Figure]:
    of = f"{p.records:,} records, {SITES} sites"
    cost = p.open_percent - p.idle_percent
    within = cost < COST_PERCENT and p.opened == PAGES_OPEN
    return [
        Figure(
            f"{of}: first paint of Overview", round(p.paint_ms), "ms", f"< {PAINT_MS}", p.paint_ms < PAINT_MS, command
        ),
        Figure(f"{of}: the slowest of nine first paints", round(p.paint_worst_ms), "ms", "", None, command),
        Figure(
            f"{of}: weight of the heaviest page ({p.heaviest})", round(p.weight_kb), "kB", f"< {WEIGHT_KB}",
            p.weight_kb < WEIGHT_KB, command,
        ),
        Figure(
            f"{of}: a record reaches the open page, slowest of fifteen", round(p.update_worst_ms), "ms",
            f"< {UPDATE_MS}", p.update_worst_ms < UPDATE_MS, command,
        ),
        Figure(f"{of}: a record reaches the open page, median", round(p.update_ms), "ms", "", None, command),
        Figure(
            f"{of}: what {p.opened} open pages cost the coordinator", round(cost, 1), "% of a core",
            f"< {COST_PERCENT} % with {PAGES_OPEN}", within, command,
        ),
        Figure(f"{of}: what these pages are told", round(p.events_per_s), "events/s", "", None, command),
        Figure(f"{of}: what they cost the dashboard's own process", round(p.dashboard_percent), "% of a core", "", None, command),
        Figure(f"{of}: start of the coordinator, its journal replayed", round(p.start_s, 1), "s", "", None, command),
    ]  # fmt: skip


def _kept(work: Path, records: int) -> Pages:
    """What was measured before, or is measured now."""
    path = work / f"{records}.json"
    if not path.exists():
        (work / str(records)).mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(measure(work / str(records), records))))
    return Pages(**json.loads(path.read_text()))
