"""What opening a journal for writing does to its tables: makes them, checks them, brings older ones up to date.

A journal of an older schema is copied first, to a file beside it that the older program can open, and changed in one
transaction: killed anywhere, it is what it was. Records are never touched. Knows no writer and no reader.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from contextlib import closing
from pathlib import Path

from sqlalchemy import Connection, insert, inspect

from commons.errors import StoreError
from commons.merkle import Frontier
from commons.notes import Signer
from governance.journal.schema import SCHEMA_VERSION, checkpoints, meta, metadata, read_meta, set_meta

log = logging.getLogger("hansa.coordinator")


def is_older(connection: Connection, location: str, signer: Signer) -> bool:
    """Whether the store holds this signer's journal of an older schema. Raises StoreError for a newer one."""
    if not inspect(connection).has_table("meta"):
        return False
    found = read_meta(connection)
    check_schema(found, location)
    return int(found["schema"]) < SCHEMA_VERSION and found["log_key"] == signer.vkey


def back_up(connection: Connection, location: str) -> Path | None:
    """Copy a SQLite journal to ``<file>.schema-<n>.bak``, whole and durable; a copy of an earlier try is replaced.

    Postgres: None, its backups are the operator's; the log says so. Raises StoreError when the copy does not hold the
    same records: then nothing was changed. `connection` must be in no transaction.
    """
    schema = read_meta(connection)["schema"]
    connection.rollback()
    if connection.dialect.name != "sqlite":
        log.warning(
            "the journal %s is of schema %s and is being brought to %d; a backup from before can only be made by its "
            "operator, with pg_dump",
            location, schema, SCHEMA_VERSION,
        )  # fmt: skip
        return None
    copy = Path(f"{location}.schema-{schema}.bak")
    draft = copy.with_name(f"{copy.name}.part")
    draft.unlink(missing_ok=True)
    with closing(sqlite3.connect(location)) as source, closing(sqlite3.connect(draft)) as target:
        source.backup(target)
        target.execute("PRAGMA journal_mode=DELETE").fetchone()  # one file that needs none beside it
        same = _head(source) == _head(target)
    if not same:
        raise StoreError(
            f"the copy {draft} of the journal {location} does not hold the same records; check the disk. "
            "Nothing was changed"
        )
    _make_durable(draft, copy)
    log.info("the journal %s is of schema %s; a copy of it is kept in %s", location, schema, copy)
    return copy


def count_opening(connection: Connection, location: str, signer: Signer) -> int:
    """Create, check or migrate the tables and count this opening; the new epoch. In the caller's transaction.

    Raises StoreError: another key's journal, a newer one, or a database of something else.
    """
    tables = inspect(connection)
    if not tables.has_table("meta"):
        if connection.dialect.name == "sqlite" and tables.get_table_names():
            raise StoreError(
                f"{location} is a database of something else; give the journal a file of its own"
            )
        metadata.create_all(connection)
        first = {"schema": str(SCHEMA_VERSION), "origin": signer.name, "log_key": signer.vkey, "epoch": "0"}
        connection.execute(insert(meta), [{"name": name, "value": value} for name, value in first.items()])
    found = read_meta(connection)
    check_schema(found, location)
    if found["log_key"] != signer.vkey:
        raise StoreError(
            f"the journal {location} is signed by log key {found['log_key']}, "
            f"but the coordinator holds {signer.vkey}; put the first key back, or start with another home"
        )
    if int(found["schema"]) < SCHEMA_VERSION:
        checkpoints.create(connection)
        set_meta(connection, "schema", str(SCHEMA_VERSION))
    epoch = int(found["epoch"]) + 1
    set_meta(connection, "epoch", str(epoch))
    return epoch


def check_schema(found: dict[str, str], location: str) -> None:
    """Raises StoreError when a newer program wrote the journal whose meta texts are `found`."""
    schema = int(found.get("schema", "0"))
    if schema > SCHEMA_VERSION:
        raise StoreError(
            f"the journal {location} was written by a newer version of Hansa "
            f"(schema {schema}, this one knows up to {SCHEMA_VERSION}); update Hansa. Nothing was changed"
        )


def _head(journal: sqlite3.Connection) -> tuple[int, bytes]:
    """Size and root."""
    (size,) = journal.execute("SELECT coalesce(max(idx) + 1, 0) FROM records").fetchone()

    def hash_at(level: int, index: int) -> bytes:
        query = (
            "SELECT hash FROM nodes WHERE level = ? AND idx = ?"
            if level
            else "SELECT leaf_hash FROM records WHERE idx = ?"
        )
        found = journal.execute(query, (level, index) if level else (index,)).fetchone()
        return bytes(found[0]) if found else b""

    return size, Frontier.load(size, hash_at).root()


def _make_durable(draft: Path, name: Path) -> None:
    for path in (draft, name.parent):
        if path == name.parent:
            draft.replace(name)
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
