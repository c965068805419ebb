"""Measure one system at one size, and keep the result: `python -m benchmarks.peers.run --system flower --sites 3 --mb 1`.

Prints the `PeerRun` as one line of JSON.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from benchmarks.peers import PeerRun
from benchmarks.peers.driving import Job, Peer, PeerError, log, measure_here
from benchmarks.peers.flower import Flower
from benchmarks.peers.nvflare import NUMPY, OFFLOAD, TENSORS

PEERS: dict[str, Peer] = {peer.name: peer for peer in (Flower(), TENSORS, OFFLOAD, NUMPY)}
ENVIRONMENTS = Path("runs/peers")
"""Where `make peers` installs, relative to the checkout."""
ROOT = Path(__file__).parents[2]
LIMIT_MB = 16_000


def measure(
    system: str,
    sites: int,
    mb: float,
    rounds: int,
    *,
    work: Path,
    environments: Path = ROOT / ENVIRONMENTS,
    limit_mb: float = LIMIT_MB,
) -> PeerRun:
    """What `work` keeps of this system at this size, else measured now in a process of its own and kept there.

    `mb` is the size of the model in 10^6 bytes. Raises PeerError when the peer is not installed (`make peers`), fails, or
    needs more than `limit_mb` of memory; then nothing is kept.
    """
    kept = work / f"{system}-{sites}x{mb:g}.json"
    if kept.exists():
        return PeerRun.from_json(kept.read_text())
    environment(system, environments)
    folder = (work / f"{system}-{sites}x{mb:g}").resolve()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    options = {"system": system, "sites": sites, "mb": mb, "rounds": rounds, "limit-mb": limit_mb}
    options |= {"environments": environments.resolve(), "deployment": folder}
    words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    with (folder / "driver.log").open("w") as errors:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.peers.run", *words],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, text=True, check=False,
        )  # fmt: skip
    if done.returncode:
        said = (folder / "driver.log").read_text().strip().splitlines()
        raise PeerError(said[-1] if said else f"the driver of {system} ended with {done.returncode}")
    found = PeerRun.from_json(done.stdout)
    kept.write_text(found.as_json() + "\n")
    shutil.rmtree(folder)
    return found


def environment(system: str, environments: Path) -> Path:
    """The virtual environment of a peer. Raises PeerError when it is not there."""
    if system not in PEERS:
        raise PeerError(f"there is no peer {system!r}; there are: {', '.join(PEERS)}")
    found = environments / ("flower" if system == "flower" else "nvflare")
    if not (found / "bin" / "python").exists():
        raise PeerError(f"{system} is not installed in {found}: run `make peers`")
    return found


def main() -> None:
    """The command; with --deployment (as `measure` calls it) it deploys in this process and keeps nothing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--system", choices=PEERS, required=True)
    parser.add_argument("--sites", type=int, default=3)
    parser.add_argument("--mb", type=float, default=1.0, help="size of the model, 10^6 bytes of fp32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--work", type=Path, default=ROOT / "runs/bench/peers", help="where results are kept")
    parser.add_argument("--environments", type=Path, default=ROOT / ENVIRONMENTS)
    parser.add_argument("--limit-mb", type=float, default=LIMIT_MB, help="memory at which a peer is stopped")
    parser.add_argument("--deployment", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    try:
        if args.deployment is None:
            found = measure(
                args.system, args.sites, args.mb, args.rounds,
                work=args.work, environments=args.environments, limit_mb=args.limit_mb,
            )  # fmt: skip
        else:
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
            where = environment(args.system, args.environments)
            job = Job(args.sites, args.mb, args.rounds, work=args.deployment, environment=where)
            found = measure_here(PEERS[args.system], job, limit_mb=args.limit_mb)
    except PeerError as error:
        log(str(error))
        sys.exit(1)
    print(found.as_json())


if __name__ == "__main__":
    main()
