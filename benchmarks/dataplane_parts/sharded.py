"""Bytes that a site moves in a round of the demo's mixture of experts, when slices go only where they are needed, in int4.

The demo's model and sites in a real consortium, without its training. Counted by the sites themselves: payload up,
blobs and manifests down. Two runs of different length give the bytes of a round alone: their difference has neither
the seed model's download nor the evaluation's.

`python -m benchmarks.dataplane_parts.sharded FOLDER --routing lean` prints one `Moved` as JSON.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.dataplane_parts import models
from benchmarks.dataplane_parts.consortium import RUN, found, running
from benchmarks.measure import adopt_orphans, end_tree
from commons.records import Kind
from commons.views import RunView
from hansa.chamber import Chamber
from hansa.demo import cast
from hansa.hosting import operator_seat

SITES, EXPERTS = len(cast.TRAINERS), 2
ROUNDS = (3, 3 + cast.DEMO.rounds)
BEATS_S = 3.0
"""In this time every site has told its last counts."""


@dataclass(frozen=True)
class Moved:
    routing: str
    model_bytes: int
    """In fp32."""
    up: float
    """Bytes per site and round, mean over the sites."""
    down: float
    whole_run: float
    """Both ways, with the first download and the evaluation, of a run as long as the demo's."""

    @property
    def share(self) -> float:
        """Of full replication in fp32: the whole model down and up."""
        return (self.up + self.down) / (2 * self.model_bytes)


def measure(folder: Path, *, routing: str) -> Moved:
    """Call it in a process of its own; `folder` is made anew."""
    adopt_orphans()
    counts = []
    for rounds in ROUNDS:
        shutil.rmtree(folder, ignore_errors=True)
        codecs = {"trunk": "int4", "expert": "int4", "down": "int4"}
        found(
            folder,
            cast.DEMO.model,
            sites=SITES,
            experts=EXPERTS,
            rounds=rounds,
            routing=routing,
            codecs=codecs,
            outer=cast.DEMO.learning["outer"],
        )
        with running(folder) as crowd:
            crowd.start_run()
            crowd.wait_for(Kind.FINISH)
            time.sleep(BEATS_S)
            with Chamber.at(operator_seat(crowd.home)) as chamber:
                sites = chamber.read(RunView, RUN).sites
            size = round(models.megabytes(crowd.charter) * 1e6)
        counts.append((sum(s.bytes_up for s in sites) / SITES, sum(s.bytes_down for s in sites) / SITES))
    (up, down), (more_up, more_down) = counts
    between = ROUNDS[1] - ROUNDS[0]
    return Moved(
        routing,
        size,
        (more_up - up) / between,
        (more_down - down) / between,
        (more_up + more_down) / ROUNDS[1],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--routing", choices=("joint", "lean"), required=True)
    asked = parser.parse_args()
    try:
        moved = measure(asked.folder, routing=asked.routing)
    finally:
        end_tree()
    shutil.rmtree(asked.folder, ignore_errors=True)
    print(json.dumps(asdict(moved) | {"share": moved.share}))


if __name__ == "__main__":
    main()
