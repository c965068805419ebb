"""Journal to MLflow, a batch at a time. The journal is the outbox: all that is kept is the cursor.

What was written beyond the cursor by one that was killed is written again, with the same values at the same times, which
changes nothing.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from governance.consortium import Consortium
from governance.tracking.cursor import Cursor, CursorFile
from governance.tracking.items import Item
from governance.tracking.picture import Picture
from governance.tracking.releases import Releases, model_name

if TYPE_CHECKING:
    from governance.tracking.mlflow_store import MlflowStore

BATCH_RECORDS = 256


class Moved(Exception):
    """Somebody else moved the cursor: connect again and go on from there."""


class Feed:
    """Call `connect` and `write` while holding the cursor's lock."""

    def __init__(
        self, consortium: Consortium, file: CursorFile, start: Cursor, limit: int | None = None
    ) -> None:
        """`start`: the cursor of a store that has nothing yet. `limit`: records to stop at; None: goes on with the journal."""
        self._consortium, self._file, self._start, self._limit = consortium, file, start, limit
        self._store: MlflowStore | None = None
        self._cursor: Cursor | None = None
        self._picture = Picture()
        self._items: list[Item] = []
        """Of the batch at hand."""

    @property
    def done(self) -> int:
        """Records that are in MLflow."""
        return self._cursor.next if self._cursor else 0

    @property
    def releases(self) -> Releases:
        """By the journal, as far as it is in MLflow."""
        return self._picture.releases

    def connect(self, store: MlflowStore) -> None:
        """Write to `store` from now on; what it lacks, or is to lose first, is seen to."""
        cursor = self._file.read()
        if cursor is None or cursor.tracking_uri != self._start.tracking_uri or cursor.until > self._size:
            cursor = self._start
        elif store.is_new:
            cursor = replace(self._start, drop=cursor.drop)
        cursor = replace(cursor, dashboard=self._start.dashboard)
        if cursor != self._cursor:
            self._file.write(
                cursor
            )  # before the store is prepared: a new one must never look like one that is done
        store.prepare()
        if cursor.drop:
            founding = self._consortium.members.charters[1]
            store.drop(model_name(founding.consortium.name, founding.model.family))
            cursor = self._start
            self._file.write(cursor)
        if cursor != self._cursor:
            self._fold(cursor)
        self._store = store

    def write(self) -> bool:
        """The next batch; False when there is none. Raises whatever MLflow raises, and Moved; then connect again."""
        assert self._store is not None, "it is connected"
        assert self._cursor is not None, "it is connected"
        if self._file.read() != self._cursor:
            raise Moved
        if self._cursor.next == self._cursor.until and not self._take_batch(self._cursor):
            return False
        self._store.write(self._items)
        self._items = []
        self._move(replace(self._cursor, next=self._cursor.until))
        return True

    @property
    def _size(self) -> int:
        return self._consortium.size if self._limit is None else self._limit

    def _take_batch(self, cursor: Cursor) -> bool:
        until = min(cursor.next + BATCH_RECORDS, self._size)
        if until == cursor.next:
            return False
        self._items = self._folded(cursor.next, until)
        self._move(replace(cursor, until=until))
        return True

    def _fold(self, cursor: Cursor) -> None:
        """The picture at the cursor, and the items of the batch that was interrupted there."""
        self._picture = Picture()
        for index, record in enumerate(self._consortium.journal.records(stop=cursor.next)):
            self._picture.apply(index, record)
        self._items = self._folded(cursor.next, cursor.until)
        self._cursor = cursor

    def _folded(self, start: int, stop: int) -> list[Item]:
        records = enumerate(self._consortium.journal.records(start, stop=stop), start)
        return [item for index, record in records for item in self._picture.apply(index, record)]

    def _move(self, cursor: Cursor) -> None:
        self._file.write(cursor)
        self._cursor = cursor
