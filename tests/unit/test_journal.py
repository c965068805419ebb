"""The journal keeps what it took, proves it, and says so when the disk disagrees."""

from __future__ import annotations

import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.exc import DBAPIError

from commons import merkle
from commons.errors import StoreError
from commons.log import Checkpoint
from commons.notes import Signer
from commons.records import LEAF_BYTES_MAX, Kind, Record, fact
from governance.journal import Journal, open_readonly
from tests.support import postgres
from tests.support.chamber import LOG


class FixedClock:
    def now_ms(self) -> int:
        return 1_700_000_000_000


def record(n: int, size: int = 10) -> Record:
    return fact(Kind.TRANSFER, 1000 + n, n=n, padding="x" * size)


def open_journal(url: str | Path, signer: Signer = LOG) -> Journal:
    return Journal.open(url, signer=signer, clock=FixedClock())


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    pytest.importorskip("psycopg", reason="PSYCOPG IS MISSING: the Postgres journal is not tested here")
    try:
        with postgres.running() as url:
            yield url
    except postgres.NoPostgres as missing:
        pytest.skip(f"POSTGRES IS NOT TESTED HERE: {missing}")


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'journal.db'}"
        return
    server = request.getfixturevalue("postgres_url")
    yield server
    engine = create_engine(server, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text("DROP SCHEMA public CASCADE"))
        connection.execute(text("CREATE SCHEMA public"))
    engine.dispose()


def tamper(url: str, *statements: str) -> None:
    """What a person with the database's password can do when the triggers are out of the way."""
    engine = create_engine(url)
    with engine.begin() as connection:
        if engine.dialect.name == "sqlite":
            names = (
                connection.execute(text("SELECT name FROM sqlite_master WHERE type = 'trigger'"))
                .scalars()
                .all()
            )
            for name in names:
                connection.execute(text(f"DROP TRIGGER {name}"))
        else:
            connection.execute(text("ALTER TABLE records DISABLE TRIGGER USER"))
            connection.execute(text("ALTER TABLE nodes DISABLE TRIGGER USER"))
        for statement in statements:
            connection.execute(text(statement))
    engine.dispose()


def test_what_was_appended_is_there_after_closing_and_opening_again(url: str) -> None:
    journal = open_journal(url)
    assert (journal.size, journal.root(), journal.epoch) == (0, merkle.EMPTY_ROOT, 1)
    assert journal.append([record(0), record(1)]) == [0, 1]
    assert journal.append([]) == []
    assert journal.append([record(2)]) == [2]
    root, checkpoint = journal.root(), journal.checkpoint()
    journal.close()
    again = open_journal(url)
    assert (again.size, again.root(), again.checkpoint(), again.epoch) == (3, root, checkpoint, 2)
    assert list(again.records()) == [record(0), record(1), record(2)]
    assert list(again.records(1)) == [record(1), record(2)]
    assert again.record(1) == record(1)
    assert again.verify() == []
    again.close()


def test_the_root_and_every_proof_are_those_of_the_merkle_tree(url: str) -> None:
    journal = open_journal(url)
    leaves, roots = [], [merkle.EMPTY_ROOT]
    for n in range(21):
        journal.append([record(n)])
        leaves.append(merkle.leaf_hash(record(n).leaf))
        roots.append(merkle.root(leaves))
        assert journal.root() == roots[-1]
    for size in (1, 2, 13, 16, 21):
        for index in range(size):
            merkle.verify_inclusion(leaves[index], index, size, journal.inclusion(index, size), roots[size])
        for old in range(size + 1):
            merkle.verify_consistency(old, roots[old], size, roots[size], journal.consistency(old, size))
    with pytest.raises(merkle.ProofError, match="21 records, not 22"):
        journal.inclusion(0, 22)
    with pytest.raises(IndexError):
        journal.record(21)
    journal.close()


def test_the_checkpoint_is_signed_and_covers_all_records(url: str) -> None:
    journal = open_journal(url)
    journal.append([record(n) for n in range(5)])
    assert Checkpoint.open(journal.checkpoint(), LOG.verifier) == Checkpoint("demo", 5, journal.root())
    journal.close()


def test_a_reader_sees_committed_records_beside_the_writer_and_cannot_write(url: str) -> None:
    journal = open_journal(url)
    journal.append([record(0)])
    reader = open_readonly(url)
    journal.append([record(1)])
    assert (reader.size, reader.root(), reader.checkpoint()) == (2, journal.root(), journal.checkpoint())
    assert reader.verify() == []
    with pytest.raises(DBAPIError), reader._engine.begin() as connection:
        connection.execute(text("DELETE FROM meta"))
    reader.close()
    journal.close()


def test_a_second_writer_is_refused_and_told_who_holds_the_journal(url: str) -> None:
    journal = open_journal(url)
    with pytest.raises(StoreError, match=rf"in use by .*{os.getpid()}.* only one coordinator"):
        open_journal(url)
    journal.append([record(0)])
    journal.close()
    open_journal(url).close()


