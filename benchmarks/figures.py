"""A measured figure, its target, and the page that shows all of them.

Results are one JSON file per area under `benchmarks/results`; `docs/benchmarks.md` is generated from these and from
nothing else. A missed figure stands there like a met one.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "benchmarks.md"
TITLES = {
    "demo": "The main job",
    "ledger": "Journal and ledger",
    "dataplane": "Data plane",
    "learning": "Learning",
    "governance": "Governance",
    "dashboard": "Dashboard",
}
HEAD = """# Benchmarks

Generated from `benchmarks/results/*.json` by `hansa bench`; do not edit. Every figure names the command that measures it
again. Machines are noisy: read ratios before seconds. Nothing here was measured on a GPU.
"""


@dataclass(frozen=True)
class Figure:
    figure: str
    value: float | str
    unit: str
    target: str
    met: bool | None
    """None: reported, with no target."""
    command: str


def save(
    name: str, figures: Sequence[Figure], *, notes: Sequence[str] = (), tables: Sequence[str] = ()
) -> Path:
    """Write `results/NAME.json` and the page anew."""
    assert name in TITLES, f"give {name} a title"
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    content: dict[str, Any] = {
        "machine": machine(),
        "figures": [asdict(f) for f in figures],
        "tables": list(tables),
        "notes": list(notes),
    }
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    PAGE.write_text(page())
    return path


def measured_before(name: str, command: str) -> list[Figure]:
    """The figures that this command measured, as they stand in the results."""
    path = RESULTS / f"{name}.json"
    known = json.loads(path.read_text())["figures"] if path.exists() else []
    return [Figure(**figure) for figure in known if figure["command"] == command]


def page() -> str:
    """docs/benchmarks.md, from the results that are there."""
    parts = [HEAD]
    for name, title in TITLES.items():
        path = RESULTS / f"{name}.json"
        if path.exists():
            parts.append(_section(title, json.loads(path.read_text())))
    return "\n".join(parts)


def machine() -> str:
    """Processor, cores, memory and versions: what a figure depends on."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [
            line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line
        ]
        model = names[0] if names else model
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{model}, {os.cpu_count()} cores, {memory:.0f} GiB, Python {platform.python_version()}"


def _section(title: str, found: dict[str, Any]) -> str:
    lines = [f"## {title}", "", f"On {found['machine']}.", ""]
    lines += ["| figure | measured | target | met | command |", "|---|---|---|---|---|"]
    for f in found["figures"]:
        value = (
            f["value"]
            if isinstance(f["value"], str)
            else f"{f['value']:,.4g}"
            if isinstance(f["value"], float) and f["value"] < 1e6
            else f"{f['value']:,.0f}"
        )
        met = {True: "yes", False: "**no**", None: ""}[f["met"]]
        lines.append(f"| {f['figure']} | {value} {f['unit']} | {f['target']} | {met} | `{f['command']}` |")
    for table in found["tables"]:
        lines += ["", table.strip()]
    if found["notes"]:
        lines += ["", *(f"- {note}" for note in found["notes"])]
    return "\n".join(lines) + "\n"
