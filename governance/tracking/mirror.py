"""The mirror: a thread that follows the journal into MLflow, at its own pace.

The journal is the outbox: all the mirror keeps is how far it has come, in a file written after each batch. What a
killed mirror wrote beyond that it writes again, with the same values at the same times, which changes nothing.
Training never waits for it. Delete the cursor file and the MLflow store to have everything written anew.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from commons.records import Record
from governance.consortium import Consortium
from governance.tracking.items import Item
from governance.tracking.training import Training
from governance.tracking.votes import Votes

if TYPE_CHECKING:
    from governance.tracking.mlflow_store import MlflowStore

BATCH_RECORDS = 256
_RETRY_S = (0.5, 1, 2, 5, 10, 30)

log = logging.getLogger(__name__)


class Mirror:
    """Follows `consortium` into the MLflow store at `tracking_uri`. One per journal."""

    def __init__(self, consortium: Consortium, tracking_uri: str, cursor_path: Path) -> None:
        self.tracking_uri = tracking_uri
        self.trouble = ""
        """Why MLflow could not be written to the last time; empty when it could."""
        self._consortium = consortium
        self._cursor_path = cursor_path
        self._moved = threading.Condition()
        self._next = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="mlflow-mirror", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def behind(self) -> int:
        """Records not yet in MLflow."""
        return self._consortium.size - self._next

    def drain(self, timeout_s: float) -> bool:
        """Wait until everything recorded so far is in MLflow; False when that takes longer."""
        size = self._consortium.size
        with self._moved:
            return self._moved.wait_for(lambda: self._next >= size, timeout_s)

    def close(self, timeout_s: float = 5.0) -> None:
        """Stop after the batch at hand, at most `timeout_s`; what is left is written at the next start."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def _follow(self) -> None:
        failures = 0
        while not self._stop.is_set():
            try:
                self._write_until_stopped()
            except Exception as wrong:  # noqa: BLE001 - whatever MLflow, its database or its network raise: try again later
                first = str(wrong).partition("\n")[0]
                if first != self.trouble:
                    log.warning(
                        "MLflow at %s cannot be written now, trying again: %s", self.tracking_uri, first
                    )
                self.trouble = first
                self._stop.wait(_RETRY_S[min(failures, len(_RETRY_S) - 1)])
                failures += 1

    def _write_until_stopped(self) -> None:
        from governance.tracking.mlflow_store import MlflowStore

        while not self._consortium.members.founded:
            if self._stop.wait(0.1):
                return
        store = MlflowStore(self.tracking_uri, self._consortium.charter.consortium.name)
        picture = _Picture()
        done = 0 if store.is_new else self._read_cursor()
        for index, record in enumerate(self._consortium.journal.records(stop=done)):
            picture.apply(index, record)
        self._advance(done)
        while not self._stop.is_set():
            if self._consortium.wait_beyond(self._next, 0.5) > self._next:
                self._write_batch(store, picture)

    def _write_batch(self, store: MlflowStore, picture: _Picture) -> None:
        first = self._next
        batch = list(
            self._consortium.journal.records(first, stop=min(first + BATCH_RECORDS, self._consortium.size))
        )
        items: list[Item] = []
        for index, record in enumerate(batch, first):
            items += picture.apply(index, record)
        store.write(items)
        self.trouble = ""
        self._advance(first + len(batch))

    def _advance(self, done: int) -> None:
        write_cursor(self._cursor_path, done, self.tracking_uri)
        with self._moved:
            self._next = done
            self._moved.notify_all()

    def _read_cursor(self) -> int:
        """How far this store has come; 0 for another store, another journal or no cursor."""
        try:
            found = json.loads(self._cursor_path.read_text())
            done, uri = int(found["next"]), found["tracking_uri"]
        except (OSError, ValueError, KeyError, TypeError):
            return 0
        return done if uri == self.tracking_uri and 0 <= done <= self._consortium.size else 0


class _Picture:
    def __init__(self) -> None:
        self._training = Training()
        self._votes = Votes()

    def apply(self, index: int, record: Record) -> list[Item]:
        return [*self._training.apply(index, record), *self._votes.apply(index, record)]


def write_cursor(path: Path, done: int, tracking_uri: str) -> None:
    """Atomic; losing it costs time, never content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps({"next": done, "tracking_uri": tracking_uri}))
    os.replace(part, path)