def test_a_writer_that_was_killed_leaves_no_lock_behind(tmp_path: Path) -> None:
    program = (
        "import os, sys; from tests.unit.test_journal import open_journal, record\n"
        "j = open_journal(sys.argv[1]); j.append([record(0)]); os.kill(os.getpid(), 9)"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], cwd=root, timeout=60, check=False)
    assert done.returncode == -9
    journal = open_journal(tmp_path)
    assert (journal.size, journal.epoch, journal.verify()) == (1, 2, [])
    journal.close()


def test_a_folder_a_file_and_a_url_name_the_same_journal(tmp_path: Path) -> None:
    journal = open_journal(tmp_path / "home")
    journal.append([record(0)])
    for same in (tmp_path / "home" / "journal.db", f"sqlite:///{tmp_path / 'home' / 'journal.db'}"):
        reader = open_readonly(same)
        assert reader.size == 1
        reader.close()
    journal.close()


@pytest.mark.parametrize(
    "leaf",
    [
        b"transfer 01\n{}",
        b"transfer 00\n{}",
        b"transfer +1\n{}",
        b"transfer -1\n{}",
        b"transfer  1\n{}",
        b"transfer 1 \n{}",
        b" transfer 1\n{}",
        b"TRANSFER 1\n{}",
        b"unheard-of 1\n{}",
        b"transfer \n{}",
        b"transfer\n{}",
        b"transfer 1",
        b"",
        "transfer \u0661\n{}".encode(),
        b"transfer \xff\n{}",
        b"transfer 1\n" + b"x" * LEAF_BYTES_MAX,
    ],
)
def test_a_record_has_one_writing_and_every_other_is_refused(leaf: bytes) -> None:
    with pytest.raises(ValueError):
        Record.parse(leaf)


@pytest.mark.parametrize("at_ms", [0, 1, 1_700_000_000_000])
def test_a_record_is_read_back_as_it_was_written(at_ms: int) -> None:
    written = Record(Kind.TRANSFER, at_ms, b"{}")
    assert Record.parse(written.leaf) == written


@pytest.mark.parametrize("statement", ["UPDATE {} SET idx = idx + 10", "DELETE FROM {}", "TRUNCATE {}"])
@pytest.mark.parametrize("table", ["records", "nodes"])
def test_the_store_itself_refuses_to_change_or_delete_records(url: str, table: str, statement: str) -> None:
    if url.startswith("sqlite") and statement.startswith("TRUNCATE"):
        pytest.skip("SQLite has no TRUNCATE")
    journal = open_journal(url)
    journal.append([record(0), record(1)])
    journal.close()
    engine = create_engine(url)
    with pytest.raises(DBAPIError, match="append-only"), engine.begin() as connection:
        connection.execute(text(statement.format(table)))
    engine.dispose()


@pytest.mark.parametrize(
    ("statement", "finding"),
    [
        ("UPDATE records SET leaf = :leaf WHERE idx = 5", "record 5 .* was changed on disk"),
        (
            "UPDATE records SET leaf = :leaf, leaf_hash = :hash WHERE idx = 5",
            r"record 4 .*\(or one up to 5\)",
        ),
        ("DELETE FROM records WHERE idx = 5", "record 5 .* is missing"),
        ("DELETE FROM records WHERE idx = 11", "record 11 .* is missing, 12 records were signed for"),
        ("DELETE FROM nodes WHERE level = 1 AND idx = 2", r"record 4 .*\(or one up to 5\)"),
    ],
)
def test_a_record_changed_on_disk_is_found_by_its_index(url: str, statement: str, finding: str) -> None:
    journal = open_journal(url)
    journal.append([record(n) for n in range(12)])
    journal.close()
    forged = fact(Kind.TRANSFER, 1005, n=99).leaf
    hexed = {"leaf": forged.hex(), "hash": merkle.leaf_hash(forged).hex()}
    quote = "X'{}'" if url.startswith("sqlite") else "decode('{}', 'hex')"
    for name, value in hexed.items():
        statement = statement.replace(f":{name}", quote.format(value))
    tamper(url, statement)
    reader = open_readonly(url)
    problems = reader.verify()
    reader.close()
    assert re.search(finding, problems[0]), problems
    assert "restore a backup" in problems[0]


def test_reading_a_changed_record_raises_instead_of_giving_it(url: str) -> None:
    journal = open_journal(url)
    journal.append([record(n) for n in range(4)])
    journal.close()
    quote = "X'00'" if url.startswith("sqlite") else "decode('00', 'hex')"
    tamper(url, f"UPDATE records SET leaf = {quote} WHERE idx = 2")
    journal = open_journal(url)
    with pytest.raises(StoreError, match=r"record 2 of the journal .* was changed on disk"):
        list(journal.records())
    journal.close()


