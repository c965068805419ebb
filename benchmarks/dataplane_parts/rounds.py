"""Rounds without training, with real processes: seconds, CPU, bytes on the wire, memory of the coordinator.

`python -m benchmarks.dataplane_parts.rounds FOLDER --sites N --mb M --rounds R` prints one `Measured` as JSON. It runs
in a network of its own where the user may have one, so that bytes are the consortium's alone.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.dataplane_parts import models
from benchmarks.dataplane_parts.consortium import Crowd, found
from benchmarks.measure import Sampler, adopt_orphans, end_tree, private_network
from benchmarks.peers import PeerRun, rounds_of
from commons.records import Kind, Record

SERVER, SITE = "coordinator", "site"
IDLE_S = 2.0
"""How long everybody is connected and has nothing to do before the run starts: what memory above idle counts from."""


@dataclass(frozen=True)
class Measured:
    """A `PeerRun` of Hansa and what else is known of its rounds. Figures per round leave out the first."""

    run: PeerRun
    open_s_median: float
    """From the record that opens a round to the one that closes it."""
    server_cpu_s_per_round: float
    site_cpu_s_per_round: float
    """Of all sites together."""
    server_idle_mb: float
    server_peak_mb: float


def measure(folder: Path, *, sites: int, mb: float, rounds: int, privacy: str = "none") -> Measured:
    """One run in `folder`, which is made anew. Call it in a process of its own."""
    shutil.rmtree(folder, ignore_errors=True)
    adopt_orphans()
    note = private_network()
    experts, model = 2 if sites == 1 else 1, models.replicated(mb, max(2, sites))
    found(folder, model, sites=sites, experts=experts, rounds=rounds, privacy=privacy)
    crowd = Crowd(folder)
    with Sampler(role=role) as sampler:
        try:
            started = time.time()
            crowd.start_coordinator()
            crowd.join()
            crowd.start_sites()
            crowd.wait_connected()
            idle_from = time.time()
            time.sleep(IDLE_S)
            submitted = time.time()
            crowd.start_run()
            crowd.wait_for(Kind.FINISH)
            done = time.time()
            records = crowd.records()
        finally:
            crowd.stop()
            end_tree()
    idle = sampler.window(idle_from, submitted).peak_rss_mb_by_role[SERVER]
    spans = _spans(records)
    told = rounds_of(sampler, spans, {SERVER})
    steady = sampler.window(told.begin, told.end)
    return Measured(
        run=PeerRun(
            system="Hansa",
            version=_version(),
            configuration="mutual TLS, fp32, SQLite journal with fsync, sites as witnesses",
            sites=sites,
            mb=mb,
            rounds=len(spans),
            wall_s_min=told.wall_s_min,
            wall_s_median=told.wall_s_median,
            cpu_s_per_round=told.cpu_s_per_round,
            foreign_cpu_s_per_round=told.foreign_cpu_s_per_round,
            wire_mb_per_round=told.loopback_mb_per_round if note is None else None,
            loopback_mb_per_round=told.loopback_mb_per_round if note is None else None,
            server_peak_rss_mb=told.server_peak_rss_mb,
            server_idle_rss_mb=round(idle, 1),
            total_peak_rss_mb=told.total_peak_rss_mb,
            submit_to_done_s=round(done - submitted, 3),
            start_to_done_s=round(done - started - (submitted - idle_from), 3),
            notes=() if note is None else (note,),
        ),
        open_s_median=round(statistics.median(end - begin for begin, end in spans[1:] or spans), 3),
        server_cpu_s_per_round=round(steady.cpu_s_by_role[SERVER] / told.counted, 3),
        site_cpu_s_per_round=round(steady.cpu_s_by_role[SITE] / told.counted, 3),
        server_idle_mb=round(idle, 1),
        server_peak_mb=round(sampler.high_water_mb()[SERVER], 1),
    )


def _spans(records: Sequence[Record]) -> list[tuple[float, float]]:
    """When each round was opened and closed, by the journal, in seconds since 1970."""
    opened = [record.at_ms / 1000 for record in records if record.kind is Kind.ROUND]
    closed = [record.at_ms / 1000 for record in records if record.kind is Kind.CLOSE]
    assert len(opened) == len(closed), "nobody fails here, so that every round is opened once"
    return list(zip(opened, closed, strict=True))


def role(command: str) -> str:
    """For the sampler: the coordinator, or one of the sites."""
    return SERVER if "coordinator start" in command else SITE


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("hansa")
    except PackageNotFoundError:
        return "checkout"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sites", type=int, required=True)
    parser.add_argument("--mb", type=float, required=True)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--privacy", choices=("none", "secagg"), default="none")
    asked = parser.parse_args()
    measured = measure(
        asked.folder, sites=asked.sites, mb=asked.mb, rounds=asked.rounds, privacy=asked.privacy
    )
    shutil.rmtree(asked.folder, ignore_errors=True)
    print(json.dumps(asdict(measured)))


if __name__ == "__main__":
    main()
