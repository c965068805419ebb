"""Real sites as processes of their own: one site's consortium, its files, and what its process tree holds."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from commons.charter import Charter
from orchestrator.coordinator import Coordinator
from tests.support.consortium import charter, enrol, signer

ROOT = Path(__file__).parents[2]
SITE = "alder"


def one_site(**changes: object) -> Charter:
    """A charter with one member and one site that owns two experts, trained in three rounds with int8 trunk.

    The site is its own witness.
    """
    member = {"name": SITE, "key": signer(SITE).vkey, "budget_micro": 10**12}
    site = {
        "name": SITE,
        "partner": SITE,
        "payer": SITE,
        "domain": "words",
        "experts": ("words-0", "words-1"),
        "device": "cpu",
        "data_statement": "Drawn for tests.",
    }
    learning = {
        "rounds": 3,
        "inner_steps": 400,
        "batch_size": 8,
        "sequence_length": 32,
        "learning_rate": 0.01,
        "codecs": {"trunk": "int8", "expert": "bf16"},
    }
    rounds = {"quorum": 1, "grace_s": 5, "lease_s": 300}
    return charter(
        **{
            "members": (member,),
            "sites": (site,),
            "learning": learning,
            "rounds": rounds,
            "witnesses": {"quorum": 1},
            **changes,
        }
    )


def write_site(folder: Path, coordinator: Coordinator, *, ray: str, more: str = "") -> Path:
    """Enrol the site and write its SITE.toml and text."""
    enrol(coordinator, "site", SITE, folder / "seat")
    key = folder / "seat" / "site.key"
    key.write_text(signer(f"{SITE}/{SITE}").to_text())
    key.chmod(0o600)
    random = np.random.default_rng(0)
    words = ["alder", "birch", "cedar", "dogwood", "elm", "fir"]
    (folder / "words.txt").write_text("\n\n".join(" ".join(random.choice(words, 20)) for _ in range(100)))
    file = folder / "SITE.toml"
    about = f'[site]\nname = "{SITE}"\npartner = "{SITE}"\ntext = "words.txt"\n'
    file.write_text(f'{about}[ray]\naddress = "{ray}"\ncpus = 0.5\n{more}')
    return file


class SiteProcess:
    """`hansa site start`, logging to a file."""

    def __init__(self, file: Path, log: Path, environment: dict[str, str]) -> None:
        self.log = log
        with log.open("ab") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "hansa", "site", "start", str(file)],
                cwd=ROOT,
                env=environment,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)

    def stop(self) -> float:
        """Seconds it took to end after SIGTERM."""
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(20)
        return time.monotonic() - began


@contextmanager
def site_process(file: Path, log: Path, environment: dict[str, str]) -> Iterator[SiteProcess]:
    running = SiteProcess(file, log, environment)
    try:
        yield running
    except BaseException:
        print(f"exit code {running.process.poll()}, {log}:\n{log.read_text()}")
        raise
    finally:
        if running.process.poll() is None:
            running.kill()


def descendants(pid: int) -> list[int]:
    """Process ids below `pid`, as they are now."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            parents.setdefault(parent, []).append(int(entry.name))
    found, ahead = [], [pid]
    while ahead:
        children = parents.get(ahead.pop(), [])
        found += children
        ahead += children
    return found


def actors(head: int) -> list[int]:
    """The training actors below a Ray head."""
    return [pid for pid in descendants(head) if b"TrainingActor" in _read(pid, "cmdline")]


def loads(pid: int, library: str) -> bool:
    """Whether the process has mapped a shared library of that name."""
    return library.encode() in _read(pid, "maps")


def _read(pid: int, what: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{what}").read_bytes()
    except OSError:
        return b""


def end(head: subprocess.Popen[bytes]) -> None:
    """End a Ray head that this test started and exactly the processes that came from it."""
    below = descendants(head.pid)
    head.send_signal(signal.SIGTERM)
    try:
        head.wait(10)
    except subprocess.TimeoutExpired:
        head.kill()
        head.wait(5)
    for pid in below:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def eventually(holds: Callable[[], object], what: str, timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, f"{what} did not happen in {timeout_s:.0f} s"
        time.sleep(0.05)