def test_a_journal_rolled_back_behind_its_checkpoint_does_not_open(url: str) -> None:
    journal = open_journal(url)
    journal.append([record(n) for n in range(5)])
    journal.close()
    tamper(url, "DELETE FROM records WHERE idx = 4")
    with pytest.raises(StoreError, match=r"record 4 .* is missing, 5 records were signed for"):
        open_journal(url)


def test_a_journal_of_a_newer_version_is_left_alone(url: str) -> None:
    open_journal(url).close()
    tamper(url, "UPDATE meta SET value = '7' WHERE name = 'schema'")
    for opener in (open_journal, open_readonly):
        with pytest.raises(StoreError, match=r"newer version of Hansa \(schema 7, .* update Hansa"):
            opener(url)


def test_a_journal_signed_by_another_key_is_left_alone(url: str) -> None:
    open_journal(url).close()
    with pytest.raises(StoreError, match=r"is signed by log key demo.* put the first key back"):
        open_journal(url, Signer.generate("demo"))


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda p: p.write_bytes(b"not a database, but long enough to look at" * 40), "not a database"),
        (lambda p: sqlite3.connect(p).execute("CREATE TABLE songs (name)"), "database of something else"),
        (lambda p: p.mkdir(), "cannot be used"),
    ],
)
def test_a_path_that_is_something_else_is_refused(
    tmp_path: Path, prepare: Callable[[Path], Any], message: str
) -> None:
    prepare(tmp_path / "journal.db")
    with pytest.raises(StoreError, match=message):
        open_journal(tmp_path)


@pytest.mark.parametrize("url", ["sqlite://", "mysql://somewhere/db", "nonsense://x"])
def test_a_store_that_is_not_durable_or_not_known_is_refused(url: str) -> None:
    with pytest.raises(StoreError):
        open_journal(url)


def test_there_is_nothing_to_read_where_there_is_no_journal(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="there is no journal at"):
        open_readonly(tmp_path)
    assert list(tmp_path.iterdir()) == []


def fill(journal: Journal) -> int:
    """Append until the store refuses; how many records there were then."""
    for n in range(journal.size, 5000):
        try:
            journal.append([record(n, 3000)])
        except StoreError as full:
            assert "the disk is full; free some space" in str(full)
            assert f"all {n} records are intact" in str(full)
            return n
    pytest.fail("the store never got full")


def test_a_full_store_refuses_the_append_and_keeps_everything(tmp_path: Path) -> None:
    limit = [60]

    def limited(connection: Any, _record: Any) -> None:
        connection.execute(f"PRAGMA max_page_count={limit[0]}")

    event.listen(Engine, "connect", limited)
    try:
        journal = open_journal(tmp_path)
        size = fill(journal)
        assert size > 3
        root = journal.root()
        with pytest.raises(StoreError):
            journal.append([record(size, 3000)])
        assert (journal.size, journal.root(), journal.verify()) == (size, root, [])
        journal.close()
        limit[0] = 10_000
        again = open_journal(tmp_path)
        assert again.append([record(size, 3000)]) == [size]
        assert again.verify() == []
        again.close()
    finally:
        event.remove(Engine, "connect", limited)


def test_a_full_disk_refuses_the_append_and_the_same_journal_goes_on_when_there_is_room(
    tmp_path: Path,
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(disk)]
    if os.getuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("A REALLY FULL DISK IS NOT TESTED HERE: mounting a small one needs root")
    try:
        ballast = disk / "ballast"
        ballast.write_bytes(b"x" * 100_000)
        journal = open_journal(disk)
        size = fill(journal)
        root = journal.root()
        assert (journal.size, journal.verify()) == (size, [])
        ballast.unlink()
        assert journal.append([record(size)]) == [size]
        assert (
            merkle.verify_consistency(
                size, root, size + 1, journal.root(), journal.consistency(size, size + 1)
            )
            is None
        )
        assert journal.verify() == []
        journal.close()
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_lost_session_stops_the_writer_for_good(postgres_url: str) -> None:
    journal = open_journal(postgres_url)
    journal.append([record(0)])
    engine = create_engine(postgres_url)
    with engine.connect() as connection:
        connection.execute(
            text(
                "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND pid <> pg_backend_pid()"
            )
        )
    for _ in range(2):
        with pytest.raises(StoreError):
            journal.append([record(1)])
    successor = open_journal(postgres_url)
    assert (successor.size, successor.epoch) == (1, journal.epoch + 1)
    with pytest.raises(StoreError, match="start the coordinator again"):
        journal.append([record(1)])
    successor.close()
    journal.close()
    with engine.begin() as connection:
        connection.execute(text("DROP SCHEMA public CASCADE"))
        connection.execute(text("CREATE SCHEMA public"))
    engine.dispose()
