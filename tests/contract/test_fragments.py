"""Rounds that exchange a part of the model and overlap, by real sites over real gRPC: what dies changes no byte."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from commons.charter import Charter
from commons.experts.tokenizer import FILE
from commons.identity import Seat
from commons.records import Kind, Record
from commons.views import RunView
from governance.fsck import judge
from tests.support.consortium import SITES, Office, charter, found, over, started
from tests.support.real_sites import settled
from workers import site_file
from workers.actor import Bench, Failed, TrainingActor
from workers.seal import Trained
from workers.site import run_site
from workers.site_file import SiteFile
from workers.training import Abandoned, Training, TrainingFailed, Watch

Arrays = Mapping[str, NDArray[np.float32]]
ROUNDS = 4


class InThread:
    """`workers.training.Training` by the actor's own code, without Ray."""

    def __init__(self, file: SiteFile) -> None:
        self._actor = TrainingActor(
            Bench(
                file.partner,
                file.name,
                file.text,
                None,
                file.probe,
                file.home / "rounds",
                file.home / FILE,
                1,
            )
        )
        self._calls = 0
        self.ahead_of: list[int] = []

    def train(
        self, run: str, number: int, charter: Charter, base: Arrays, *, not_before_ms: int, watch: Watch
    ) -> Trained:
        self._calls += 1
        result = self._actor.train(self._calls, run, number, charter, base, not_before_ms)
        if isinstance(result, Failed):
            raise Abandoned if result.message == "abandoned" else TrainingFailed(result.message)
        return result

    def ahead(self, run: str, number: int, charter: Charter, *, not_before_ms: int) -> None:
        self._calls += 1
        self.ahead_of.append(number)
        words = (self._calls, run, number, charter, not_before_ms)
        threading.Thread(target=self._actor.ahead, args=words, daemon=True).start()

    def evaluate(self, run: str, charter: Charter, state: Arrays, *, watch: Watch) -> tuple[float, int]:
        found = self._actor.evaluate(run, charter, state)
        assert not isinstance(found, Failed), found
        return found

    def probe(self, run: str, charter: Charter, state: Arrays, *, watch: Watch) -> tuple[float, ...]:
        found = self._actor.probe(run, charter, state)
        if isinstance(found, Failed):
            raise TrainingFailed(found.message)
        return found


class Site:
    """`workers.site.run_site` in a thread of its own."""

    def __init__(self, file: SiteFile) -> None:
        self.file, self.stop, self.trainer = file, threading.Event(), InThread(file)
        self._thread = threading.Thread(target=lambda: run_site(file, self.stop, self._begin), daemon=True)
        self._thread.start()

    @contextmanager
    def _begin(self, file: SiteFile, stop: threading.Event) -> Iterator[Training]:
        yield self.trainer

    def close(self) -> None:
        self.stop.set()
        self._thread.join(20)
        assert not self._thread.is_alive()


class Stage:
    def __init__(self, folder: Path, **changes: Any) -> None:
        folder.mkdir()
        self.of = charter(
            rounds={"quorum": 3, "grace_s": 20, "lease_s": 60},
            learning__routing="lean", learning__rounds=ROUNDS, **changes,
        )  # fmt: skip
        self.folder, self.home = folder, found(folder, self.of)
        self.coordinator = started(self.home)
        self.office = Office(Seat.load(self.home / "operator"))
        self.sites = {name: Site(self._enrolled(name)) for name in SITES}
        self.office.start_run(folder / "seed")

    def _enrolled(self, name: str) -> SiteFile:
        home = settled(self.coordinator, name, self.folder)
        about = f'[site]\nname = "{name}"\npartner = "{name}"\ntext = "words.txt"\n'
        (home / "SITE.toml").write_text(about)
        return site_file.load(home / "SITE.toml")

    def restart(self, name: str) -> None:
        self.sites[name].close()
        self.sites[name] = Site(self.sites[name].file)

    def ends(self) -> list[dict[str, Any]]:
        """The CLOSE records once the run is over."""
        self.office.wait(over, 120)
        records: list[Record] = list(self.coordinator.desk.consortium.journal.records())
        assert judge(records) == ()
        return [dict(r.facts) for r in records if r.kind is Kind.CLOSE]

    def close(self) -> None:
        for site in self.sites.values():
            site.close()
        self.office.close()
        self.coordinator.stop()


def closed(number: int) -> Any:
    def reached(view: RunView) -> bool:
        return len(view.history) > number

    return reached


@pytest.mark.parametrize(("parts", "share"), [({"fragments": 2}, 0.6), ({"owned_every": ROUNDS}, 0.97)])
def test_sites_that_die_between_rounds_end_at_the_same_bytes(
    tmp_path: Path, parts: dict[str, int], share: float
) -> None:
    """`share`: what a round moves, of the last, that exchanges everything."""
    changes = {f"learning__{name}": value for name, value in {**parts, "overlap_steps": 2}.items()}
    steady, killed = Stage(tmp_path / "steady", **changes), Stage(tmp_path / "killed", **changes)
    try:
        for number, name in ((1, "alder"), (2, "birch")):
            killed.office.wait(closed(number), 120)
            killed.restart(name)
        ends = [stage.ends() for stage in (steady, killed)]
        assert steady.sites["cedar"].trainer.ahead_of == list(range(2, ROUNDS + 1))
    finally:
        steady.close()
        killed.close()
    assert [e["state"] for e in ends[0]] == [e["state"] for e in ends[1]]
    assert len({e["state"] for e in ends[0]}) == ROUNDS
    whole = ends[0][-1]["bytes_up"]
    assert all(e["bytes_up"] < share * whole for e in ends[0][:-1])
    assert all(e["bytes_down"] < share * ends[0][0]["bytes_down"] for e in ends[0][1:])
