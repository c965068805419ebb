"""A consortium of real processes on this machine in which nothing is trained: one coordinator, one process per site.

Keys, signatures, enrolment, TLS, journal and disks are what they are anywhere; only what trains is a stand-in. All
that is started here is a child of the calling process and ends with it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.dataplane_parts import models
from benchmarks.dataplane_parts.models import CONSORTIUM, PARTNERS, Config
from benchmarks.figures import ROOT
from commons import charter_file
from commons.charter import Charter
from commons.errors import Unreachable
from commons.records import Kind, Record
from governance.journal import open_readonly
from hansa.chamber import Chamber
from hansa.charters import sign_charter
from hansa.demo.processes import free_ports
from hansa.hosting import operator_seat
from hansa.joining import join_as_site
from hansa.keys import new_key, read_public

RUN = "run-1"
STAND_IN = ("-m", "benchmarks.dataplane_parts.standin")
HANSA_SITE = ("-m", "hansa", "site", "start")
LOOK_S = 0.02
_TEXT = "\n\n".join(f"text {n}, which nobody reads" for n in range(40))


@dataclass
class Crowd:
    """The processes of one folder, by name."""

    folder: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    site_program: Sequence[str] = STAND_IN
    patience_s: float = 600.0
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    mortal: frozenset[str] = frozenset()
    """Those that may end by themselves."""
    address: str = ""
    """Where the coordinator listens, once it was started; the same at every start."""
    door: str = ""

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def charter(self) -> Charter:
        return charter_file.load(self.folder / "charter.toml")

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the partners; each has one site."""
        return tuple(site.partner for site in self.charter.sites)

    def start(self, name: str, *arguments: str) -> None:
        """Run `python ARGUMENTS` in the folder, logging to NAME.log."""
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "GRPC_VERBOSITY": "ERROR", **self.environment}
        with (self.folder / f"{name}.log").open("ab") as out:
            self.processes[name] = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=self.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
            )

    def start_coordinator(self) -> None:
        """And wait until it serves."""
        if not self.address:
            self.address, self.door = (f"127.0.0.1:{port}" for port in free_ports(2))
        self.start(
            "coordinator",
            *("-m", "hansa", "coordinator", "start", "--home", "home", "--mlflow", "none"),
            *("--charter", "charter.toml", "--founding", "founding", "--log-key", f"keys/{CONSORTIUM}.key"),
            *("--listen", self.address, "--enrolment", self.door),
        )
        names = self.sites
        self.wait_until(lambda: all(self._invite(name).exists() for name in names), "invites")
        self.wait_until(lambda: _serves(self.address) and _serves(self.door), "coordinator that listens")

    def join(self) -> None:
        """Real enrolment of every site."""
        for name in self.sites:
            if not (self.folder / name / "site.toml").exists():
                key = self.folder / "keys" / f"{name}.key"
                join_as_site(
                    self._invite(name),
                    key,
                    self.folder / name,
                    text=self.folder / "text.txt",
                    public=None,
                    cpus=0.5,
                )

    def start_sites(self) -> None:
        for name in self.sites:
            self.start(name, *self.site_program, f"{name}/site.toml")

    def wait_connected(self) -> None:
        """Until every site follows its orders."""
        names = self.sites
        self.wait_until(
            lambda: all("connected to the coordinator" in self.log(name) for name in names), "order streams"
        )

    def start_run(self) -> None:
        """Patiently: a large seed model takes longer than the operator's command waits."""
        with Chamber.at(operator_seat(self.home)) as chamber:
            while True:
                try:
                    chamber.start_run(self.folder / "seed", RUN)
                    return
                except Unreachable:
                    self.check()

    def records(self) -> list[Record]:
        with contextlib.closing(open_readonly(self.home / "journal.db")) as journal:
            return list(journal.records())

    def wait_for(self, kind: Kind, times: int = 1) -> None:
        """Until the journal has so many records of that kind."""
        with contextlib.closing(open_readonly(self.home / "journal.db")) as journal:
            seen = size = 0

            def enough() -> bool:
                nonlocal seen, size
                grown = journal.size
                seen += sum(record.kind is kind for record in journal.records(size, stop=grown))
                size = grown
                return seen >= times

            self.wait_until(enough, f"{times} {kind} records")

    def wait_until(self, holds: Callable[[], bool], what: str) -> None:
        """Raises AssertionError when a process ended by itself meanwhile, or patience does."""
        deadline = time.monotonic() + self.patience_s
        while not holds():
            self.check()
            assert time.monotonic() < deadline, f"no {what} in {self.patience_s:.0f} s\n{self.last_words()}"
            time.sleep(LOOK_S)

    def check(self) -> None:
        for name, process in self.processes.items():
            assert name in self.mortal or process.poll() is None, (
                f"{name} ended by itself:\n{self.log(name)[-2000:]}"
            )

    def stop(self) -> None:
        """Ask all to end, sites first, and wait; whoever does not is killed."""
        for name in reversed(list(self.processes)):
            self.processes[name].send_signal(signal.SIGTERM)
        for process in self.processes.values():
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.processes.clear()

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def last_words(self) -> str:
        return "\n".join(f"{name}: {self.log(name)[-500:]}" for name in self.processes)

    def _invite(self, name: str) -> Path:
        return self.home / "invites" / f"site-{name}-site.invite"


def found(
    folder: Path,
    config: Config,
    *,
    sites: int,
    experts: int = 1,
    rounds: int,
    sparse: bool = False,
    privacy: str = "none",
    absent: int = 0,
    **learning: Any,
) -> None:
    """Keys, a charter signed by all, a text, a seed model: all that is there before the first process starts."""
    names = PARTNERS[:sites]
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / "charter.toml").exists():
        return
    for name in (CONSORTIUM, *names):
        new_key(name, folder / "keys")
    keys = {n: read_public(folder / "keys" / f"{n}.key").vkey for n in (CONSORTIUM, *names)}
    of = models.charter(
        config, keys, experts=experts, rounds=rounds, learning=learning, privacy=privacy, absent=absent
    )
    charter_file.write(of, folder / "charter.toml")
    for name in names:
        sign_charter(folder / "charter.toml", folder / "keys" / f"{name}.key", folder / "founding")
    (folder / "text.txt").write_text(_TEXT)
    models.write_seed(folder / "seed", of, sparse=sparse)


@contextlib.contextmanager
def running(folder: Path, **changes: Any) -> Iterator[Crowd]:
    """A coordinator and its sites, all enrolled and connected; on leaving all have ended."""
    crowd = Crowd(folder, **changes)
    try:
        crowd.start_coordinator()
        crowd.join()
        crowd.start_sites()
        crowd.wait_connected()
        yield crowd
    finally:
        crowd.stop()


def _serves(address: str) -> bool:
    host, _, port = address.rpartition(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0
