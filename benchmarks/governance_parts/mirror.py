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

from commons.records import Kind
from governance.tracking import checking
from tests.support.mirrored_consortium import ROUNDS, Death, Mirrored, mirrored_consortium

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
    finished: int
    """Of them, without MLflow."""
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


def measure_outage(work: Path) -> Outage:
    """A run with MLflow, then one without; then the mirror catches up."""
    with mirrored_consortium(work / "consortium") as mirrored:
        return stop_mlflow_for_a_run(mirrored)


def stop_mlflow_for_a_run(mirrored: Mirrored) -> Outage:
    """As `measure_outage`, of a consortium that has begun; its runs and votes rest afterwards."""
    _, with_mlflow_s = _next_run(mirrored)
    mirrored.server.kill()
    finished, run_s = _next_run(mirrored)
    behind = mirrored.recorded - mirrored.written
    began = time.monotonic()
    mirrored.server.start()
    mirrored.rest()
    caught_up_s = time.monotonic() - began
    found = checking.verify(mirrored.home, "", "").findings
    return Outage(ROUNDS, finished, run_s, with_mlflow_s, behind, caught_up_s, len(found))


def _next_run(mirrored: Mirrored) -> tuple[int, float]:
    """(rounds closed, seconds from its RUN record to its FINISH) of the first run that opens after now."""
    opened = _runs(mirrored, Kind.RUN)
    mirrored.wait_until(lambda: _runs(mirrored, Kind.FINISH) > opened, "end of another run")
    records = mirrored.records()
    run = [record for record in records if record.kind is Kind.RUN][opened]
    own = [r for r in records if r.kind in (Kind.CLOSE, Kind.FINISH) and r.facts["run"] == run.facts["run"]]
    return own[-1].facts["round"], (own[-1].at_ms - run.at_ms) / 1000


def _runs(mirrored: Mirrored, kind: Kind) -> int:
    return sum(record.kind is kind for record in mirrored.records())
