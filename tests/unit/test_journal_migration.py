"""A journal of schema 1 is copied, brought up to date in one step and loses nothing, wherever that is broken off."""

from __future__ import annotations

import logging
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import create_engine, inspect, text
from sqlalchemy.exc import DBAPIError

from commons.errors import StoreError
from commons.log import Checkpoint
from commons.notes import parse
from commons.records import Kind
from commons.signed import text_digest
from commons.work import UsageNote
from governance.consortium import Consortium
from governance.journal import Journal, migrate, open_readonly
from governance.journal.schema import SCHEMA_VERSION
from tests.support.chamber import LOG, signer
from tests.unit.test_journal import FixedClock, open_journal, postgres_url, record, tamper, url

__all__ = ["postgres_url", "url"]
ROOT = Path(__file__).parents[2]
OLD = ROOT / "tests" / "support" / "vectors" / "journal-schema-1.db"
"""Written by the version before `checkpoints`: 64 records, among them votes, holds and charges."""


@pytest.fixture
def old(tmp_path: Path) -> Path:
    return Path(shutil.copy(OLD, tmp_path / "journal.db"))


def contents(path: Path) -> tuple[list[bytes], bytes]:
    """Every leaf and the root, read without changing anything."""
    reader = open_readonly(path)
    try:
        return [r.leaf for r in reader.records()], reader.root()
    finally:
        reader.close()


def schema(path: Path) -> str:
    with sqlite3.connect(path) as connection:
        return str(connection.execute("SELECT value FROM meta WHERE name = 'schema'").fetchone()[0])


def witnessed(journal: Journal) -> bytes:
    """The journal's checkpoint with a second signature; the store does not ask whose."""
    line = signer("somebody").sign("x\n").decode().partition("\n\n")[2]
    return journal.checkpoint() + line.encode()


def test_an_old_journal_is_migrated_and_every_byte_of_it_is_the_same(old: Path) -> None:
    before = contents(old)
    assert len(before[0]) == 64
    journal = open_journal(old)
    assert ([r.leaf for r in journal.records()], journal.root()) == before
    assert (schema(old), journal.verify(), journal.published()) == (str(SCHEMA_VERSION), [], b"")
    note = witnessed(journal)
    journal.publish(journal.size, note)
    assert journal.published() == note
    assert journal.append([record(2_000_000_000_000)]) == [64]
    journal.close()
    assert contents(old)[0][:64] == before[0]


def test_the_copy_is_the_old_journal_in_one_file(old: Path) -> None:
    before = contents(old)
    open_journal(old).close()
    copy = old.with_name("journal.db.schema-1.bak")
    assert (schema(copy), contents(copy)) == ("1", before)
    names = {p.name for p in old.parent.iterdir()} - {"journal.db", "journal.db.lock"}
    assert names == {copy.name}
    reader = open_readonly(copy)
    assert (reader.verify(), reader.published()) == ([], b"")
    reader.close()


def test_a_migrated_journal_is_not_migrated_again(old: Path) -> None:
    open_journal(old).close()
    copy = old.with_name("journal.db.schema-1.bak")
    copy.unlink()
    open_journal(old).close()
    assert not copy.exists()


def test_reading_an_old_journal_leaves_it_old(old: Path) -> None:
    data = old.read_bytes()
    reader = open_readonly(old)
    assert (reader.size, reader.verify(), reader.published()) == (64, [], b"")
    reader.close()
    assert old.read_bytes() == data


def test_the_consortium_follows_a_migrated_journal_to_the_same_state(old: Path, tmp_path: Path) -> None:
    journal = open_journal(old)
    migrated = Consortium(journal, FixedClock())
    assert (migrated.charter.consortium.name, migrated.size) == ("demo", 64)
    assert migrated.members.enrolled and migrated.proposals.views()
    journal.close()


def test_a_journal_of_another_key_is_neither_copied_nor_migrated(old: Path) -> None:
    with pytest.raises(StoreError, match="put the first key back"):
        open_journal(old, signer("demo-2"))
    assert schema(old) == "1"
    assert not list(old.parent.glob("*.bak*"))


def test_a_broken_journal_is_neither_copied_nor_migrated(old: Path) -> None:
    tamper(f"sqlite:///{old}", "DELETE FROM records WHERE idx = 63")
    with pytest.raises(StoreError, match="record 63"):
        open_journal(old)
    assert schema(old) == "1"
    assert not list(old.parent.glob("*.bak*"))


