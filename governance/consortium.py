"""The consortium's state in one process: a journal, the views folded from it, and the one door to change both.

Every change is `commit(decide)`: `decide` looks at the views and answers with records or a refusal; the records
become durable; then, and only then, the views fold them. Knows no rule of its own.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from commons.charter import Charter
from commons.clock import Clock
from commons.errors import Refusal, StoreError
from commons.records import Record
from governance.claims import Claims
from governance.journal import Journal
from governance.ledger import Ledger
from governance.ledger.contributions import contributed
from governance.members import Members
from governance.pausing import Pauses
from governance.proposals import Proposals
from governance.statements.book import Book


class View(Protocol):
    """State folded from records, in order, each exactly once."""

    def apply(self, index: int, record: Record) -> None: ...


@dataclass(frozen=True)
class Receipt:
    """That a record stands in the journal: verify the path of its leaf against the checkpoint's root."""

    index: int
    leaf: bytes
    checkpoint: bytes
    path: list[bytes]


class Consortium:
    """Single writer; safe to call from any thread. Views may only be read while holding `lock`."""

    def __init__(self, journal: Journal, clock: Clock) -> None:
        """Replay the journal. Raises StoreError naming the record that cannot be read or folded."""
        self.journal = journal
        self.lock = threading.RLock()
        self.members = Members()
        self.ledger = Ledger()
        self.proposals = Proposals(partial(contributed, self.ledger))
        self.pauses = Pauses()
        self.claims = Claims()
        self.book = Book()
        self._clock = clock
        self._grown = threading.Condition(self.lock)
        self._views: list[View] = []
        self._last_ms = 0
        self._broken = ""
        self._replay((self.members, self.ledger, self.proposals, self.pauses, self.claims, self.book))

    @property
    def charter(self) -> Charter:
        """The charter in force."""
        with self.lock:
            return self.members.charter

    @property
    def size(self) -> int:
        """Number of records."""
        return self.journal.size

    @property
    def last_ms(self) -> int:
        """When the last record was made."""
        return self._last_ms

    def now_ms(self) -> int:
        """The clock, but never before the last record."""
        with self.lock:
            return max(self._clock.now_ms(), self._last_ms)

    def follow(self, *views: View) -> None:
        """Bring `views` up to date by one replay, then keep them so. They are folded under `lock`."""
        with self.lock:
            self._replay(views)

    def commit(self, decide: Callable[[int], Sequence[Record] | Refusal]) -> list[int] | Refusal:
        """Ask `decide(now_ms)`, append what it answers and fold it; the new records' indices, or the refusal.

        `now_ms` never falls. No records: an empty list and nothing happens. When `decide` raises, or the store
        fails (StoreError), journal and views are as before.
        """
        with self.lock:
            if self._broken:
                raise StoreError(self._broken)
            decided = decide(self.now_ms())
            if isinstance(decided, Refusal):
                return decided
            times = [self._last_ms, *(record.at_ms for record in decided)]
            assert times == sorted(times), "records are dated in the order they stand"
            indices = self.journal.append(decided)
            self._fold(self._views, zip(indices, decided, strict=True))
            if indices:
                self._grown.notify_all()
            return indices

    def wait_beyond(self, size: int, timeout_s: float) -> int:
        """Wait until the journal has more than `size` records, at most `timeout_s`; its size then."""
        deadline = time.monotonic() + timeout_s
        with self._grown:
            while self.journal.size <= size and (left := deadline - time.monotonic()) > 0:
                self._grown.wait(left)
            return self.journal.size

    def receipt(self, index: int) -> Receipt:
        """Checkpoint over everything so far and the path of record `index` to its root."""
        with self.lock:
            leaf = self.journal.record(index).leaf
            path = self.journal.inclusion(index, self.journal.size)
            return Receipt(index, leaf, self.journal.checkpoint(), path)

    def _replay(self, views: Sequence[View]) -> None:
        self._fold(views, enumerate(self.journal.records()))
        self._views += views

    def _fold(self, views: Sequence[View], records: Iterable[tuple[int, Record]]) -> None:
        """A view that fails leaves the others ahead of it: nothing may be committed after that."""
        try:
            for index, record in records:
                for view in views:
                    view.apply(index, record)
                self._last_ms = record.at_ms
        except BaseException as wrong:
            self._broken = f"the coordinator could not follow its own journal ({wrong}); start it again"
            raise
