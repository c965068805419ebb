"""Many rows into one table by one statement, in the words of the driver.

SQLAlchemy's own insert compiles and copies each row; with hundreds of rows a commit that took longer than the
database did. Knows the two dialects of `governance.journal.engine` and nothing of what the rows hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from sqlalchemy import Connection, Dialect, Table

Row = tuple[Any, ...]


def insert_rows(connection: Connection, table: Table, rows: Sequence[Row]) -> None:
    """Insert `rows`, whose values stand in the order of the table's columns. No rows: nothing happens.

    Raises what SQLAlchemy raises; the caller's transaction decides what then holds.
    """
    if not rows:
        return
    statement = _statement(table, connection.dialect)
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(statement, tuple(map(list, zip(*rows, strict=True))))
    else:
        connection.exec_driver_sql(statement, list(rows))


@lru_cache(maxsize=64)
def _statement(table: Table, dialect: Dialect) -> str:
    columns = ", ".join(column.name for column in table.columns)
    if dialect.name == "postgresql":  # one array for each column, in binary: one message for all rows
        arrays = ", ".join(f"%b::{column.type.compile(dialect)}[]" for column in table.columns)
        return f"INSERT INTO {table.name} ({columns}) SELECT * FROM unnest({arrays})"
    return f"INSERT INTO {table.name} ({columns}) VALUES ({', '.join('?' for _ in table.columns)})"
