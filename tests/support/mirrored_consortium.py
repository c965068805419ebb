"""A coordinator and MLflow's server as processes, sites and votes that never rest, and kill -9 at chosen moments.

Sites are `FakeSite`s: it is the mirror that is to be missed, not the training.
"""

from __future__ import annotations

import json
import random
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import grpc

from commons import charter_file
from commons.ballots import Proposal
from commons.charter import Charter
from commons.errors import HansaError
from commons.identity import Seat
from commons.opening import Opening
from commons.records import Record
from commons.views import CharterView
from governance.journal import open_readonly
from governance.quoting import latest_run
from governance.tracking.cursor import CURSOR, CursorFile
from hansa.chamber import Chamber
from hansa.demo.processes import free_ports
from hansa.hosting import operator_seat
from orchestrator.coordinator import Coordinator
from tests.support.chamber import ballot
from tests.support.consortium import (
    NAME,
    SITES,
    FakeSite,
    Office,
    budgets,
    charter,
    enrol,
    found,
    over,
    signer,
)
from tests.support.mlflow_server import MlflowServer
from tests.support.real_consortium import Real

ROUNDS = 4
PAUSE_S = 6.0
"""Between two runs, which are over in a second: what MLflow's server takes in, one after the other, is the limit."""
PATIENCE_S = 180.0
STARTING_S = 5.0
"""A kill that is aimed at a start comes within this."""
WRITING_S = 1.0
"""Any other within this, once the mirror has written something since the last."""


@dataclass(frozen=True)
class Death:
    who: str
    aim: str
    records: int
    """In MLflow by the cursor."""


