"""One door to change the consortium: durable first, then folded; refused or failed leaves everything as it was."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from commons import merkle
from commons.errors import Code, Refusal, StoreError
from commons.log import Checkpoint
from commons.records import Kind, Record, fact
from governance.consortium import Consortium
from governance.journal import Journal
from governance.ledger import decide_grants
from tests.support.chamber import LOG, charter, founding_notes


class Clock:
    def __init__(self) -> None:
        self.ms = 1_000

    def now_ms(self) -> int:
        return self.ms


class Seen:
    """A view that remembers what it was shown."""

    def __init__(self) -> None:
        self.all: list[tuple[int, Record]] = []

    def apply(self, index: int, record: Record) -> None:
        self.all.append((index, record))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def opened(tmp_path: Path, clock: Clock) -> Iterator[Callable[[], Consortium]]:
    journals: list[Journal] = []

    def reopen() -> Consortium:
        for journal in journals:
            journal.close()
        journals.append(Journal.open(tmp_path, signer=LOG, clock=clock))
        return Consortium(journals[-1], clock)

    yield reopen
    journals[-1].close()


@pytest.fixture
def consortium(opened: Callable[[], Consortium]) -> Consortium:
    return founded(opened())


def founded(consortium: Consortium) -> Consortium:
    def decide(now_ms: int) -> list[Record] | Refusal:
        records = consortium.members.decide_found(charter(), founding_notes(charter()), LOG.vkey, now_ms)
        if isinstance(records, Refusal):
            return records
        return [*records, *decide_grants(consortium.ledger, charter(), now_ms)]

    assert not isinstance(consortium.commit(decide), Refusal)
    return consortium


def note(now_ms: int) -> list[Record]:
    return [fact(Kind.RELEASE, now_ms, n=1)]


def test_what_is_committed_is_durable_and_in_every_view(
    opened: Callable[[], Consortium], consortium: Consortium
) -> None:
    assert consortium.charter == charter()
    assert consortium.ledger.available_micro("acme") == 1_000_000
    size = consortium.size
    again = opened()
    assert (again.size, again.charter) == (size, charter())
    assert again.ledger == consortium.ledger


def test_a_refusal_records_nothing(consortium: Consortium) -> None:
    size, refusal = consortium.size, Refusal(Code.NO_RUN, "no")
    assert consortium.commit(lambda _: refusal) is refusal
    assert consortium.commit(lambda _: []) == []
    assert consortium.size == size


def test_time_never_goes_back(consortium: Consortium, clock: Clock) -> None:
    clock.ms = 5_000
    consortium.commit(note)
    clock.ms = 4_000
    asked: list[int] = []

    def decide(now_ms: int) -> list[Record]:
        asked.append(now_ms)
        return note(now_ms)

    consortium.commit(decide)
    assert asked == [5_000]


def test_time_does_not_go_back_over_a_restart(
    opened: Callable[[], Consortium], consortium: Consortium, clock: Clock
) -> None:
    clock.ms = 9_000
    consortium.commit(note)
    clock.ms = 1
    assert opened().now_ms() == 9_000


def test_a_follower_sees_the_past_and_the_future_once_each_in_order(consortium: Consortium) -> None:
    view = Seen()
    consortium.follow(view)
    consortium.commit(note)
    assert view.all == list(enumerate(consortium.journal.records()))


def test_a_decision_that_raises_changes_nothing(consortium: Consortium) -> None:
    def decide(now_ms: int) -> list[Record]:
        raise RuntimeError("a bug")

    size = consortium.size
    with pytest.raises(RuntimeError):
        consortium.commit(decide)
    assert consortium.size == size
    assert consortium.commit(note) == [size]


def test_a_store_that_fails_leaves_memory_as_it_was(
    consortium: Consortium, monkeypatch: pytest.MonkeyPatch
) -> None:
    view = Seen()
    consortium.follow(view)
    size, seen = consortium.size, list(view.all)

    def full(_records: object) -> list[int]:
        raise StoreError("the disk is full")

    with monkeypatch.context() as broken:
        broken.setattr(consortium.journal, "append", full)
        with pytest.raises(StoreError):
            consortium.commit(note)
    assert (consortium.size, view.all) == (size, seen)
    assert consortium.commit(note) == [size]
    assert view.all[-1][0] == size


def test_after_a_view_failed_nothing_more_is_committed(consortium: Consortium) -> None:
    class Failing:
        def apply(self, index: int, record: Record) -> None:
            if record.kind is Kind.RELEASE:
                raise ValueError("cannot follow")

    consortium.follow(Failing())
    with pytest.raises(ValueError, match="cannot follow"):
        consortium.commit(note)
    with pytest.raises(StoreError, match="start it again"):
        consortium.commit(note)


def test_records_dated_backwards_are_a_mistake_of_ours(consortium: Consortium) -> None:
    with pytest.raises(AssertionError):
        consortium.commit(lambda now_ms: note(now_ms - 1))


def test_waiting_ends_with_the_next_record_or_with_the_time(consortium: Consortium) -> None:
    size = consortium.size
    assert consortium.wait_beyond(size, 0.01) == size
    assert consortium.wait_beyond(size - 1, 10) == size
    later = threading.Timer(0.05, lambda: consortium.commit(note))
    later.start()
    began = time.monotonic()
    assert consortium.wait_beyond(size, 10) == size + 1
    assert time.monotonic() - began < 5
    later.join()


def test_many_threads_commit_one_after_the_other(consortium: Consortium) -> None:
    view, first = Seen(), consortium.size
    consortium.follow(view)
    threads = [
        threading.Thread(target=lambda: [consortium.commit(note) for _ in range(10)]) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [index for index, _ in view.all] == list(range(first + 40))
    assert consortium.journal.verify() == []


def test_a_receipt_proves_its_record(consortium: Consortium) -> None:
    (index,) = consortium.commit(note)
    consortium.commit(note)
    receipt = consortium.receipt(index)
    head = Checkpoint.open(receipt.checkpoint, LOG.verifier)
    leaf = merkle.leaf_hash(consortium.journal.record(index).leaf)
    assert receipt.index == index
    merkle.verify_inclusion(leaf, index, head.size, receipt.path, head.root)
