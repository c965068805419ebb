"""`hansa mirror`: compare MLflow with the journal, and make MLflow anew. Beside a running coordinator or without one.

Both hold the cursor's lock, so that the coordinator's mirror waits meanwhile; training does not.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from commons.clock import SystemClock
from commons.errors import HansaError, Unreachable
from commons.identity import load_signer
from governance.consortium import Consortium
from governance.journal import Journal, open_readonly
from governance.tracking.comparing import Finding, compare
from governance.tracking.cursor import CURSOR, Cursor, CursorFile
from governance.tracking.feed import Feed
from governance.tracking.papers import Papers
from governance.tracking.picture import Picture
from governance.tracking.sketch import Sketch
from governance.tracking.trouble import explain

if TYPE_CHECKING:
    from governance.tracking.mlflow_store import MlflowStore

Progress = Callable[[int, int], None]
"""Told how many records of how many are written."""


@dataclass(frozen=True)
class Report:
    tracking_uri: str
    records: int
    """Of the journal."""
    compared: int
    """Of these the mirror has written so far; MLflow was compared with them."""
    runs: int
    points: int
    files: int
    versions: int
    findings: tuple[Finding, ...]


@dataclass(frozen=True)
class _Mirrored:
    """A mirror at rest: the lock is held."""

    consortium: Consortium
    papers: Papers
    file: CursorFile
    cursor: Cursor
    size: int

    def connect(self) -> MlflowStore:
        from governance.tracking.mlflow_store import MlflowStore

        name = self.consortium.charter.consortium.name
        return MlflowStore(self.cursor.tracking_uri, name, self.papers, self.cursor.dashboard)


def verify(home: Path, store: str, mlflow: str) -> Report:
    """Compare all that the mirror has written by its cursor with what MLflow shows.

    `mlflow`: tracking URI; empty: the one that was written to last. Raises HansaError when there is no mirror,
    Unreachable when MLflow cannot be read, StoreError when the journal cannot.
    """
    with _at_rest(home, store, mlflow) as mirrored:
        from governance.tracking.reading import read

        least, most = _sketches(mirrored)
        found = read(mirrored.connect(), most.model)
        return Report(
            tracking_uri=mirrored.cursor.tracking_uri,
            records=mirrored.size,
            compared=mirrored.cursor.next,
            runs=len(found.runs),
            points=sum(len(run.points) for _, run in found.runs),
            files=sum(len(run.files) for _, run in found.runs),
            versions=len(found.versions),
            findings=tuple(compare(least, most, found)),
        )


def rebuild(home: Path, store: str, mlflow: str, progress: Progress) -> int:
    """Drop what MLflow has of this consortium and write all of it anew; the records written.

    Interrupted, it goes on by itself when the coordinator's mirror runs, or when it is asked again. Raises as `verify` does.
    """
    with _at_rest(home, store, mlflow) as mirrored:
        start = Cursor(mirrored.cursor.tracking_uri, dashboard=mirrored.cursor.dashboard)
        mirrored.file.write(Cursor(start.tracking_uri, drop=True, dashboard=start.dashboard))
        feed = Feed(mirrored.consortium, mirrored.file, start, limit=mirrored.size)
        feed.connect(mirrored.connect())
        while feed.write():
            progress(feed.done, mirrored.size)
        return feed.done


def _sketches(mirrored: _Mirrored) -> tuple[Sketch, Sketch]:
    """What must be there, and what may be: they differ by the batch that was being written."""
    sketch, picture, least = Sketch(), Picture(), None
    for index, record in enumerate(mirrored.consortium.journal.records(stop=mirrored.cursor.until)):
        if index == mirrored.cursor.next:
            least = copy.deepcopy(sketch)
        sketch.draw(picture.apply(index, record), mirrored.papers)
    sketch.model = sketch.model or picture.releases.model
    return least or sketch, sketch


@contextmanager
def _at_rest(home: Path, store: str, mlflow: str) -> Iterator[_Mirrored]:
    file = CursorFile(home / CURSOR)
    if not home.is_dir():
        raise HansaError(f"there is no coordinator's home {home}; name it with --home")
    with file.alone(threading.Event()):
        cursor = file.read()
        if mlflow:
            cursor = replace(cursor, tracking_uri=mlflow) if cursor else Cursor(mlflow)
        if cursor is None:
            raise HansaError(
                f"the mirror of {home} has written nothing yet; start the coordinator, or name MLflow's address with --mlflow"
            )
        signer = load_signer(home / "log.key")
        journal = open_readonly(store or home)
        try:
            consortium = Consortium(cast(Journal, journal), SystemClock())  # it is read and never written to
            papers = Papers(consortium, signer)
            yield _Mirrored(consortium, papers, file, cursor, journal.size)
        except HansaError:
            raise
        except Exception as wrong:
            if not _of_mlflow(wrong):
                raise
            raise Unreachable(explain(wrong, cursor.tracking_uri)) from wrong
        finally:
            journal.close()


def _of_mlflow(wrong: Exception) -> bool:
    return type(wrong).__module__.partition(".")[0] in ("mlflow", "requests", "urllib3", "sqlalchemy")
