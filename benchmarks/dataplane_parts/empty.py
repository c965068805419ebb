"""How long nothing takes: from the start of the first process to the end of a run of one round with a tiny model.

Keys, charter, signatures and seed model are there; the coordinator founds the consortium, three sites enrol, start,
check everything, train (a stand-in, or a step in Ray), and the model is evaluated.

`python -m benchmarks.dataplane_parts.empty FOLDER [--ray]` prints the seconds.
"""

from __future__ import annotations

import argparse
import json
import secrets
import shutil
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from benchmarks.dataplane_parts.consortium import HANSA_SITE, Crowd, found
from benchmarks.dataplane_parts.models import Config
from benchmarks.measure import adopt_orphans, end_tree
from commons.records import Kind
from hansa.demo.ray_head import ADDRESS

SITES = 3
TINY: Config = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "moe_intermediate_size": 8,
    "num_experts_per_tok": 1,
}


def empty_run_s(folder: Path, *, ray: bool) -> float:
    """Call it in a process of its own; `folder` is made anew and removed."""
    shutil.rmtree(folder, ignore_errors=True)
    adopt_orphans()
    found(folder, TINY, sites=SITES, rounds=1)
    with ExitStack() as stack:
        crowd = Crowd(folder)
        stack.callback(end_tree)
        stack.callback(crowd.stop)
        began = time.monotonic()
        address = _start_ray(crowd, stack) if ray else None
        crowd.start_coordinator()
        crowd.join()
        if address is not None:
            crowd.environment = {**crowd.environment, "HANSA_RAY_ADDRESS": str(address)}
            crowd.site_program = HANSA_SITE
        crowd.start_sites()
        crowd.start_run()
        crowd.wait_for(Kind.FINISH)
        took = time.monotonic() - began
    shutil.rmtree(folder, ignore_errors=True)
    return took


def _start_ray(crowd: Crowd, stack: ExitStack) -> Path:
    """A head for all sites, as the demo has one; the file that will hold its address."""
    short = Path(tempfile.mkdtemp(prefix="hansa-ray-"))  # Unix sockets allow 107 bytes
    stack.callback(shutil.rmtree, short, ignore_errors=True)
    crowd.environment = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "OMP_NUM_THREADS": "1",
    }
    crowd.start("ray", "-m", "hansa.demo.ray_head", str(short), "2")
    return short / ADDRESS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--ray", action="store_true")
    asked = parser.parse_args()
    print(json.dumps(empty_run_s(asked.folder, ray=asked.ray)))


if __name__ == "__main__":
    main()
