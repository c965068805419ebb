"""What secure aggregation costs: a round of five sites of which one is lost after it dealt its shares, masked and plain.

`python -m benchmarks.dataplane_parts.masked FOLDER --mb M` prints one `Masked` as JSON. Both kinds of round are measured
in turn, with real processes over TLS; the lost site dies in the second round of each run.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.dataplane_parts import models
from benchmarks.dataplane_parts.consortium import Crowd, found
from benchmarks.dataplane_parts.standin import LOST
from benchmarks.measure import adopt_orphans, end_tree
from commons.records import Kind

SITES, LOST_SITES, PAIRS = 5, 1, 2


@dataclass(frozen=True)
class Masked:
    mb: float
    plain_s: float
    """From the record that opens the second round to the one that closes it; median."""
    masked_s: float
    shared: str
    """What the journal says became of the masked sum."""
    contributors: int


def measure(folder: Path, *, mb: float) -> Masked:
    """Call it in a process of its own; `folder` is made anew and removed."""
    adopt_orphans()
    plain: list[float] = []
    masked: list[float] = []
    for _ in range(PAIRS):
        for times, privacy in ((plain, "none"), (masked, "secagg")):
            shutil.rmtree(folder, ignore_errors=True)
            seconds, shared, contributors = _second_round(folder, mb, privacy)
            times.append(seconds)
    shutil.rmtree(folder, ignore_errors=True)
    return Masked(
        mb,
        round(statistics.median(plain), 2),
        round(statistics.median(masked), 2),
        shared,
        contributors,
    )


def _second_round(folder: Path, mb: float, privacy: str) -> tuple[float, str, int]:
    config = models.replicated(mb, SITES)
    found(folder, config, sites=SITES, rounds=2, privacy=privacy, absent=LOST_SITES)
    lost = models.PARTNERS[SITES - 1]
    crowd = Crowd(folder, {LOST: f"{lost}-site/2"}, mortal=frozenset({lost}))
    try:
        crowd.start_coordinator()
        crowd.join()
        crowd.start_sites()
        crowd.wait_connected()
        crowd.start_run()
        crowd.wait_for(Kind.CLOSE, 2)
        records = crowd.records()
    finally:
        crowd.stop()
        end_tree()
    opened = [record.at_ms for record in records if record.kind is Kind.ROUND]
    closed = [record for record in records if record.kind is Kind.CLOSE]
    facts = closed[1].facts
    return (
        (closed[1].at_ms - opened[1]) / 1000,
        facts.get("shared", ""),
        len(facts["contributors"]),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--mb", type=float, required=True)
    asked = parser.parse_args()
    print(json.dumps(asdict(measure(asked.folder, mb=asked.mb))))


if __name__ == "__main__":
    main()
