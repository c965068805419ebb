"""A consortium of real processes in one folder, as the documentation's commands make it, and kill -9 at chosen moments.

Sites share one Ray that nobody kills: it is the coordinator and the sites that are to be missed. The model is as small
as it can be, so that a round takes about a second.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import unittest.mock
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from commons.records import Kind, Record
from governance.journal import open_readonly
from governance.journal.store import JournalReader
from hansa.demo.processes import QUIET, descendants, free_ports

ROOT = Path(__file__).parents[2]
SITES = ("alder", "birch")
"""Members; each has a site `NAME-site`."""
ROUNDS = 100_000
"""Far more than happen: whoever starts the run also stops it."""
AIMS = ("upload", "commit", "combine", "between", "start")
"""When the coordinator is killed: an update reaches the spool; a record the journal; the new state the disk; the
round is closed and the next not yet open; the coordinator itself is starting."""
TINY = {
    "hidden_size = 64": "hidden_size = 16",
    "num_hidden_layers = 2": "num_hidden_layers = 1",
    "num_attention_heads = 4": "num_attention_heads = 2",
    "moe_intermediate_size = 128": "moe_intermediate_size = 8",
    "max_position_embeddings = 512": "max_position_embeddings = 64",
    "sequence_length = 64": "sequence_length = 16",
    "batch_size = 8": "batch_size = 2",
    "budget_micro = 10000000": "budget_micro = 1000000000000",
    "lease_s = 600": "lease_s = 60",
}
_ADDRESS = "address"
"""File that the Ray head writes once it is up (`hansa.demo.ray_head`)."""
_ADMITTED = re.compile(r"round (\d+): the update is admitted, record (\d+) of the journal")
_STARTING_S = 1.5
_PATIENCE_S = 120.0


@dataclass
class Real:
    """The processes of one folder, by name; started again they go on with what the folder holds."""

    folder: Path
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    token: str = field(default_factory=lambda: secrets.token_hex(32))
    ray: str = "local"

    def hansa(self, *words: str) -> None:
        done = subprocess.run(
            self.command(*words), cwd=self.folder, env=self.env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"hansa {' '.join(words)}\n{done.stdout}{done.stderr}"

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "hansa", *words]

    @property
    def env(self) -> dict[str, str]:
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token, "HANSA_RAY_ADDRESS": self.ray}
        return {**os.environ, **QUIET, **token, "PYTHONPATH": str(ROOT)}

    def start_ray(self, folder: Path) -> None:
        self._start("ray", [sys.executable, "-m", "hansa.demo.ray_head", str(folder), "2"], cwd=ROOT)
        self.wait_until((folder / _ADDRESS).exists, "Ray")
        self.ray = (folder / _ADDRESS).read_text()

    def start_coordinator(self) -> None:
        listen, door = (f"127.0.0.1:{port}" for port in self.ports)
        words = ("--home", "home", "--charter", "charter.toml", "--founding", "founding", "--mlflow", "none")
        more = ("--log-key", "keys/quay.key", "--listen", listen, "--enrolment", door)
        self._start("coordinator", self.command("coordinator", "start", *words, *more))

    def start_site(self, name: str) -> None:
        self._start(name, self.command("site", "start", f"{name}/site/site.toml"))

    @property
    def ports(self) -> tuple[int, int]:
        """Of the coordinator: the same at every start."""
        kept = self.folder / "ports.json"
        if not kept.exists():
            kept.write_text(json.dumps(free_ports(2)))
        listen, door = json.loads(kept.read_text())
        return listen, door

    def kill(self, name: str) -> None:
        """kill -9, the process and what it started; nobody gets to say goodbye."""
        process = self.running.pop(name)
        family = descendants([process.pid])
        process.kill()
        process.wait()
        for pid in family:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")

    @contextmanager
    def journal(self) -> Iterator[JournalReader]:
        reader = open_readonly(self.folder / "home" / "journal.db")
        try:
            yield reader
        finally:
            reader.close()

    def records(self) -> list[Record]:
        with self.journal() as journal:
            return list(journal.records())

    def wait_for(self, what: str, seen: Callable[[list[Record]], bool]) -> list[Record]:
        """The records once `seen` is content with them."""
        found: list[Record] = []

        def look() -> bool:
            found[:] = self.records()
            return seen(found)

        self.wait_until(look, what)
        return found

    def wait_until(self, holds: Callable[[], bool], what: str, pause_s: float = 0.05) -> None:
        """Fails when it takes too long, or when a process ended by itself meanwhile."""
        deadline = time.monotonic() + _PATIENCE_S
        while not holds():
            for name, process in self.running.items():
                assert process.poll() is None, f"{name} ended by itself:\n{self.log(name)[-2000:]}"
            assert time.monotonic() < deadline, f"no {what} in {_PATIENCE_S:.0f} s"
            time.sleep(pause_s)

    def serves(self) -> bool:
        """Whether somebody listens on the coordinator's port."""
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.ports[0])) == 0

    def acknowledged(self, run: str) -> dict[tuple[str, int, str], int]:
        """(run, round, site) -> record, as the coordinator told the sites, from their logs."""
        return {
            (run, int(number), f"{name}-site"): int(index)
            for name in SITES
            for number, index in _ADMITTED.findall(self.log(name))
        }

    def _start(self, name: str, command: Sequence[str], cwd: Path | None = None) -> None:
        with (self.folder / f"{name}.log").open("ab") as out:
            self.running[name] = subprocess.Popen(
                command, cwd=cwd or self.folder, env=self.env, stdout=out, stderr=out, start_new_session=True
            )


