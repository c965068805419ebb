"""What all drivers of peers share: the job to do, its events, and the measuring of a whole deployment in this process.

A driver runs in a process of its own (`benchmarks.peers.run` starts it), for it moves into a private network.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from benchmarks.link_bytes import LinkBytes
from benchmarks.measure import Sampler, adopt_orphans, end_tree, private_network
from benchmarks.peers import PeerRun, rounds_of
from commons.errors import HansaError

POLL_S = 0.1


class PeerError(HansaError):
    """A peer could not be measured; says what is to be done."""


@dataclass(frozen=True)
class Job:
    sites: int
    mb: float
    rounds: int
    work: Path
    """An empty folder, absolute."""
    environment: Path
    """The peer's virtual environment."""
    timeout_s: float = 1800
    events: Path = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "events", self.work / "events.jsonl")

    def program(self, name: str) -> str:
        """One of the peer's commands."""
        return str(self.environment / "bin" / name)

    def happened(self, event: str) -> list[dict[str, Any]]:
        """All events of that name so far, oldest first."""
        if not self.events.exists():
            return []
        lines = self.events.read_text().splitlines()
        return [found for line in lines if (found := json.loads(line))["event"] == event]

    def start(
        self, name: str, command: Sequence[str], environment: Mapping[str, str]
    ) -> subprocess.Popen[bytes]:
        """A program of the deployment; what it prints goes to `NAME.log` in the work folder."""
        with (self.work / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                command,
                cwd=self.work,
                env={**os.environ, **environment},
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )


@dataclass(frozen=True)
class Told:
    """What a driver knows of a finished deployment. Times are `time.time()`."""

    configuration: str
    begun: float
    connected: float
    """All sites were there and idle."""
    submitted: float
    notes: tuple[str, ...] = ()


class Peer(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def package(self) -> str:
        """Its name for pip."""

    @property
    def server(self) -> frozenset[str]:
        """Roles on the server's side."""

    def role(self, command: str) -> str: ...
    def link(self) -> LinkBytes: ...
    def drive(self, job: Job, check: Callable[[], None]) -> Told:
        """Deploy, submit, answer when the job is done; `check` is to be called while waiting and raises PeerError."""


def wait(job: Job, until: Callable[[], bool], what: str, check: Callable[[], None]) -> None:
    """Raises PeerError after the job's time-out, naming what did not happen and where the logs are."""
    deadline = time.monotonic() + job.timeout_s
    while not until():
        check()
        if time.monotonic() > deadline:
            raise PeerError(f"{what} did not happen within {job.timeout_s:.0f} s; logs are in {job.work}")
        time.sleep(POLL_S)


def measure_here(peer: Peer, job: Job, *, limit_mb: float) -> PeerRun:
    """Drive and measure in this process, which ends up in a private network (when root) and as parent of all orphans.

    Raises PeerError when the deployment fails, takes too long or needs more than `limit_mb`.
    """
    adopt_orphans()
    crowded = private_network()
    counting: AbstractContextManager[LinkBytes | None] = nullcontext() if crowded else peer.link()
    with (
        counting as link,
        Sampler(role=peer.role, limit_mb=limit_mb, link=link.total if link else int) as sampler,
    ):

        def check() -> None:
            if sampler.over_limit:
                raise PeerError(
                    f"{peer.name}, {job.sites} sites, {job.mb:g} MB: stopped, its processes needed more than "
                    f"{limit_mb:.0f} MB (or the machine had no more)"
                )

        try:
            told = peer.drive(job, check)
            found = rounds_of(sampler, spans(job), peer.server)
            idle = next(
                m for m in reversed(sampler.moments) if m.at <= told.connected or m is sampler.moments[0]
            )
        finally:
            end_tree()
    done = job.happened("done")[0]["at"]
    lost = link.lost() if link else 0
    notes = [*told.notes, *([crowded] if crowded else [])]
    if lost:
        notes.append(f"{lost} packets were not counted")
    return PeerRun(
        system=peer.name,
        version=version(peer.package, job),
        configuration=told.configuration,
        sites=job.sites,
        mb=job.mb,
        rounds=job.rounds,
        wall_s_min=found.wall_s_min,
        wall_s_median=found.wall_s_median,
        cpu_s_per_round=found.cpu_s_per_round,
        foreign_cpu_s_per_round=found.foreign_cpu_s_per_round,
        wire_mb_per_round=None if crowded or lost else found.wire_mb_per_round,
        loopback_mb_per_round=None if crowded else found.loopback_mb_per_round,
        server_peak_rss_mb=found.server_peak_rss_mb,
        server_idle_rss_mb=round(sum(mb for role, mb in idle.rss_mb.items() if role in peer.server), 1),
        total_peak_rss_mb=found.total_peak_rss_mb,
        submit_to_done_s=round(done - told.submitted, 2),
        start_to_done_s=round(done - told.begun, 2),
        notes=tuple(notes),
    )


def spans(job: Job) -> list[tuple[float, float]]:
    """(start, end) of each round. Raises PeerError when one lacks an answer: it would look cheaper than it is."""
    starts = {event["round"]: event["at"] for event in job.happened("round_start")}
    ends = {event["round"]: event for event in job.happened("round_end")}
    for number, event in ends.items():
        if event["failed"] or event["replies"] != job.sites:
            raise PeerError(
                f"round {number} had {event['replies']} of {job.sites} answers: {'; '.join(event['failed'])}; "
                f"logs are in {job.work}"
            )
    if sorted(ends) != list(range(1, job.rounds + 1)):
        raise PeerError(f"{len(ends)} of {job.rounds} rounds ended; logs are in {job.work}")
    return [(starts[number], ends[number]["at"]) for number in sorted(ends)]


def version(package: str, job: Job) -> str:
    """Of an installed package in the peer's environment."""
    code = f"import importlib.metadata as m; print(m.version({package!r}))"
    done = subprocess.run([job.program("python"), "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def log(line: str) -> None:
    """Progress for people; standard output belongs to the result."""
    print(line, file=sys.stderr, flush=True)
