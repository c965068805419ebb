"""`hansa mirror`: the comparison of MLflow with the journal as a person reads it, and a rebuild shown while it goes on."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from governance.tracking import checking
from governance.tracking.checking import Progress, Report
from governance.tracking.trouble import shown

LISTED_MAX = 50


def verify(home: Path, store: str, mlflow: str) -> Report:
    """Raises HansaError as `checking.verify` does."""
    return checking.verify(home, store, mlflow)


def rebuild(home: Path, store: str, mlflow: str) -> int:
    """The records written; a terminal shows how far it is. Raises HansaError as `checking.rebuild` does."""
    with _progress() as progress:
        return checking.rebuild(home, store, mlflow, progress)


def facts(report: Report) -> dict[str, Any]:
    """The report as a program reads it."""
    counts = Counter(finding.kind for finding in report.findings)
    return {
        "clean": not report.findings,
        "mlflow": shown(report.tracking_uri),
        "records": report.records,
        "compared": report.compared,
        "runs": report.runs,
        "points": report.points,
        "files": report.files,
        "versions": report.versions,
        **{kind: counts[kind] for kind in ("missing", "duplicate", "different", "foreign")},
        "findings": [vars(finding) for finding in report.findings],
    }


def text(report: Report) -> list[str]:
    """The report as a person reads it."""
    where, found = shown(report.tracking_uri), report.findings
    size = (
        f"{report.runs} runs, {report.points} points, {report.files} files, {report.versions} model versions"
    )
    lines = [f"MLflow at {where} shows what the journal says: {size}."]
    if found:
        counts = Counter(finding.kind for finding in found)
        named = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
        lines = [f"MLflow at {where} does not show what the journal says: {named}.", ""]
        lines += [f"  {f.kind:9}  {f.where}: {f.what}" for f in found[:LISTED_MAX]]
        if len(found) > LISTED_MAX:
            lines.append(f"  and {len(found) - LISTED_MAX} more (--json names all)")
        lines += ["", "The journal is the truth; `hansa mirror rebuild` makes MLflow show it again."]
    if report.compared < report.records:
        behind = report.records - report.compared
        lines.append(f"The last {behind} of {report.records} records are still to be written there.")
    return lines


@contextmanager
def _progress() -> Iterator[Progress]:
    """A bar on stderr while a person looks on; nothing otherwise."""
    if not sys.stderr.isatty():
        yield lambda _, __: None
        return
    from rich.console import Console
    from rich.progress import Progress as Bars

    with Bars(console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("Writing to MLflow", total=None)
        yield lambda done, size: bars.update(task, completed=done, total=size)
