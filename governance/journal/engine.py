"""Where a journal lives and how it is reached: engines, durability settings, and the lock of its one writer."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
from pathlib import Path
from typing import IO, Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

from commons.errors import StoreError

FILE_NAME = "journal.db"
_BUSY_S = 10
"""How long a writer waits for a stranger's transaction (a backup, a shell) to end."""


def resolve(url: str | Path) -> URL:
    """The SQLAlchemy URL of a URL, of a database file (has a suffix), or of the folder that holds `FILE_NAME`.

    Raises StoreError for anything that would not be durable or is neither SQLite nor Postgres.
    """
    if isinstance(url, Path) or "://" not in url:
        path = Path(url).expanduser()
        return URL.create("sqlite", database=str(path if path.suffix else path / FILE_NAME))
    try:
        parsed = make_url(url)
        parsed.get_dialect()
    except (ArgumentError, NoSuchModuleError, ImportError) as wrong:
        raise StoreError(
            f"{url!r} cannot be used as a journal: {wrong}; "
            "give a folder, sqlite:///FILE or postgresql+psycopg://USER@HOST/DATABASE"
        ) from wrong
    if parsed.get_backend_name() not in ("sqlite", "postgresql"):
        raise StoreError(f"a journal lives in SQLite or Postgres, not in {parsed.get_backend_name()}")
    if parsed.get_backend_name() == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise StoreError("a journal in memory would not be durable; give sqlite:///FILE")
    return parsed


def describe(url: URL) -> str:
    """How messages name the store; never with a password."""
    return (
        str(url.database) if url.get_backend_name() == "sqlite" else url.render_as_string(hide_password=True)
    )


def engine_for(url: URL, *, readonly: bool) -> Engine:
    """An engine whose connections are durable at commit. Read-only ones cannot write."""
    if url.get_backend_name() == "sqlite":
        return _sqlite(url, readonly=readonly)
    options = "-c synchronous_commit=on" + (" -c default_transaction_read_only=on" if readonly else "")
    return create_engine(
        url,
        connect_args={"options": options, "application_name": f"hansa journal pid {os.getpid()}"},
        pool_pre_ping=True,
    )


def _sqlite(url: URL, *, readonly: bool) -> Engine:
    path = Path(str(url.database)).absolute()
    if readonly:
        url = URL.create("sqlite", database=f"file:{path}", query={"mode": "ro", "uri": "true"})
    engine = create_engine(url, connect_args={"timeout": _BUSY_S})

    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # the driver's own BEGIN is deferred: two writers could deadlock
        for pragma in ("synchronous=FULL", "foreign_keys=ON", "recursive_triggers=ON", "cell_size_check=ON"):
            connection.execute(f"PRAGMA {pragma}")
        if not readonly:
            (mode,) = connection.execute("PRAGMA journal_mode=WAL").fetchone()
            if mode != "wal":
                raise StoreError(
                    f"{path} is on a file system without shared memory: put the journal on a local disk"
                )

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get("writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


_SESSION_KEY = "hashtextextended('hansa journal ' || current_schema(), 0)"
_SESSION_HOLDER = f"""
SELECT a.application_name || ' from ' || coalesce(host(a.client_addr), 'the same machine')
FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
WHERE l.locktype = 'advisory' AND l.granted AND a.datname = current_database()
AND (l.classid::bigint << 32 | l.objid::bigint) = {_SESSION_KEY}
"""


class WriterLock:
    """At most one process may append to a journal. Held until `release` or the end of the process.

    SQLite: an advisory lock on ``<file>.lock``, whose text says who holds it. Postgres: an advisory lock of the
    session that also appends, so that a lost session can never append again.
    """

    def __init__(self, url: URL, *, now_ms: int) -> None:
        self._name = describe(url)
        self._file: IO[str] | None = None
        if url.get_backend_name() == "sqlite":
            self._lock_file(Path(str(url.database)), now_ms)

    def _lock_file(self, path: Path, now_ms: int) -> None:
        file = Path(f"{path}.lock").open("a+", encoding="utf-8")  # noqa: SIM115 - held open as long as the lock
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as wrong:
            file.seek(0)
            holder = _holder(file.read())
            file.close()
            raise StoreError(_held(self._name, holder)) from wrong
        file.seek(0)
        file.truncate()
        json.dump({"pid": os.getpid(), "host": socket.gethostname(), "since_ms": now_ms}, file)
        file.flush()
        self._file = file

    def take_session(self, connection: Connection) -> None:
        """Postgres: take the lock in this session. SQLite: nothing to do. Raises StoreError naming the holder."""
        if connection.dialect.name != "postgresql":
            return
        taken = connection.execute(text(f"SELECT pg_try_advisory_lock({_SESSION_KEY})")).scalar_one()
        if taken:
            return
        holder = connection.execute(text(_SESSION_HOLDER)).scalar()
        raise StoreError(_held(self._name, holder or "another session"))

    def release(self) -> None:
        """Let the next writer in. Asked twice: nothing more happens."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _holder(note: str) -> str:
    with contextlib.suppress(ValueError, KeyError, TypeError):
        facts = json.loads(note)
        return f"process {facts['pid']} on {facts['host']}"
    return "another process"


def _held(name: str, holder: str) -> str:
    return (
        f"the journal {name} is in use by {holder}: only one coordinator may write it; "
        "stop that one first, or start this one with another home"
    )
