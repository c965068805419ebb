"""A disk that fails: every step by which the coordinator makes something durable passes here, and may be its last.

A step is a call of the operating system (write, fsync, rename, remove), a statement or a commit of the journal. At any
of them the process may die, before or after the step took effect, with a write half done; what was not yet synced may
be lost with it, as in a power cut. Or the disk is full just then, and the program has to live with it.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import sqlite3
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any
from unittest.mock import patch

from sqlalchemy import Engine, event
from sqlalchemy.exc import OperationalError

ROOT = Path(__file__).parents[2]
OWN = ("commons", "governance", "orchestrator")
"""Folders of what runs in the world; a virtual environment may lie beside them."""


class Crash(BaseException):
    """The coordinator's process dies here."""


class Storage:
    """The durable files below `folder`. `armed`: steps may fail now; between lives and while founding they do not.

    `meanwhile` is called while a model state is saved: no lock is held then, anything may happen.
    """

    def __init__(
        self, folder: Path, dice: random.Random, *, crash: float, full: float, overlap: float
    ) -> None:
        self.folder, self.armed = folder, False
        self.meanwhile: Callable[[], object] = lambda: None
        self.died: Counter[str] = Counter()
        """Step at which the process died -> how often, as ``module function operation``."""
        self.filled: Counter[str] = Counter()
        """Step at which the disk was full -> how often."""
        self._dice, self._crash, self._full, self._overlap = dice, crash, full, overlap
        self._thread = threading.get_ident()
        self._dead, self._inside = False, False
        self._synced: dict[int, tuple[str, int]] = {}
        """Inode -> where it is, and how many of its bytes are durable. Only of files written by `os.write` and `os.pwrite`."""
        self._over: dict[int, list[tuple[int, bytes]]] = {}
        """Inode -> (offset, bytes that were there) of what was written over and is not durable."""
        self._whole: set[int] = set()
        """Inodes whose bytes are durable."""
        self._left: dict[Path, bytes] = {}

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Every step of this thread is seen."""
        with ExitStack() as stack:
            for owner, name in (
                (os, "fsync"),
                (os, "write"),
                (os, "pwrite"),
                (os, "replace"),
                (os, "unlink"),
                (shutil, "rmtree"),
            ):
                seen = self._seen(getattr(owner, name), name)
                stack.enter_context(patch.object(owner, name, seen))
            for name in ("replace", "unlink"):  # not by way of `os` in every version of Python
                method = getattr(Path, name)
                stack.enter_context(patch.object(Path, name, self._method(method, name)))
            for name, listener in (("before_cursor_execute", self._statement), ("commit", self._commit)):
                event.listen(Engine, name, listener)
                stack.callback(event.remove, Engine, name, listener)
            yield

    def revive(self) -> None:
        """After the process died and let go of everything: the files as its death left them."""
        assert self._dead, "nobody died"
        self._dead = self.armed = False
        for file in self.folder.glob("journal.db*"):
            file.unlink()
        for file, data in self._left.items():
            file.write_bytes(data)
        self._left = {}

    def _happen(self) -> None:
        """Not while something happens already: other threads would wait for its locks, and here is only one."""
        meanwhile, self.meanwhile = self.meanwhile, lambda: None
        try:
            meanwhile()
        finally:
            self.meanwhile = meanwhile

    def _seen(self, real: Callable[..., Any], name: str) -> Callable[..., Any]:
        def step(*args: Any, **kwargs: Any) -> Any:
            if self._inside or threading.get_ident() != self._thread:
                return real(*args, **kwargs)
            if name == "fsync" and self.armed and self._dice.random() < self._overlap and _in_states():
                self._happen()
            self._before(name)
            if name in ("write", "pwrite"):
                return self._written(name, real, *args)
            self._inside = True
            try:
                self._follow(name, *args)
                done = real(*args, **kwargs)
            finally:
                self._inside = False
            self._after(name)
            return done

        return step

    def _method(self, real: Callable[..., Any], name: str) -> Callable[..., Any]:
        seen = self._seen(real, name)

        def step(path: Path, *args: Any, **kwargs: Any) -> Any:
            return seen(path, *args, **kwargs)

        return step

    def _written(self, name: str, real: Callable[..., int], handle: int, data: Any, *at: int) -> int:
        """Maybe half of it, and then no more."""
        file = os.fstat(handle)
        where, durable = self._synced.get(file.st_ino, ("", file.st_size))
        self._synced[file.st_ino] = (where or _path(handle), min(durable, file.st_size))
        self._whole.discard(file.st_ino)
        if at:
            before = Path(_path(handle) or os.devnull).read_bytes()[at[0] : at[0] + len(data)]
            self._over.setdefault(file.st_ino, []).append((at[0], before))
        if self.armed and self._dice.random() < self._crash / 4:
            real(handle, memoryview(data)[: self._dice.randrange(len(data) + 1)], *at)
            self._die(name)
        done = real(handle, data, *at)
        self._after(name)
        return done

    def _follow(self, name: str, what: Any, *rest: Any) -> None:
        if name == "fsync":
            file = os.fstat(what)
            self._whole.add(file.st_ino)
            self._over.pop(file.st_ino, None)
            if file.st_ino in self._synced:
                self._synced[file.st_ino] = (self._synced[file.st_ino][0], file.st_size)
        elif name == "replace" and Path(what).is_file():
            # What a spare file holds is nobody's any more: it is written over under its new name.
            spare = any(Path(path).parent.name == ".spare" for path in (what, *rest[:1]))
            whole = spare or os.stat(what).st_ino in self._whole
            assert whole, f"{what} gets its name before its bytes are durable"
            if spare:
                self._whole.discard(os.stat(what).st_ino)
            if os.stat(what).st_ino in self._synced:
                self._synced[os.stat(what).st_ino] = (str(rest[0]), self._synced[os.stat(what).st_ino][1])

    def _statement(self, *about: Any) -> None:
        if threading.get_ident() == self._thread and about[2].startswith(("INSERT", "UPDATE", "CREATE")):
            self._before("statement")

    def _commit(self, connection: Any) -> None:
        if threading.get_ident() == self._thread:
            self._before("commit")

    def _before(self, name: str) -> None:
        if self._dead:
            raise Crash
        if not self.armed:
            return
        if self._dice.random() < self._deadly(name):
            self._die(name)
        if name not in ("unlink", "rmtree") and self._dice.random() < self._full:
            self.filled[_caller(name)] += 1
            if name in ("statement", "commit"):
                raise OperationalError(name, {}, sqlite3.OperationalError("database or disk is full"))
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def after_commit(self) -> None:
        """A transaction of the journal is durable."""
        self._after("committed")

    def _after(self, name: str) -> None:
        if self.armed and self._dice.random() < self._deadly(name):
            self._die(name)

    def _deadly(self, name: str) -> float:
        """One model state is some fifty steps, one record is two: both shall be fatal now and then."""
        return self._crash / (10 if name in ("fsync", "replace", "unlink") else 2)

    def _die(self, name: str) -> None:
        """What is on disk now is what a killed process leaves; half of the deaths are power cuts."""
        self._dead = True
        self.died[_caller(name)] += 1
        if self._dice.random() < 0.5:
            for inode, (path, durable) in sorted(self._synced.items(), key=lambda item: item[1]):
                file = Path(path)
                if not file.exists() or file.stat().st_ino != inode:
                    continue
                with file.open("r+b") as lost:
                    for at, before in reversed(self._over.get(inode, [])):
                        if self._dice.random() < 0.5:
                            lost.seek(at)
                            lost.write(before)
                if file.stat().st_size > durable:
                    os.truncate(file, self._dice.randrange(durable, file.stat().st_size + 1))
        self._synced.clear()
        self._over.clear()
        names = ("journal.db", "journal.db-wal")
        self._left = {file: file.read_bytes() for n in names if (file := self.folder / n).exists()}
        raise Crash


def _path(handle: int) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{handle}")
    except OSError:  # not on this system: then a power cut loses nothing of it
        return ""


def _in_states() -> bool:
    return any(file.is_relative_to(ROOT / "commons" / "states") for file, _ in _stack())


def _caller(step: str) -> str:
    """The project's own function that made the step."""
    for file, function in _stack():
        if any(file.is_relative_to(ROOT / folder) for folder in OWN):
            return f"{file.relative_to(ROOT).as_posix()} {function} {step}"
    return f"elsewhere {step}"


def _stack() -> Iterator[tuple[Path, str]]:
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        yield Path(frame.f_code.co_filename), frame.f_code.co_name
        frame = frame.f_back
