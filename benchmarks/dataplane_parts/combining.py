"""Combining alone: what memory it takes beside an idle process, and how many bytes of updates it reads in a second.

`python -m benchmarks.dataplane_parts.combining FOLDER --mb M --sites N --codec C [--apart]` prints one `Combining` as
JSON. Updates are real payloads on disk, read as the spool reads them. `--apart`: every site's payload is a file of its
own, else all sites share one, which is right for memory and would flatter the speed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from blake3 import blake3

from benchmarks import procfs
from benchmarks.dataplane_parts.models import blocks, replicated
from commons.charter import Model
from commons.codec import FRAME, encode_frame
from commons.exchange import Exchange
from commons.experts.map import ExpertMap
from commons.learning import Codec, Learning
from commons.names import Digest, ExpertId, SiteId
from commons.states import StateStore
from commons.updates import Lane, Part, UpdateManifest
from orchestrator.combine import Contribution, combine
from orchestrator.spool import SpooledUpdate

OWNER = SiteId("site-00")
THREADS = 2
_COPY_MB = 1024


@dataclass(frozen=True)
class Combining:
    mb: float
    sites: int
    codec: str
    above_idle_mb: float
    """Highest resident memory while combining, less what the process had before."""
    seconds: float
    """Of one round; the median of several, each from the state of the one before."""
    read_gb_per_s: float
    """Payload bytes of all sites over the seconds, hashing and writing the new state included."""
    copy_gb_per_s: float
    """numpy copying between two large arrays in one thread, in this process, afterwards."""
    copy_threads_gb_per_s: float
    """The same in as many threads as combined."""


def measure(
    folder: Path, *, mb: float, sites: int, codec: Codec, apart: bool, durable: bool, rounds: int
) -> Combining:
    """Call it in a process of its own; `folder` is made anew and removed."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    model = Model(family="glm4_moe", config=replicated(mb, 2))
    expert_map = ExpertMap.from_owners(model, {ExpertId("a"): OWNER, ExpertId("b"): OWNER})
    learning = Learning(rounds=rounds, inner_steps=1, batch_size=1, sequence_length=8, learning_rate=0.1)
    exchange = Exchange(expert_map, learning, 1)
    store = StateStore(folder / "states", durable=durable)
    base = _base(store, expert_map)
    whole = _update(folder / "0.payload", expert_map, codec, OWNER)
    shared = _update(folder / "1.payload", expert_map, codec, SiteId("other"))
    idle = procfs.high_water_mb(os.getpid())
    with ExitStack() as stack, _peak() as peak:
        contributions = []
        for number in range(sites):
            path, manifest = (folder / "0.payload", whole) if not number else (folder / "1.payload", shared)
            if apart and number > 1:
                path = Path(shutil.copy(path, folder / f"{number}.payload"))
            file = stack.enter_context(path.open("rb"))
            update = SpooledUpdate(manifest, ((Lane(0, manifest.frames), file.fileno()),))
            contributions.append(Contribution(SiteId(f"site-{number:02}"), 1, update))
        idle, times = peak.now(), []
        for _ in range(rounds):
            began = time.perf_counter()
            done = combine(
                store, base=base, momentum=None, exchange=exchange, contributions=contributions, threads=THREADS,
            )  # fmt: skip
            times.append(time.perf_counter() - began)
            # Each round begins from another base, so that every one writes a whole state and the oldest goes.
            base = done.state
            store.prune([base])
    seconds = statistics.median(times)
    read = sum(c.update.manifest.payload_bytes for c in contributions)
    shutil.rmtree(folder)
    one, several = _copies(1), _copies(THREADS)
    return Combining(
        mb,
        sites,
        codec,
        round(peak.highest - idle, 1),
        round(seconds, 3),
        round(read / seconds / 1e9, 2),
        one,
        several,
    )


def _base(store: StateStore, expert_map: ExpertMap) -> Digest:
    with store.writer() as state:
        for number, part in enumerate(expert_map.slices):
            tensor = state.slice(part.name, part.shape)
            for block in blocks(number, part.size, sparse=False):
                assert block is not None
                tensor.write(block)
            tensor.close()
        return state.finish()


def _update(path: Path, expert_map: ExpertMap, codec: Codec, site: SiteId) -> UpdateManifest:
    """A payload as the site's `seal` would write it: the same noise in every frame."""
    noise = np.random.default_rng(7).standard_normal(FRAME, np.float32) * np.float32(1e-3)
    frame = encode_frame(codec, noise)
    digest = blake3(frame).hexdigest()
    parts: list[Part] = []
    with path.open("wb") as payload:
        for part in expert_map.uplink(site):
            offset, digests = payload.tell(), []
            for first in range(0, part.size, FRAME):
                count = min(FRAME, part.size - first)
                data = frame if count == FRAME else encode_frame(codec, noise[:count])
                payload.write(data)
                digests.append(digest if count == FRAME else blake3(data).hexdigest())
            parts.append(
                Part(
                    name=part.name,
                    codec=codec,
                    shape=part.shape,
                    offset=offset,
                    bytes=payload.tell() - offset,
                    frames=tuple(digests),
                )
            )
        return UpdateManifest(parts=tuple(parts), payload_bytes=payload.tell())


class _Peak:
    """Highest resident memory seen, in MB; looked at a hundred times a second."""

    def __init__(self) -> None:
        self.highest = 0.0

    def now(self) -> float:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        found = pages * os.sysconf("SC_PAGE_SIZE") / 1e6
        self.highest = max(self.highest, found)
        return found


@contextmanager
def _peak() -> Iterator[_Peak]:
    peak, over = _Peak(), threading.Event()

    def look() -> None:
        while not over.wait(0.01):
            peak.now()

    watching = threading.Thread(target=look, daemon=True)
    watching.start()
    try:
        yield peak
    finally:
        over.set()
        watching.join()


def _copies(threads: int) -> float:
    """GB/s of `np.copyto`, bytes copied, best of five."""
    size = _COPY_MB * 10**6 // 4 // threads
    pairs = [(np.ones(size, np.float32), np.zeros(size, np.float32)) for _ in range(threads)]
    best = 0.0
    for _ in range(5):
        workers = [threading.Thread(target=np.copyto, args=(to, source)) for source, to in pairs]
        began = time.perf_counter()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        best = max(best, 4 * size * threads / (time.perf_counter() - began) / 1e9)
    return round(best, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--mb", type=float, required=True)
    parser.add_argument("--sites", type=int, required=True)
    parser.add_argument("--codec", choices=("fp32", "int8"), default="fp32")
    parser.add_argument("--apart", action="store_true")
    parser.add_argument("--durable", action="store_true", help="wait until the new state is on the disk")
    parser.add_argument("--rounds", type=int, default=1, help="the median of so many is told")
    asked = parser.parse_args()
    measured = measure(
        asked.folder,
        mb=asked.mb,
        sites=asked.sites,
        codec=asked.codec,
        apart=asked.apart,
        durable=asked.durable,
        rounds=asked.rounds,
    )
    print(json.dumps(asdict(measured)))


if __name__ == "__main__":
    main()
