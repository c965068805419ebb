"""Many seeds of the simulated consortium, on as many processes as asked for, without a test runner.

Progress is kept as JSON in the work folder: interrupted, it goes on with the seeds that are not done.
"""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path

BATCH = 50
"""Seeds of one task: what is lost at most when it is interrupted."""
ATTEMPTS = 3


@dataclass
class SeedReport:
    first: int
    count: int
    clean: int = 0
    failed: dict[int, str] = field(default_factory=dict)
    """Seed -> what did not hold."""
    crashes: int = 0
    """Deaths of the coordinator."""
    troubles: int = 0
    """Times its disk was full, or its store closed, and it lived on."""
    records: int = 0
    seconds: float = 0.0
    """Of wall time, over all calls that took part."""
    done: list[int] = field(default_factory=list)
    """First seed of every finished batch."""

    def add(self, other: SeedReport) -> None:
        self.clean += other.clean
        self.failed |= other.failed
        self.crashes += other.crashes
        self.troubles += other.troubles
        self.records += other.records
        self.done.append(other.first)


def run_seeds(first: int, count: int, *, work: Path, processes: int = 2) -> SeedReport:
    """Seeds `first` to `first + count - 1`; those done before in `work` are not run again.

    Raises BrokenProcessPool when a process is ended from outside, or by a seed, again and again.
    """
    work.mkdir(parents=True, exist_ok=True)
    kept = work / f"seeds-{first}-{count}.json"
    report = SeedReport(first, count)
    if kept.exists():
        read = json.loads(kept.read_text())
        report = SeedReport(**read | {"failed": {int(seed): why for seed, why in read["failed"].items()}})
    before, began = report.seconds, time.monotonic()
    for attempt in range(1, ATTEMPTS + 1):
        try:
            for done in _batches(report, processes):
                report.add(done)
                report.seconds = round(before + time.monotonic() - began, 1)
                kept.write_text(json.dumps(asdict(report)))
            return report
        except BrokenProcessPool:  # a process was ended from outside: its batch is run again
            if attempt == ATTEMPTS:
                raise
    raise AssertionError("the last attempt returns or raises")


def _batches(report: SeedReport, processes: int) -> Iterator[SeedReport]:
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        yield from (done.result() for done in as_completed(_submitted(pool, report)))


def _submitted(pool: ProcessPoolExecutor, report: SeedReport) -> Iterator[Future[SeedReport]]:
    end = report.first + report.count
    left = [start for start in range(report.first, end, BATCH) if start not in report.done]
    for start in left:
        yield pool.submit(run_batch, start, min(BATCH, end - start))


def run_batch(first: int, count: int) -> SeedReport:
    """In this process, one after the other."""
    from tests.simulation.checking import checked
    from tests.simulation.world import World

    logging.disable(logging.CRITICAL)
    report = SeedReport(first, count)
    memory = Path("/dev/shm")
    for seed in range(first, first + count):
        folder = Path(tempfile.mkdtemp(prefix="hansa-sim-", dir=memory if memory.is_dir() else None))
        world = World.of_seed(folder, seed)
        try:
            report.records += len(checked(world)[0])
            report.clean += 1
        except Exception as wrong:  # noqa: BLE001 - whatever it was, the seed shows it again
            report.failed[seed] = f"{type(wrong).__name__}: {wrong}"[:1000]
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        report.crashes += world.crashes
        report.troubles += world.troubles
    return report
