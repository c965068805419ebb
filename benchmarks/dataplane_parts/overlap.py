"""What a slow link costs of training: rounds of a site behind it, whole, in fragments, and overlapping.

One site whose steps take a fixed time and compute nothing, a coordinator, and between them a link of so many megabytes a
second each way. All cases make as many steps and exchange every slice as often.
`python -m benchmarks.dataplane_parts.overlap FOLDER` prints one `Case` a line as JSON.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.dataplane_parts import models
from benchmarks.dataplane_parts.consortium import Crowd, found
from benchmarks.dataplane_parts.standin import STEP_S
from benchmarks.measure import adopt_orphans, end_tree
from commons.records import Kind, Record
from tests.support.tcp_proxy import proxied

MB, MB_PER_S = 100.0, 20.0
STEP, STEPS = 0.5, 40
"""Seconds a step; steps from one exchange of a slice to the next."""
TURNS = 3
"""How often every slice is exchanged; the first time is not measured."""


@dataclass(frozen=True)
class Case:
    fragments: int
    overlap_steps: int
    peak_up_mb: float
    """Of one round, the last, in which everything is exchanged, aside."""
    spent_s: float
    """From one exchange of a slice to the next."""
    training_s: float
    """Of that, what the steps take."""

    @property
    def waiting_percent(self) -> float:
        return 100 * (1 - self.training_s / self.spent_s)


def measure(folder: Path, *, fragments: int, overlap_steps: int) -> Case:
    """`folder` is made anew. Raises AssertionError when the run does not complete."""
    shutil.rmtree(folder, ignore_errors=True)
    steps, rounds = STEPS // fragments, TURNS * fragments + 1
    learning: dict[str, Any] = {
        "inner_steps": steps,
        "fragments": fragments,
        "overlap_steps": overlap_steps,
        "routing": "lean",
    }
    found(folder, models.replicated(MB, 2), sites=1, experts=2, rounds=rounds, **learning)
    crowd = Crowd(folder, environment={STEP_S: str(STEP)})
    with proxied() as proxy:
        try:
            crowd.start_coordinator()
            proxy.target = crowd.address
            crowd.join()
            for name in crowd.sites:
                seat = folder / name / "seat" / "seat.toml"
                seat.write_text(seat.read_text().replace(crowd.address, proxy.address))
            crowd.start_sites()
            crowd.wait_connected()
            proxy.bytes_per_s = MB_PER_S * 1e6
            crowd.start_run()
            crowd.wait_for(Kind.FINISH)
            closes = [record for record in crowd.records() if record.kind is Kind.CLOSE]
        finally:
            crowd.stop()
            end_tree()
    return Case(fragments, overlap_steps, _peak_mb(closes), _spent_s(closes, fragments), STEPS * STEP)


def _peak_mb(closes: Sequence[Record]) -> float:
    return max(int(record.facts["bytes_up"]) for record in closes[:-1]) / 1e6


def _spent_s(closes: Sequence[Record], fragments: int) -> float:
    """From the end of the first turn to that of the last before everything is exchanged."""
    first, last = closes[fragments - 1].at_ms, closes[-2].at_ms
    return (last - first) / 1000 / (TURNS - 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    asked = parser.parse_args()
    adopt_orphans()
    for fragments, overlap_steps in ((1, 0), (4, 0), (1, 30), (4, 8)):
        case = measure(asked.folder, fragments=fragments, overlap_steps=overlap_steps)
        print(json.dumps(asdict(case) | {"waiting_percent": case.waiting_percent}), flush=True)
    shutil.rmtree(asked.folder, ignore_errors=True)


if __name__ == "__main__":
    main()