class Mirrored:
    """Everything of one folder; taken up again it goes on with what the folder holds."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / "home"
        kept = folder / "ports.json"
        if not kept.exists():
            kept.write_text(json.dumps(free_ports(3)))
        *self._ports, port = json.loads(kept.read_text())
        self.server = MlflowServer(folder / "mlflow", port=port)
        self._real = Real(folder)
        self._folder = folder
        if not self.home.exists():
            purses = budgets(**dict.fromkeys(SITES, 10**12))
            found(folder, charter(members=purses, learning__rounds=ROUNDS, voting__window_s=3600))
        self.traffic: _Traffic | None = None

    def start_coordinator(self) -> None:
        listen, door = (f"127.0.0.1:{port}" for port in self._ports)
        words = ("coordinator", "start", "--home", "home", "--listen", listen, "--enrolment", door)
        command = self._real.command(*words, "--mlflow", self.server.uri)
        with (self._folder / "coordinator.log").open("ab") as out:
            self._real.running["coordinator"] = subprocess.Popen(
                command, cwd=self._folder, env=self._real.env, stdout=out, stderr=out, start_new_session=True
            )

    def begin(self) -> None:
        """Both are up, the sites have their seats, runs and votes go on."""
        self.server.start()
        self.server.wait()
        self.start_coordinator()
        invites = self.home / "invites"
        self.wait_until(lambda: all((invites / f"site-{s}.invite").exists() for s in SITES), "invites")
        self.wait_until(lambda: operator_seat(self.home).is_dir(), "operator's seat")
        here = cast(Coordinator, SimpleNamespace(home=self.home))
        seats: dict[str, Seat] = {}
        for name in SITES:
            for role in ("site", "member"):
                folder = self._folder / "seats" / f"{role}-{name}"
                seats[f"{role}-{name}"] = self._seat(here, role, name, folder)
        self.traffic = _Traffic(self.home, self._folder / "seed", seats)
        self.traffic.start()

    def _seat(self, here: Coordinator, role: str, name: str, folder: Path) -> Seat:
        address = f"127.0.0.1:{self._ports[0]}"
        if (folder / "seat.toml").exists():
            return Seat(**{**vars(Seat.load(folder)), "address": address})
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                return enrol(here, role, name, folder)
            except grpc.RpcError:
                assert time.monotonic() < deadline, "the coordinator does not answer"
                time.sleep(0.1)

    def kill(self, who: str, aim: str, dice: random.Random) -> Death:
        """One of the two at a moment of this kind; it is started again at once."""
        before = self.written
        if aim == "start":
            time.sleep(dice.uniform(0, STARTING_S))
        else:
            self.wait_until(lambda: self.written > before, "record in MLflow")
            time.sleep(dice.uniform(0, WRITING_S))
        death = Death(who, aim, self.written)
        if who == "coordinator":
            self._real.kill("coordinator")
            self.start_coordinator()
        else:
            self.server.kill()
            self.server.start()
        return death

    @property
    def written(self) -> int:
        cursor = CursorFile(self.home / CURSOR).read()
        return cursor.next if cursor else 0

    @property
    def recorded(self) -> int:
        journal = open_readonly(self.home)
        try:
            return journal.size
        finally:
            journal.close()

    def rest(self) -> None:
        """No more runs and votes; wait until everything is in MLflow."""
        if self.traffic is not None:
            self.traffic.end()
        while (before := self.written) < self.recorded:
            self.wait_until(partial(self._has_written_beyond, before), "mirror that catches up")

    def _has_written_beyond(self, index: int) -> bool:
        return self.written > index

    def records(self) -> list[Record]:
        journal = open_readonly(self.home)
        try:
            return list(journal.records())
        finally:
            journal.close()

    def log(self) -> str:
        return (self._folder / "coordinator.log").read_text(errors="replace")

    def wait_until(self, holds: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not holds():
            for name, process in self._real.running.items():
                assert process.poll() is None, f"{name} ended by itself:\n{self.log()[-2000:]}"
            assert time.monotonic() < deadline, f"no {what} in {PATIENCE_S:.0f} s: {self._last_words()}"
            time.sleep(0.05)

    def _last_words(self) -> str:
        troubles = self.traffic.troubles[-3:] if self.traffic else []
        return "\n".join([*troubles, self.log()[-2000:]])

    def close(self) -> None:
        if self.traffic is not None:
            self.traffic.end()
        for name in list(self._real.running):
            self._real.kill(name)
        self.server.kill()


@contextmanager
def mirrored_consortium(folder: Path) -> Iterator[Mirrored]:
    """Begun; everything is killed at the end."""
    folder.mkdir(parents=True, exist_ok=True)
    mirrored = Mirrored(folder)
    try:
        mirrored.begin()
        yield mirrored
    finally:
        mirrored.close()


class _Traffic:
    """Runs one after the other, a vote in each, a release in every third; whatever dies, it goes on when it is back."""

    def __init__(self, home: Path, seed: Path, seats: dict[str, Seat]) -> None:
        self._home, self._seed, self._seats = home, seed, seats
        self._sites: dict[str, FakeSite] = {}
        self._stop = threading.Event()
        self._count = 0
        self.troubles: list[str] = []
        """What went wrong: the coordinator is killed all the time."""
        self._thread = threading.Thread(target=self._go_on, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def end(self) -> None:
        """After the run at hand."""
        self._stop.set()
        self._thread.join(PATIENCE_S)
        for site in self._sites.values():
            site.close()
        self._sites = {}

    def _go_on(self) -> None:
        while not self._stop.is_set():
            try:
                self._one_run()
            except (HansaError, grpc.RpcError) as died:
                self.troubles.append(str(died))
                time.sleep(0.2)

    def _one_run(self) -> None:
        operator = Seat.load(operator_seat(self._home))
        with Chamber(operator) as chamber:
            of = charter_file.from_canonical(chamber.read(CharterView).text.encode())
            latest = latest_run(chamber)
        office = Office(operator)
        try:
            if latest is None or over(latest):
                number = int(latest.run.rpartition("-")[2]) if latest else 0
                name = office.start_run(self._seed, f"run-{number + 1}")
            else:
                name = latest.run
            self._vote(of, "inner-steps", {"steps": of.learning.inner_steps % 8 + 1})
            while not over(office.run(name)):
                self._connect()
                time.sleep(0.1)
        finally:
            office.close()
        self._count += 1
        if self._count % 3 == 1:
            self._release(name)
        self._stop.wait(PAUSE_S)

    def _release(self, run: str) -> None:
        with Chamber(Seat.load(operator_seat(self._home))) as chamber:
            folder = self._home.parent / "releases" / f"{run}-{time.monotonic_ns()}"
            _, manifest = chamber.make_release(folder, run)
            of = charter_file.from_canonical(chamber.read(CharterView).text.encode())
        gates = "sha256:" + "0" * 64
        asked = {"manifest": manifest, "alias": "released", "licence": "Apache-2.0", "gates": gates}
        self._vote(of, "model-release", asked)

    def _vote(self, law: Charter, feature: str, parameters: Mapping[str, object]) -> None:
        nonce = f"{time.monotonic_ns():032x}"
        wish = Proposal(
            NAME, SITES[0], f"Vote {nonce[-6:]}", feature, parameters, charter_file.digest(law), 1, nonce
        )
        opening = Opening.of(wish, law, number=1, now_ms=0)
        for name in SITES:
            with Chamber(self._seats[f"member-{name}"]) as chamber:
                if name == SITES[0]:
                    chamber.submit(signer(name).sign(wish.compose()))
                chamber.submit(signer(name).sign(ballot(opening, name, "for", consortium=NAME).compose()))

    def _connect(self) -> None:
        for name in SITES:
            site = self._sites.get(name)
            if site is None or not site._thread.is_alive():
                if site is not None:
                    site.close()
                self._sites[name] = FakeSite(self._seats[f"site-{name}"], charter()).start()
