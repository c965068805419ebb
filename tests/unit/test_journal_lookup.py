"""Many records of a journal at once: leaves, one proof for all, roots of earlier sizes."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from commons import merkle
from commons.clock import SystemClock
from commons.errors import StoreError
from commons.merkle import ProofError
from commons.merkle_multi import verify_multi
from commons.records import Kind, fact
from governance.journal import Journal
from tests.support.chamber import signer

SIZE = 1300


@pytest.fixture(scope="module")
def journal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Journal]:
    made = Journal.open(
        tmp_path_factory.mktemp("lookup") / "journal.db", signer=signer("demo"), clock=SystemClock()
    )
    made.append([fact(Kind.TRANSFER, 1000 + n, n=n) for n in range(SIZE)])
    yield made
    made.close()


def test_leaves_come_in_the_order_asked(journal: Journal) -> None:
    wanted = [7, 3, *range(0, SIZE, 2)]
    assert journal.leaves(wanted) == [journal.record(i).leaf for i in wanted]
    assert journal.leaves([]) == []


@pytest.mark.parametrize("size", [1, 2, 1000, 1024, SIZE])
def test_one_proof_and_the_root_of_every_size(journal: Journal, size: int) -> None:
    indices = list(range(0, size, 3))
    hashes = [merkle.leaf_hash(leaf) for leaf in journal.leaves(range(size))]
    root = journal.root_at(size)
    assert root == merkle.root(hashes)
    verify_multi([(i, hashes[i]) for i in indices], size, journal.multi_proof(indices, size), root)


def test_what_is_not_there_yet_is_not_proven(journal: Journal) -> None:
    with pytest.raises(ProofError, match="1300 records, not 1301"):
        journal.multi_proof([1], SIZE + 1)
    with pytest.raises(ProofError, match="1300 records, not 1301"):
        journal.root_at(SIZE + 1)


def test_a_leaf_that_is_missing_or_was_changed_is_named(tmp_path: Path) -> None:
    made = Journal.open(tmp_path / "journal.db", signer=signer("demo"), clock=SystemClock())
    made.append([fact(Kind.TRANSFER, 1000, n=n) for n in range(5)])
    with sqlite3.connect(tmp_path / "journal.db") as connection:
        connection.execute("DROP TRIGGER records_no_update")
        connection.execute("UPDATE records SET leaf = x'00' WHERE idx = 3")
    with pytest.raises(StoreError, match="record 3"):
        made.leaves([1, 3])
    with pytest.raises(StoreError, match="record 5"):
        made.leaves([5])
    made.close()
