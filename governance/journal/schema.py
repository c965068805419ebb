"""The journal's tables, the same for SQLite and Postgres, and the triggers that make them append-only.

`records` holds the leaves, `nodes` the roots of complete subtrees above them, `checkpoints` the checkpoints that
witnesses cosigned, `meta` a handful of named texts (schema version, origin, log key, opening epoch, last signed
checkpoint): the only rows that ever change.
"""

from __future__ import annotations

from sqlalchemy import (
    DDL,
    BigInteger,
    CheckConstraint,
    Column,
    Connection,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    event,
    insert,
    select,
    update,
)

from commons.notes import NOTE_BYTES_MAX

SCHEMA_VERSION = 2
"""Raised by every change to these tables; an older program refuses a newer journal. 2: `checkpoints`."""

metadata = MetaData()
_Index = BigInteger().with_variant(Integer, "sqlite")


def _typed(column: str, sqlite_type: str) -> CheckConstraint:
    """SQLite keeps any type in any column unless told; Postgres has real column types."""
    check: CheckConstraint = CheckConstraint(f"typeof({column}) = '{sqlite_type}'").ddl_if(dialect="sqlite")
    return check


records = Table(
    "records",
    metadata,
    Column("idx", _Index, primary_key=True, autoincrement=False),
    Column("leaf", LargeBinary, nullable=False),
    Column("leaf_hash", LargeBinary, nullable=False),
    CheckConstraint("idx >= 0"),
    CheckConstraint("length(leaf) BETWEEN 1 AND 65535"),
    CheckConstraint("length(leaf_hash) = 32"),
    _typed("leaf", "blob"),
    _typed("leaf_hash", "blob"),
)

nodes = Table(
    "nodes",
    metadata,
    Column("level", Integer, primary_key=True, autoincrement=False),
    Column("idx", _Index, primary_key=True, autoincrement=False),
    Column("hash", LargeBinary, nullable=False),
    CheckConstraint("level BETWEEN 1 AND 62"),
    CheckConstraint("idx >= 0"),
    CheckConstraint("length(hash) = 32"),
    _typed("level", "integer"),
    _typed("idx", "integer"),
    _typed("hash", "blob"),
    sqlite_with_rowid=False,
)

checkpoints = Table(
    "checkpoints",
    metadata,
    Column("size", _Index, primary_key=True, autoincrement=False),
    Column("note", Text, nullable=False),
    CheckConstraint("size >= 1"),
    CheckConstraint(f"length(note) BETWEEN 1 AND {NOTE_BYTES_MAX}"),
    _typed("note", "text"),
)

meta = Table(
    "meta",
    metadata,
    Column("name", Text, primary_key=True),
    Column("value", Text, nullable=False),
)

_SQLITE_TRIGGER = """
CREATE TRIGGER %(table)s_no_{verb} BEFORE {verb} ON %(table)s
BEGIN SELECT RAISE(ABORT, 'the journal is append-only'); END
"""
_POSTGRES_FUNCTION = """
CREATE OR REPLACE FUNCTION journal_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN RAISE EXCEPTION 'the journal is append-only'; END $$
"""
_POSTGRES_TRIGGER = """
CREATE TRIGGER %(table)s_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON %(table)s
FOR EACH STATEMENT EXECUTE FUNCTION journal_append_only()
"""


def _ddl(statement: str) -> DDL:
    ddl: DDL = DDL(statement)  # type: ignore[no-untyped-call]
    return ddl


event.listen(metadata, "before_create", _ddl(_POSTGRES_FUNCTION).execute_if(dialect="postgresql"))
for _table in (records, nodes, checkpoints):
    for _verb in ("update", "delete"):
        _trigger = _ddl(_SQLITE_TRIGGER.format(verb=_verb))
        event.listen(_table, "after_create", _trigger.execute_if(dialect="sqlite"))
    event.listen(_table, "after_create", _ddl(_POSTGRES_TRIGGER).execute_if(dialect="postgresql"))


def read_meta(connection: Connection) -> dict[str, str]:
    return {name: value for name, value in connection.execute(select(meta))}


def set_meta(connection: Connection, name: str, value: str) -> None:
    changed = connection.execute(update(meta).where(meta.c.name == name).values(value=value))
    if changed.rowcount == 0:
        connection.execute(insert(meta).values(name=name, value=value))
