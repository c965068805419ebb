"""kill -9 of a real coordinator or of MLflow's own server, many times, while runs and votes go on; then both are compared.

Every kill is kept in `kills.json` of the work folder with consortium and MLflow beside it: interrupted, it goes on there.
"""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

from governance.tracking import checking
from tests.support.mirrored_consortium import Death, Mirrored, mirrored_consortium

AIMS = ("writing", "writing", "start")


@dataclass(frozen=True)
class MirrorKills:
    kills: int
    coordinator: int
    """Kills of the coordinator; the others are of MLflow's server."""
    starting: int
    """Kills aimed at something that was just starting."""
    records: int
    runs: int
    """In MLflow, and the rest so too."""
    points: int
    files: int
    versions: int
    missing: int
    duplicate: int
    different: int
    foreign: int
    findings: tuple[str, ...]


@dataclass(frozen=True)
class Outage:
    """MLflow's server was stopped for a whole run."""

    rounds: int
    run_s: float
    with_mlflow_s: float
    """The run before it, of as many rounds, with the server up."""
    behind: int
    """Records that were not in MLflow when the run was over."""
    caught_up_s: float
    """From the start of the server until all was there."""
    wrong: int
    """Findings then."""


def kill_mirror(work: Path, kills: int, *, seed: int = 1) -> MirrorKills:
    """Kill until `kills` are done in `work`, let the mirror catch up, compare. Done before: compared again."""
    progress = work / "kills.json"
    done = [Death(**one) for one in json.loads(progress.read_text())] if progress.exists() else []
    with mirrored_consortium(work / "consortium") as mirrored:
        while len(done) < kills:
            dice = random.Random(f"{seed}/{len(done)}")
            who = dice.choice(("coordinator", "mlflow"))
            done.append(mirrored.kill(who, dice.choice(AIMS), dice))
            progress.write_text(json.dumps([asdict(one) for one in done]))
        mirrored.rest()
        return report(done, mirrored)


def report(done: list[Death], mirrored: Mirrored) -> MirrorKills:
    """What MLflow shows now, after these deaths."""
    found = checking.verify(mirrored.home, "", "")
    counts = Counter(finding.kind for finding in found.findings)
    return MirrorKills(
        kills=len(done),
        coordinator=sum(one.who == "coordinator" for one in done),
        starting=sum(one.aim == "start" for one in done),
        records=found.compared,
        runs=found.runs,
        points=found.points,
        files=found.files,
        versions=found.versions,
        missing=counts["missing"] + found.records - found.compared,
        duplicate=counts["duplicate"],
        different=counts["different"],
        foreign=counts["foreign"],
        findings=tuple(f"{f.kind} {f.where}: {f.what}" for f in found.findings[:20]),
    )


def stop_mlflow_for_a_run(mirrored: Mirrored, rounds: int) -> Outage:
    """A run with MLflow, then one without; the mirror catches up after it."""
    with_mlflow_s = _run_s(mirrored)
    mirrored.server.kill()
    run_s = _run_s(mirrored)
    behind = mirrored.recorded - mirrored.written
    mirrored.server.start()
    began = time.monotonic()
    mirrored.rest()
    caught_up_s = time.monotonic() - began
    found = checking.verify(mirrored.home, "", "").findings
    return Outage(rounds, run_s, with_mlflow_s, behind, caught_up_s, len(found))


def _run_s(mirrored: Mirrored) -> float:
    """Of a whole run that begins after now."""
    at_hand = mirrored.finished_runs()
    mirrored.wait_until(lambda: mirrored.finished_runs() > at_hand, "end of the run at hand")
    began = time.monotonic()
    mirrored.wait_until(lambda: mirrored.finished_runs() > at_hand + 1, "end of a run")
    return time.monotonic() - began
