"""The processes a demo starts, and how every one of them is gone within five seconds.

Each child leads its own session and process group and writes to its own log. Stopping asks all groups at once,
waits, then kills: the groups, and whatever else descends from them (Ray's workers lead sessions of their own), by
the process ids seen while they ran. Nothing is ever stopped by name.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from typing_extensions import Self

from commons.errors import HansaError

ASK_S = 2.0
"""How long children may take to stop by themselves."""
QUIET = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "2",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "GRPC_VERBOSITY": "ERROR",
    "GLOG_minloglevel": "2",
    "PYTHONUNBUFFERED": "1",
    "PYTHONWARNINGS": "ignore",
}
"""One thread each, few malloc arenas, no network, quiet logs."""


class ChildFailed(HansaError):
    """A process of the demo ended when it should not have."""


@dataclass
class Child:
    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def running(self) -> bool:
        return self.process.poll() is None

    def last_words(self, lines: int = 6) -> str:
        """The end of its log, for an error message."""
        with contextlib.suppress(OSError):
            return "\n".join(self.log.read_text("utf-8", "replace").strip().splitlines()[-lines:])
        return ""

    def failure(self) -> ChildFailed:
        code = self.process.returncode
        return ChildFailed(
            f"{self.name} ended with exit code {code}; its log is {self.log}\n{self.last_words()}"
        )


class Crew:
    """All children of one demo. A context manager: leaving it, for whatever reason, stops them all."""

    def __init__(self, logs: Path, environment: Mapping[str, str] | None = None) -> None:
        logs.mkdir(parents=True, exist_ok=True)
        self._logs = logs
        self._environment = {**os.environ, **QUIET, **(environment or {})}
        self._children: list[Child] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, name: str, arguments: Sequence[str], *, nice: int = 0, **environment: str) -> Child:
        """Run `python ARGUMENTS`, logging to `logs/NAME.log` (appended to, so that a resumed demo keeps the old)."""
        log = self._logs / f"{name}.log"
        command = [sys.executable, *arguments]
        if nice:
            command = ["nice", "-n", str(nice), *command]
        with log.open("ab") as out:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, start_new_session=True,
                env={**self._environment, **environment},
            )  # fmt: skip
        child = Child(name, process, log)
        self._children.append(child)
        return child

    def check(self, *children: Child) -> None:
        """Raises ChildFailed when one of them (all, when none is named) ended with an error."""
        for child in children or tuple(self._children):
            if not child.running() and child.process.returncode != 0:
                raise child.failure()

    def stop(self) -> None:
        """Stop every child and all that descends from it; at most `ASK_S` and a moment."""
        alive = [c for c in self._children if c.running()]
        if not alive:
            return
        family = descendants(c.process.pid for c in alive)
        for child in alive:
            _signal_group(child.process.pid, signal.SIGTERM)
        deadline = time.monotonic() + ASK_S
        while time.monotonic() < deadline and any(c.running() for c in alive):
            family |= descendants(c.process.pid for c in alive if c.running())
            time.sleep(0.05)
        for child in alive:
            _signal_group(child.process.pid, signal.SIGKILL)
        for pid, born in family.items():
            if birth(pid) == born:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
        for child in alive:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.process.wait(timeout=1)


def descendants(roots: Iterable[int]) -> dict[int, str]:
    """Process id -> time of birth of everything below `roots`, so that a reused id is never taken for it."""
    parents = _parents()
    found: dict[int, str] = {}
    queue = list(roots)
    while queue:
        parent = queue.pop()
        for pid in (p for p, of in parents.items() if of == parent and p not in found):
            found[pid] = birth(pid)
            queue.append(pid)
    return found


def birth(pid: int) -> str:
    """When the process was born, in whatever unit the system tells it; empty when there is none (or a zombie)."""
    if Path("/proc/self/stat").exists():
        fields = _stat(pid)
        return fields[19] if fields and fields[0] != "Z" else ""
    return subprocess.run(
        ["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False
    ).stdout


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens on now."""
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for found in sockets:
            found.bind(("127.0.0.1", 0))
        return [found.getsockname()[1] for found in sockets]


def port_is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _parents() -> dict[int, int]:
    """Process id -> parent's, of every process that can be seen."""
    if Path("/proc/self/stat").exists():
        pairs = {}
        for entry in os.listdir("/proc"):
            if entry.isdecimal() and (fields := _stat(int(entry))):
                pairs[int(entry)] = int(fields[1])
        return pairs
    listed = subprocess.run(["ps", "-axo", "pid=,ppid="], capture_output=True, text=True, check=False).stdout
    return {int(pid): int(parent) for pid, parent in (row.split() for row in listed.splitlines())}


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on; empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _signal_group(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)
