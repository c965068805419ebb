"""A link that is cut again and again while a site uploads: what is sent twice because of it.

One site behind a proxy that ends all its connections at random moments of the second round's upload; the first round
goes through the same proxy undisturbed and tells what an upload takes. `python -m benchmarks.dataplane_parts.cuts FOLDER`
prints one `Resumed` as JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.dataplane_parts import models
from benchmarks.dataplane_parts.consortium import Crowd, found
from benchmarks.measure import adopt_orphans, end_tree
from commons.records import Kind
from tests.support.tcp_proxy import TcpProxy, proxied

CUTS, MB = 20, 400.0


@dataclass(frozen=True)
class Resumed:
    cuts: int
    """Connections were ended so many times, each while the upload was under way."""
    payload_mb: float
    undisturbed_mb: float
    """All that went up in the round without cuts, TLS and heartbeats included."""
    disturbed_mb: float
    """The same in the round with them."""

    @property
    def twice_percent(self) -> float:
        return 100 * (self.disturbed_mb - self.undisturbed_mb) / self.payload_mb


def measure(folder: Path, *, cuts: int = CUTS, mb: float = MB, seed: int = 1) -> Resumed:
    """Call it in a process of its own; `folder` is made anew. Raises AssertionError when the run does not complete."""
    shutil.rmtree(folder, ignore_errors=True)
    found(folder, models.replicated(mb, 2), sites=1, experts=2, rounds=2)
    crowd = Crowd(folder)
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
            payload = models.megabytes(crowd.charter)
            crowd.start_run()
            crowd.wait_for(Kind.CLOSE)
            first = proxy.up_bytes
            done = _cut(proxy, first, payload, random.Random(seed), cuts)
            crowd.wait_for(Kind.FINISH)
        finally:
            crowd.stop()
            end_tree()
        second = proxy.up_bytes - first
    return Resumed(done, payload, first / 1e6, second / 1e6)


def _cut(proxy: TcpProxy, base: int, payload_mb: float, dice: random.Random, cuts: int) -> int:
    done = 0
    for moment in sorted(dice.uniform(0.02, 0.98) for _ in range(cuts)):
        assert proxy.await_bytes(base + int(moment * payload_mb * 1e6), timeout_s=600), (
            "the upload stands still"
        )
        done += proxy.cut() > 0
    return done


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--mb", type=float, default=MB)
    asked = parser.parse_args()
    adopt_orphans()
    found_out = measure(asked.folder, mb=asked.mb)
    shutil.rmtree(asked.folder, ignore_errors=True)
    print(json.dumps(asdict(found_out) | {"twice_percent": found_out.twice_percent}))


if __name__ == "__main__":
    main()
