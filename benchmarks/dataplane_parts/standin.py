"""What stands in for a site's Ray and trainer: every slice comes back with a little noise on it, as fast as can be.

`python -m benchmarks.dataplane_parts.standin SITE.toml` is `hansa site start` but for that: everything else of the
site is real. A slice is computed when it is asked for and kept by nobody, so that no model is too large.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from commons.charter import Charter
from commons.experts.map import ExpertMap
from commons.names import SiteId
from workers.meter import Usage
from workers.seal import Trained
from workers.site_file import SiteFile
from workers.training import Abandoned, Progress, Training, Watch, Wish

Array = NDArray[np.float32]
AMPLITUDE = np.float32(1e-4)
LOSS = 1.0
NOISE = 1 << 16
"""Different values of it."""
SHARE = "HANSA_STAND_IN_SHARE"
"""Environment variable: how much of each slice is moved."""
STEP_S = "HANSA_STAND_IN_STEP_S"
"""Environment variable: how long an inner step takes, in seconds."""
LOST = "HANSA_STAND_IN_LOST"
"""Environment variable: SITE/ROUND, the site that dies in that round, some time after it took its order."""
LOST_AFTER_S = 1.0


class Lazy(Mapping[str, Array]):
    """Arrays that are computed when they are looked up, each time anew, in the same memory."""

    def __init__(self, names: tuple[str, ...], compute: Callable[[str], Array]) -> None:
        self._names, self._compute = dict.fromkeys(names), compute

    def __getitem__(self, name: str) -> Array:
        if name not in self._names:
            raise KeyError(name)
        return self._compute(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class StandIn:
    """`workers.training.Training`. The same round of the same site from the same base gives the same bytes."""

    def __init__(self, partner: str, site: str, *, share: float = 1.0, step_s: float = 0.0) -> None:
        """`share`: how much of each slice is moved, from its beginning; the rest stays as it is. `step_s`: of an inner
        step, in which nothing is computed."""
        self._device, self._site, self._share = f"cpu/{partner}/{site}", SiteId(site), share
        self._step_s = step_s
        self._memory = np.empty(0, np.float32)
        self._ahead: tuple[int, float] = 0, 0.0
        """The round that was begun ahead of its order, and when."""

    def train(
        self,
        run: str,
        number: int,
        charter: Charter,
        base: Mapping[str, Array],
        *,
        not_before_ms: int,
        watch: Watch,
    ) -> Trained:
        learning = charter.learning
        steps, tokens = learning.steps_in(number), learning.batch_size * learning.sequence_length
        began_ms = max(_now_ms(), not_before_ms)
        if watch(Progress(step=steps, steps=steps, loss=LOSS)) is Wish.ABANDON:
            raise Abandoned
        if os.environ.get(LOST) == f"{self._site}/{number}":
            time.sleep(LOST_AFTER_S)
            os._exit(9)
        time.sleep(self._steps_s(number, charter))
        noise = _noise(f"{run}/{number}/{self._site}")
        expert_map = ExpertMap.from_charter(charter)
        shared = tuple(part.name for part in expert_map.shared())
        own = tuple(part.name for part in expert_map.owned_by(self._site))
        ended_ms = max(_now_ms(), began_ms)
        return Trained(
            trunk_delta=Lazy(shared, lambda name: self._moved(base[name], noise, delta=True)),
            experts=Lazy(own, lambda name: self._moved(base[name], noise)),
            steps=steps,
            tokens=steps * tokens,
            loss=LOSS,
            held_out_loss=None,
            gflop=expert_map.training_gflop(steps * tokens),
            usage=Usage(began_ms, ended_ms, ended_ms - began_ms, (self._device,), "fp32"),
        )

    def _moved(self, base: Array, noise: Array, *, delta: bool = False) -> Array:
        """`base` plus the noise, which is repeated as often as it takes, or what that is above the base."""
        if self._memory.size < base.size:
            self._memory = np.empty(base.size, np.float32)
        old, new = base.reshape(-1), self._memory[: base.size]
        end = max(1, int(self._share * base.size))
        for first in range(0, end, noise.size):
            part = slice(first, min(first + noise.size, end))
            np.add(old[part], noise[: part.stop - first], out=new[part])
            if delta:
                np.subtract(new[part], old[part], out=new[part])
        new[end:] = 0 if delta else old[end:]
        return new.reshape(base.shape)

    def ahead(self, run: str, number: int, charter: Charter, *, not_before_ms: int) -> None:
        self._ahead = number, time.monotonic()

    def _steps_s(self, number: int, charter: Charter) -> float:
        """What the round's steps still take."""
        learning, (begun, since_s) = charter.learning, self._ahead
        made_s = min(time.monotonic() - since_s, learning.overlap_steps * self._step_s)
        return learning.inner_steps * self._step_s - (made_s if begun == number else 0.0)

    def evaluate(
        self, run: str, charter: Charter, state: Mapping[str, Array], *, watch: Watch
    ) -> tuple[float, int]:
        watch(Progress())
        return LOSS, charter.learning.sequence_length

    def probe(
        self, run: str, charter: Charter, state: Mapping[str, Array], *, watch: Watch
    ) -> tuple[float, ...]:
        watch(Progress())
        return (LOSS,) * charter.probe.parts


@contextlib.contextmanager
def standing_in(file: SiteFile, stop: threading.Event) -> Iterator[Training]:
    """`workers.training.Begin`."""
    share, step_s = (float(os.environ.get(name, default)) for name, default in ((SHARE, "1"), (STEP_S, "0")))
    yield StandIn(file.partner, file.name, share=share, step_s=step_s)


def _noise(of: str) -> Array:
    key = np.frombuffer(hashlib.sha256(of.encode()).digest()[:16], np.uint64)
    drawn = np.random.Generator(np.random.Philox(key=key)).standard_normal(NOISE, np.float32)
    return np.asarray(drawn * AMPLITUDE, np.float32)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def main(path: str) -> None:
    """Be the site until SIGTERM."""
    from hansa.arenas import few_arenas
    from hansa.hosting import stop_signal
    from workers.site import run_site
    from workers.site_file import load

    few_arenas()
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("hansa").setLevel(logging.INFO)
    with stop_signal() as stop:
        run_site(load(Path(path)), stop, standing_in)


if __name__ == "__main__":
    main(sys.argv[1])
