"""`hansa journal fsck`: the audit of a whole journal, shown while it goes on, and its report as a person reads it."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from commons.errors import StoreError

if TYPE_CHECKING:
    from governance.fsck import FsckReport, Progress

_STEPS = {"hashes": "Hashing every record again", "rules": "Replaying the rules"}


def audit(
    home: Path, store: str, tiles: Path | None, states: Path | None = None, lodged: Sequence[Path] = ()
) -> FsckReport:
    """Audit the journal in `home` or `store`; a terminal shows how far it is. `lodged`: files of ballots that sites keep.

    Raises StoreError when there is no journal, ConfigError for a file that is no lodged ballot.
    """
    from commons.states import StateStore
    from governance.fsck import fsck
    from hansa.charter_proofs import read_lodged

    if states is not None and not states.is_dir():
        raise StoreError(f"there are no model states in {states}")
    with _progress() as progress:
        kept = StateStore(states) if states is not None else None
        return fsck(store or home, tiles=tiles, states=kept, lodged=read_lodged(lodged), progress=progress)


def facts(report: FsckReport) -> dict[str, Any]:
    """The report as a program reads it."""
    return {
        "clean": report.clean,
        "journal": report.location,
        "records": report.records,
        "judged": report.judged,
        "tiles": report.tiles,
        "remade": report.remade,
        "findings": [vars(finding) for finding in report.findings],
    }


def text(report: FsckReport) -> list[str]:
    """The report as a person reads it."""
    size = f"{report.records} record{'' if report.records == 1 else 's'}"
    tiles = f"; the tiles are the first {report.tiles} of them" if report.tiles is not None else ""
    remade = f"; {report.remade} re-made states were computed again" if report.remade else ""
    if report.clean:
        return [
            f"The journal {report.location} is in order: {size}, every hash and every rule{tiles}{remade}."
        ]
    lines = [f"The journal {report.location} is not in order: {len(report.findings)} findings in {size}."]
    for found in report.findings:
        more = f" ({found.further} more like it follow)" if found.further else ""
        lines += ["", f"{found.rule}: {found.what}{more}.", f"  What to do: {found.act}."]
    if report.judged < report.records:
        lines += ["", f"The rules could only be applied to the first {report.judged} records."]
    return lines


@contextmanager
def _progress() -> Iterator[Progress | None]:
    """A bar on stderr while a person looks on; nothing otherwise."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress as Bars

    with Bars(console=Console(stderr=True), transient=True) as bars:
        tasks = {step: bars.add_task(title, total=None) for step, title in _STEPS.items()}
        yield lambda step, done, size: bars.update(tasks[step], completed=done, total=size)