def test_a_copy_that_differs_stops_the_migration(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heads = iter([(64, b"a"), (64, b"b")])
    monkeypatch.setattr(migrate, "_head", lambda _: next(heads))
    with pytest.raises(StoreError, match="does not hold the same records"):
        open_journal(old)
    assert schema(old) == "1"
    assert not list(old.parent.glob("*.bak"))


@pytest.mark.parametrize("at", ["_head", "_make_durable", "count_opening", "check_schema", "set_meta"])
def test_killed_in_the_middle_the_journal_is_the_old_one_and_the_next_start_migrates(
    old: Path, at: str
) -> None:
    """`set_meta` is reached inside the transaction, when the new table is there and its schema is not."""
    before = contents(old)
    program = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from governance.journal import migrate, store\n"
        "from tests.unit.test_journal import open_journal\n"
        "die = lambda *_: os.kill(os.getpid(), 9)\n"
        f"for module in (migrate, store): setattr(module, {at!r}, die)\n"
        "open_journal(Path(sys.argv[1]))"
    )
    done = subprocess.run([sys.executable, "-c", program, str(old)], cwd=ROOT, timeout=60, check=False)
    assert done.returncode == -9
    assert (schema(old), contents(old)) == ("1", before)
    journal = open_journal(old)
    assert ([r.leaf for r in journal.records()], journal.verify()) == (before[0], [])
    journal.close()
    assert contents(old.with_name("journal.db.schema-1.bak")) == before


def make_old(url: str) -> None:
    """Take from a journal what schema 1 did not have."""
    tamper(url, "DROP TABLE checkpoints", "UPDATE meta SET value = '1' WHERE name = 'schema'")


def test_an_old_journal_in_any_store_is_migrated(url: str, caplog: pytest.LogCaptureFixture) -> None:
    journal = open_journal(url)
    journal.append([record(n) for n in range(5)])
    root = journal.root()
    journal.close()
    make_old(url)
    with caplog.at_level(logging.INFO, "hansa.coordinator"):
        journal = open_journal(url)
    assert ("pg_dump" in caplog.text) == url.startswith("postgresql")
    note = witnessed(journal)
    journal.publish(5, note)
    assert (journal.root(), journal.published()) == (root, note)
    journal.close()


def test_published_checkpoints_stay_and_the_newest_is_given(url: str) -> None:
    journal = open_journal(url)
    assert journal.published() == b""
    for n in range(3):
        journal.append([record(n)])
        journal.publish(n + 1, witnessed(journal))
    last = journal.published()
    assert Checkpoint.open(last, LOG.verifier).size == 3
    journal.publish(3, b"another one of the same size")
    assert journal.published() == last
    journal.close()
    reader = open_readonly(url)
    assert reader.published() == last
    reader.close()


@pytest.mark.parametrize("statement", ["UPDATE checkpoints SET size = 9", "DELETE FROM checkpoints"])
def test_the_store_itself_refuses_to_change_published_checkpoints(url: str, statement: str) -> None:
    journal = open_journal(url)
    journal.append([record(0)])
    journal.publish(1, witnessed(journal))
    journal.close()
    engine = create_engine(url)
    with pytest.raises(DBAPIError, match="append-only"), engine.begin() as connection:
        connection.execute(text(statement))
    engine.dispose()


def test_a_writer_that_was_overtaken_publishes_nothing(url: str) -> None:
    journal = open_journal(url)
    journal.append([record(0)])
    note = witnessed(journal)
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE meta SET value = '9' WHERE name = 'epoch'"))
        assert inspect(connection).has_table("checkpoints")
    engine.dispose()
    with pytest.raises(StoreError, match="opened by another coordinator"):
        journal.publish(1, note)
    assert journal.published() == b""
    journal.close()


def test_a_usage_of_the_first_version_keeps_the_digest_of_what_was_signed() -> None:
    """A round that was open when the journal was migrated is settled for the usage that stands in it."""
    with closing(open_readonly(OLD)) as journal:
        signed = [parse(r.body) for r in journal.records() if r.kind is Kind.USAGE]
    assert signed and all(UsageNote.from_note(note).digest == text_digest(note) for note in signed)
