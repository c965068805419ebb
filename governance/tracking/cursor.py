"""How far the mirror has come, in a file, and the lock that lets one process at a time write to MLflow or compare it.

The lock is held for a batch, never for longer than a comparison or a rebuild takes; only the mirror waits for it.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from commons.errors import StoreError

CURSOR = "mlflow.cursor"
"""Its name in the coordinator's home."""
_LOOK_S = 0.1


@dataclass(frozen=True)
class Cursor:
    tracking_uri: str
    next: int = 0
    """Records that are wholly in MLflow."""
    until: int = 0
    """Where the batch ends that is being written: of the records from `next` on, MLflow may have some."""
    drop: bool = False
    """What MLflow has is to be dropped before anything is written."""
    dashboard: str = ""
    """Address that runs link to."""


class CursorFile:
    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> Cursor | None:
        """None when there is none that can be read."""
        try:
            found = json.loads(self._path.read_text())
            return Cursor(
                str(found["tracking_uri"]),
                int(found["next"]),
                int(found.get("until", found["next"])),
                bool(found.get("drop", False)),
                str(found.get("dashboard", "")),
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def write(self, cursor: Cursor) -> None:
        """Atomic; losing it costs time, never content."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        part = self._path.with_name(self._path.name + ".part")
        part.write_text(json.dumps(asdict(cursor)))
        os.replace(part, self._path)

    @contextmanager
    def alone(self, stop: threading.Event) -> Iterator[bool]:
        """Hold the lock for the block; False when `stop` was set before it was free. Raises StoreError."""
        path = self._path.with_suffix(".lock")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("a")
        except OSError as error:
            raise StoreError(
                f"cannot use {path}: {error.strerror}; whoever runs the coordinator may"
            ) from error
        with file:
            while not _taken(file.fileno()):
                if stop.wait(_LOOK_S):
                    yield False
                    return
            yield True


def _taken(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