@contextmanager
def real_consortium(folder: Path) -> Iterator[Real]:
    """With a Ray of its own; on leaving everything is killed. The folder may hold a consortium already."""
    folder.mkdir(parents=True, exist_ok=True)
    consortium = Real(folder)
    short = Path(tempfile.mkdtemp(prefix="hansa-ray-"))  # Unix sockets allow 107 bytes
    try:
        consortium.start_ray(short)
        yield consortium
    finally:
        for name in list(consortium.running):
            consortium.kill(name)
        shutil.rmtree(short, ignore_errors=True)


def found(real: Real, *, inner_steps: int, grace_s: int, quorum: int = 1) -> None:
    """Keys, charter, texts, seed, a running coordinator, seats. `quorum`: sites that a round cannot do without."""
    for name in ("quay", *SITES):
        real.hansa("key", "new", name, "--folder", "keys")
    members = [word for name in SITES for word in ("--member", f"keys/{name}.pub")]
    sizes = ("--rounds", str(ROUNDS), "--inner-steps", str(inner_steps))
    real.hansa("charter", "new", "charter.toml", "--log-key", "keys/quay.pub", *members, *sizes)
    _shrink(
        real.folder / "charter.toml",
        TINY | {"grace_s = 60": f"grace_s = {grace_s}", "quorum = 1 # upd": f"quorum = {quorum} # upd"},
    )
    for name, module in zip((*SITES, "public"), (argparse, unittest.mock, json.decoder), strict=True):
        (real.folder / f"{name}.txt").write_text(Path(str(module.__file__)).read_text())
    for name in SITES:
        real.hansa("charter", "sign", "charter.toml", "--key", f"keys/{name}.key")
    real.hansa("seed", "make", "seed", "--charter", "charter.toml", "--text", "public.txt", "--steps", "4")
    real.start_coordinator()
    for name in SITES:
        invite = real.folder / "home" / "invites" / f"site-{name}-site.invite"
        real.wait_until(invite.exists, f"invite of {name}")
        texts = ("--text", f"{name}.txt", "--public", "public.txt")
        real.hansa(
            "site", "join", str(invite), "--key", f"keys/{name}.key", *texts, "--folder", f"{name}/site"
        )


def _shrink(charter: Path, changes: dict[str, str]) -> None:
    text = charter.read_text()
    for old, new in changes.items():
        assert old in text, f"a new charter has no {old!r} any more"
        text = text.replace(old, new)
    charter.write_text(text)


@dataclass(frozen=True)
class Kill:
    """The coordinator's end, and that it came back."""

    aim: str
    deaths: int
    """2 when it was killed again while it started."""
    after: str
    """Kind of the last record that it left."""
    records: int
    serving_s: float
    """From the last death until the port answered."""
    resumed_s: float
    """From the last death until the journal had grown."""


class Killer:
    """Kills a running coordinator at a moment of the given aim and sees it resume."""

    def __init__(self, real: Real, seed: int) -> None:
        self._real, self._dice = real, random.Random(seed)

    def kill(self, aim: str) -> Kill:
        """Asserts on the way that the history only grew."""
        real = self._real
        with real.journal() as journal:
            before = [r.leaf for r in journal.records()]
        self._await(aim)
        deaths = 2 if aim == "start" else 1
        for death in range(deaths):
            if death:
                time.sleep(self._dice.uniform(0, _STARTING_S))
            real.kill("coordinator")
            killed = time.monotonic()
            real.start_coordinator()
        real.wait_until(real.serves, "listening coordinator", 0.01)
        serving_s = time.monotonic() - killed
        with real.journal() as journal:
            left = list(journal.records())
            assert [r.leaf for r in left[: len(before)]] == before, "history only grows"
            real.wait_until(lambda: journal.size > len(left), "new record", 0.01)
            resumed_s = time.monotonic() - killed
        return Kill(aim, deaths, left[-1].kind.value, len(left), serving_s, resumed_s)

    def _await(self, aim: str) -> None:
        """Wait for the next moment of this kind, then a random instant of it."""
        looks: dict[str, tuple[Callable[[], set[str]], float]] = {
            "upload": (lambda: _names(home / "spool", "*/*/*"), 0.003),
            "commit": (lambda: _changed(home / "journal.db-wal"), 0.003),
            "combine": (lambda: _names(home / "states" / "drafts", "*"), 0.005),
            "between": (lambda: _names(home / "spool", "*/*"), 0.2),
            "start": (lambda: _changed(home / "journal.db-wal"), 0.5),
        }
        home = self._real.folder / "home"
        look, longest_s = looks[aim]
        seen = look()

        def came() -> bool:
            nonlocal seen
            before, seen = seen, look()
            return bool(before - seen if aim == "between" else seen - before)

        self._real.wait_until(came, f"moment to kill ({aim})", 0.0005)
        time.sleep(self._dice.uniform(0, longest_s))


def _names(folder: Path, pattern: str) -> set[str]:
    try:
        return {str(path) for path in folder.glob(pattern)}
    except OSError:  # it went while it was looked at
        return set()


def _changed(file: Path) -> set[str]:
    try:
        return {str(file.stat().st_mtime_ns)}
    except OSError:
        return set()


def facts(records: Sequence[Record], kind: Kind) -> list[dict[str, object]]:
    return [dict(r.facts) for r in records if r.kind is kind]


def contributors(records: Sequence[Record]) -> list[list[str]]:
    return [list(map(str, c["contributors"])) for c in facts(records, Kind.CLOSE)]  # type: ignore[call-overload]
