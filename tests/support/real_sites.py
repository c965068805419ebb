"""Real sites in threads, over real gRPC, with a coordinator: only their training is pretended."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from commons.charter import Charter
from commons.codec import decode
from commons.exchange import Exchange
from commons.experts.map import ExpertMap
from commons.identity import Seat
from commons.names import SiteId
from commons.records import Record
from commons.updates import UpdateManifest
from orchestrator.coordinator import Coordinator
from tests.support.consortium import SITES, Office, enrol, found, signer, started
from workers import site_file
from workers.meter import Usage
from workers.seal import Trained
from workers.site import run_site
from workers.site_file import SiteFile
from workers.training import Progress, Training, Watch

Arrays = Mapping[str, np.ndarray]
Before = Callable[[int], None]
LOSS = 1.375
STEP = 0.01
"""What training adds to every value that it may move."""


class Pretending:
    """`workers.training.Training`: every value grows by the same, from where the base has it."""

    def __init__(self, site: str, before: Before = lambda number: None) -> None:
        self._site, self._before = SiteId(site), before
        self.rounds: list[int] = []

    def train(
        self, run: str, number: int, charter: Charter, base: Arrays, *, not_before_ms: int, watch: Watch
    ) -> Trained:
        self.rounds.append(number)
        self._before(number)
        learning = charter.learning
        moves, steps = Exchange(ExpertMap.from_charter(charter), learning, number), learning.steps_in(number)
        watch(Progress(step=steps, steps=steps, loss=LOSS))
        now_ms = max(time.time_ns() // 1_000_000, not_before_ms)
        trained, tokens = moves.trained(self._site), steps * learning.batch_size * learning.sequence_length
        may, experts = moves.may_route_to(self._site), moves.expert_map.experts_per_token
        chosen = [n for n, allowed in enumerate(may) if allowed][:experts]
        return Trained(
            trunk_delta={s.name: np.full(s.shape, STEP, np.float32) for s in trained if s.expert is None},
            experts={s.name: base[s.name] + np.float32(STEP) for s in trained if s.expert is not None},
            steps=steps,
            tokens=tokens,
            routed=(tuple(tokens * (n in chosen) for n in range(len(may))),)
            * len(moves.expert_map.routed_layers),
            loss=LOSS,
            held_out_loss=LOSS,
            gflop=moves.gflop(steps),
            usage=Usage(now_ms, now_ms, 0, (f"cpu/{self._site}/{self._site}",), "fp32"),
        )

    def ahead(self, run: str, number: int, charter: Charter, *, not_before_ms: int) -> None:
        raise AssertionError("its charters do not overlap")

    def evaluate(self, run: str, charter: Charter, state: Arrays, *, watch: Watch) -> tuple[float, int]:
        return LOSS, charter.learning.sequence_length

    def probe(self, run: str, charter: Charter, state: Arrays, *, watch: Watch) -> tuple[float, ...]:
        return (LOSS,)


class Site:
    """`workers.site.run_site` in a thread of its own."""

    def __init__(self, file: SiteFile, before: Before = lambda number: None) -> None:
        self.file, self.trainer, self.stop = file, Pretending(file.name, before), threading.Event()
        self._thread = threading.Thread(target=lambda: run_site(file, self.stop, self._begin), daemon=True)

    @contextmanager
    def _begin(self, file: SiteFile, stop: threading.Event) -> Iterator[Training]:
        yield self.trainer

    def start(self) -> Site:
        self._thread.start()
        return self

    def close(self) -> None:
        self.stop.set()
        self._thread.join(10)
        assert not self._thread.is_alive()


def settled(coordinator: Coordinator, name: str, folder: Path) -> Path:
    """The folder of a site that has its seat, its key and its words, and no SITE.toml yet."""
    home = folder / name
    enrol(coordinator, "site", name, home / "seat")
    key = home / "seat" / "site.key"
    key.write_text(signer(f"{name}/{name}").to_text())
    key.chmod(0o600)
    (home / "words.txt").write_text("\n\n".join(f"{name} says {i * i} and {i}" for i in range(200)))
    return home


class RealStage:
    """A coordinator and three such sites under a charter of theirs."""

    def __init__(
        self, folder: Path, of: Charter, policy: str = "", before: Before = lambda number: None
    ) -> None:
        """`policy`: of alder's site. `before`: called by each site at the beginning of its part of a round."""
        self.of, self.folder, self.home = of, folder, found(folder, of)
        self.coordinator = started(self.home)
        self.office = Office(Seat.load(self.home / "operator"))
        self.sites = [self._site(name, policy if name == "alder" else "", before) for name in SITES]

    def _site(self, name: str, policy: str, before: Before) -> Site:
        home = settled(self.coordinator, name, self.folder)
        about = f'[site]\nname = "{name}"\npartner = "{name}"\ntext = "words.txt"\n{policy}'
        (home / "SITE.toml").write_text(about)
        return Site(site_file.load(home / "SITE.toml"), before).start()

    @property
    def records(self) -> list[Record]:
        return list(self.coordinator.desk.consortium.journal.records())

    def sent(self, site: Site, number: int) -> dict[str, np.ndarray]:
        """What the site's outbox holds of a round."""
        folder = site.file.home / "outbox" / f"run-1-{number:06d}"
        payload = (folder / "payload.bin").read_bytes()
        parts = UpdateManifest.from_bytes((folder / "manifest.json").read_bytes()).parts
        return {
            p.name: decode(p.plain, payload[p.offset : p.offset + p.bytes], p.shape).reshape(p.shape)
            for p in parts
        }

    def close(self) -> None:
        for site in self.sites:
            site.close()
        self.office.close()
        self.coordinator.stop()
