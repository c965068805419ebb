"""A Postgres server of our own in a temporary folder, reached by a socket only."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class NoPostgres(Exception):
    """This machine has no Postgres server programs."""


@contextmanager
def running(*, durable: bool = False) -> Iterator[str]:
    """SQLAlchemy URL of a new, empty cluster; stopped and deleted at the end. Raises NoPostgres.

    `durable`: commits wait for the disk, as they would for a user; tests of what is stored need not.
    """
    programs = _programs()
    folder = Path(tempfile.mkdtemp(prefix="pg", dir="/tmp"))  # a socket's path must be short
    as_user: list[str] = []
    if os.getuid() == 0:  # the server refuses to run as root
        as_user = ["setpriv", "--reuid=nobody", "--clear-groups", "--"]
        shutil.chown(folder, "nobody")
    try:
        data = folder / "data"
        _run([*as_user, programs / "initdb", "-D", data, "-U", "hansa", "-A", "trust", "-N", "-E", "UTF8"])
        options = f"-c listen_addresses='' -c unix_socket_directories={folder}"
        options += f" -c fsync={'on' if durable else 'off'}"
        _run([*as_user, programs / "pg_ctl", "-D", data, "-l", folder / "log", "-w", "-o", options, "start"])
        try:
            yield f"postgresql+psycopg://hansa@/postgres?host={folder}"
        finally:
            _run([*as_user, programs / "pg_ctl", "-D", data, "-m", "immediate", "-w", "stop"])
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _programs() -> Path:
    found = shutil.which("initdb")
    candidates = (
        [Path(found).parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    )
    for folder in candidates:
        if (folder / "initdb").exists() and (folder / "pg_ctl").exists():
            return folder
    raise NoPostgres("no initdb on PATH or under /usr/lib/postgresql: install PostgreSQL to run these tests")


def _run(command: list[str | Path]) -> None:
    done = subprocess.run(
        list(map(str, command)),
        check=False,
        cwd="/",
        text=True,
        timeout=60,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    if done.returncode:
        raise RuntimeError(f"{command} failed: {done.stderr}")
