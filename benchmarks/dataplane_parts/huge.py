"""A state of 20 GB that nobody could hold in memory: two sites, experts that only their owner has, int4 both ways.

The seed model is zeros but for the beginning of every tensor, and the stand-in moves the first quarter of each. The
files are as large as they say and all their bytes are hashed, sent and combined; a thread gives the zeros back to the
disk once they are written. `python -m benchmarks.dataplane_parts.huge FOLDER` prints one `Huge` as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.dataplane_parts import models
from benchmarks.dataplane_parts.consortium import Crowd, found
from benchmarks.dataplane_parts.models import Config
from benchmarks.dataplane_parts.rounds import IDLE_S, SERVER, SITE, role
from benchmarks.dataplane_parts.standin import SHARE
from benchmarks.measure import Sampler, adopt_orphans, end_tree
from commons.experts.map import ExpertMap
from commons.records import Kind

SITES, EXPERTS = 2, 8
MODEL: Config = models.sharded(hidden=4096, layers=8, width=2544, shared=2)
SMALL: Config = models.sharded(hidden=256, layers=2, width=160, shared=2)
"""The same shape for a test of the part itself."""
DISK_BYTES = 55 * 10**9
LEARNING = {"routing": "lean", "codecs": {"trunk": "int4", "expert": "int4", "down": "int4"}}
_DIG_S = 0.5


@dataclass(frozen=True)
class Huge:
    """Of a run that completed one round. 1 GB is 10^9 bytes."""

    state_gb: float
    trunk_gb: float
    round_s: float
    """From the start of the run to the end of its first round."""
    server_idle_mb: float
    server_peak_mb: float
    site_peak_mb: float
    """Of one site, pages of mapped files included."""
    up_gb: float
    """All sites together."""
    disk_gb: float
    """Most that all files took."""


def measure(folder: Path, config: Config = MODEL) -> Huge:
    """Call it in a process of its own; `folder` is made anew. Raises AssertionError when the round does not complete."""
    shutil.rmtree(folder, ignore_errors=True)
    adopt_orphans()
    learning: dict[str, Any] = dict(LEARNING)
    found(folder, config, sites=SITES, experts=EXPERTS, rounds=2, sparse=True, **learning)
    crowd = Crowd(folder, {SHARE: "0.25"}, patience_s=7200)
    with Sampler(role=role) as sampler, _digging(folder) as used:
        try:
            crowd.start_coordinator()
            crowd.join()
            crowd.start_sites()
            crowd.wait_connected()
            time.sleep(IDLE_S)
            submitted = time.time()
            crowd.start_run()
            crowd.wait_for(Kind.CLOSE)
            closed = time.time()
            records = crowd.records()
        finally:
            crowd.stop()
            end_tree()
    of = ExpertMap.from_charter(crowd.charter).parameters()
    high = sampler.high_water_mb()
    close = next(record.facts for record in records if record.kind is Kind.CLOSE)
    return Huge(
        state_gb=of.total * 4 / 1e9,
        trunk_gb=of.trunk * 4 / 1e9,
        round_s=closed - submitted,
        server_idle_mb=sampler.window(submitted - IDLE_S, submitted).peak_rss_mb_by_role[SERVER],
        server_peak_mb=high[SERVER],
        site_peak_mb=high[SITE],
        up_gb=close["bytes_up"] / 1e9,
        disk_gb=max(used) / 1e9,
    )


@contextmanager
def _digging(folder: Path) -> Iterator[list[int]]:
    """Turns zeros in blobs into holes while the block lasts; what the folder took of the disk, looked at on the way."""
    ended, used = threading.Event(), [0]
    stores = [
        folder / "home" / "states" / "blobs",
        *(folder / p / "state" / "model" / "blobs" for p in models.PARTNERS),
    ]

    def dig() -> None:
        dug: set[Path] = set()
        while not ended.wait(_DIG_S):
            used.append(_taken(folder))
            for blob in (b for store in stores if store.is_dir() for b in store.iterdir() if b not in dug):
                dug.add(blob)
                subprocess.run(["fallocate", "--dig-holes", str(blob)], check=False, capture_output=True)

    thread = threading.Thread(target=dig, name="digging", daemon=True)
    thread.start()
    try:
        yield used
    finally:
        ended.set()
        thread.join()


def _taken(folder: Path) -> int:
    taken = 0
    for where, _, names in os.walk(folder):
        for name in names:
            try:
                taken += os.stat(os.path.join(where, name)).st_blocks * 512
            except FileNotFoundError:
                continue
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--small", action="store_true", help="a hundredth of a gigabyte, to try the part itself"
    )
    asked = parser.parse_args()
    measured = measure(asked.folder, SMALL if asked.small else MODEL)
    shutil.rmtree(asked.folder, ignore_errors=True)
    print(json.dumps(asdict(measured)))


if __name__ == "__main__":
    main()
