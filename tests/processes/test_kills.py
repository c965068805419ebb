"""Real processes killed without warning: a coordinator and a site, in the middle of rounds with real training."""

from __future__ import annotations

import argparse
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import unittest.mock
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from commons.records import Kind, Record
from governance.journal import open_readonly
from hansa.demo.processes import QUIET, descendants
from tests.simulation.auditor import audit, check_promises

ROOT = Path(__file__).parents[2]
ROUNDS = 500
"""Far more than happen: the test stops the run once the dead came back."""
SITES = ("alder", "birch")
ADDRESS = "address"
"""File that the Ray head writes once it is up (`hansa.demo.ray_head`)."""


@dataclass
class Real:
    """A consortium of two in a folder, as the commands of the documentation make it."""

    folder: Path
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    token: str = field(default_factory=lambda: secrets.token_hex(32))
    ray: str = "local"

    def hansa(self, *words: str) -> None:
        done = subprocess.run(
            self.command(*words),
            cwd=self.folder,
            env=self.env,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"hansa {' '.join(words)}\n{done.stdout}{done.stderr}"

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "hansa", *words]

    @property
    def env(self) -> dict[str, str]:
        """All sites join one Ray, which nobody kills: it is the coordinator and the sites that are to be missed."""
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token, "HANSA_RAY_ADDRESS": self.ray}
        return {**os.environ, **QUIET, **token, "PYTHONPATH": str(ROOT)}

    def start_ray(self, folder: Path) -> None:
        with (self.folder / "ray.log").open("wb") as out:
            self.running["ray"] = subprocess.Popen(
                [sys.executable, "-m", "hansa.demo.ray_head", str(folder), "2"],
                cwd=ROOT,
                env=self.env,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        deadline = time.monotonic() + 90
        while not (folder / ADDRESS).exists():
            assert time.monotonic() < deadline, (self.folder / "ray.log").read_text()[-2000:]
            time.sleep(0.05)
        self.ray = (folder / ADDRESS).read_text()

    def start(self, name: str, *words: str) -> None:
        with (self.folder / f"{name}.log").open("ab") as out:
            self.running[name] = subprocess.Popen(
                self.command(*words),
                cwd=self.folder,
                env=self.env,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )

    def start_coordinator(self) -> None:
        ports = self.folder / "ports.json"
        if not ports.exists():
            ports.write_text(json.dumps([free_port(), free_port()]))
        port, enrolment = json.loads(ports.read_text())
        self.start(
            "coordinator", "coordinator", "start", "--home", "home", "--charter", "charter.toml", "--founding", "founding",
            "--log-key", "keys/quay.key", "--listen", f"127.0.0.1:{port}", "--enrolment", f"127.0.0.1:{enrolment}",
            "--mlflow", "none",
        )  # fmt: skip

    def start_site(self, name: str) -> None:
        self.start(name, "site", "start", f"{name}/site/site.toml")

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

    def records(self) -> list[Record]:
        journal = open_readonly(self.folder / "home" / "journal.db")
        try:
            return list(journal.records())
        finally:
            journal.close()

    def wait_for(
        self, what: str, seen: Callable[[list[Record]], bool], timeout_s: float = 120
    ) -> list[Record]:
        deadline = time.monotonic() + timeout_s
        while not seen(records := self.records()):
            for name, process in self.running.items():
                assert process.poll() is None, (
                    f"{name} ended:\n{(self.folder / f'{name}.log').read_text()[-2000:]}"
                )
            assert time.monotonic() < deadline, f"no {what}: {[r.kind.value for r in records][-9:]}"
            time.sleep(0.05)
        return records


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def facts(records: list[Record], kind: Kind) -> list[dict[str, object]]:
    return [r.facts for r in records if r.kind is kind]


def contributors(records: list[Record]) -> list[list[str]]:
    return [list(map(str, c["contributors"])) for c in facts(records, Kind.CLOSE)]  # type: ignore[call-overload]


@pytest.fixture
def real(tmp_path: Path) -> Iterator[Real]:
    consortium = Real(tmp_path)
    short = Path(tempfile.mkdtemp(prefix="hansa-ray-"))  # Unix sockets allow 107 bytes
    try:
        consortium.start_ray(short)
        yield consortium
    finally:
        for name in list(consortium.running):
            consortium.kill(name)
        shutil.rmtree(short, ignore_errors=True)


def found(real: Real) -> None:
    """Keys, charter with a short grace, texts, seed, coordinator, seats."""
    for name in ("quay", *SITES):
        real.hansa("key", "new", name, "--folder", "keys")
    real.hansa(
        "charter", "new", "charter.toml", "--log-key", "keys/quay.pub", "--member", "keys/alder.pub", "--member",
        "keys/birch.pub", "--rounds", str(ROUNDS), "--inner-steps", "60",
    )  # fmt: skip
    charter = real.folder / "charter.toml"
    charter.write_text(
        charter.read_text().replace("grace_s = 60", "grace_s = 15").replace("lease_s = 600", "lease_s = 60")
    )
    for name, module in zip((*SITES, "public"), (argparse, unittest.mock, json.decoder), strict=True):
        (real.folder / f"{name}.txt").write_text(Path(str(module.__file__)).read_text())
        if name != "public":
            real.hansa("charter", "sign", "charter.toml", "--key", f"keys/{name}.key")
    real.hansa("seed", "make", "seed", "--charter", "charter.toml", "--text", "public.txt", "--steps", "4")
    real.start_coordinator()
    invites = [real.folder / "home" / "invites" / f"site-{name}-site.invite" for name in SITES]
    deadline = time.monotonic() + 60
    while not all(i.exists() for i in invites):
        assert time.monotonic() < deadline, (real.folder / "coordinator.log").read_text()
        time.sleep(0.05)
    for name, invite in zip(SITES, invites, strict=True):
        real.hansa(
            "site", "join", str(invite), "--key", f"keys/{name}.key", "--text", f"{name}.txt", "--public",
            "public.txt", "--folder", f"{name}/site",
        )  # fmt: skip


@pytest.mark.slow
@pytest.mark.ray
def test_a_run_survives_the_death_of_its_coordinator_and_of_a_site(real: Real) -> None:
    found(real)
    for name in SITES:
        real.start_site(name)
    real.hansa("run", "start", "--home", "home", "--seed", "seed")

    real.wait_for("second round", lambda seen: len(facts(seen, Kind.ROUND)) == 2)
    real.kill("coordinator")
    before = real.records()
    real.start_coordinator()
    records = real.wait_for("third round", lambda seen: len(facts(seen, Kind.ROUND)) >= 3)
    assert [r.leaf for r in records[: len(before)]] == [r.leaf for r in before], "history only grows"
    assert contributors(records)[1] == ["alder-site", "birch-site"], "no work was lost"

    open_round = len(facts(records, Kind.ROUND))
    real.kill("birch")
    records = real.wait_for("close", lambda seen: len(facts(seen, Kind.CLOSE)) >= open_round)
    assert contributors(records)[open_round - 1] == ["alder-site"], "quorum and grace"
    real.start_site("birch")
    real.wait_for("round with both", lambda seen: len(contributors(seen)[-1]) == 2)
    real.hansa("run", "stop", "--home", "home", "--reason", "seen enough")
    records = real.wait_for("end of the run", lambda seen: bool(facts(seen, Kind.FINISH)))

    closed = facts(records, Kind.CLOSE)
    assert [c["round"] for c in closed] == list(range(1, len(closed) + 1))
    assert facts(records, Kind.FINISH)[0]["phase"] == "stopped"
    books = audit(records)
    check_promises(books, {})
    assert set(books.charged_for.values()) == {1}
    real.hansa("journal", "verify", "--home", "home")
