"""Rounds judged on a probe: real sites over real gRPC, one of which does harm, and one that has not got the text."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from commons.charter import Charter
from commons.errors import Code
from commons.identity import Seat
from commons.records import Kind, Record
from governance.fsck import judge
from tests.contract.test_services import eventually
from tests.support.consortium import SITES, Office, charter, found, over, seed_state, started
from tests.support.real_sites import Arrays, Pretending, Site, settled
from workers import site_file
from workers.probe import Probe
from workers.seal import Trained
from workers.site_file import SiteFile
from workers.training import TrainingFailed, Watch

TEXT = b"a probe that lies at every site " * 8
NAMED = {"text": f"sha256:{hashlib.sha256(TEXT).hexdigest()}", "bytes": len(TEXT), "patience_s": 30}
NORM = "model.norm.weight"


class Judging(Pretending):
    """Cedar's training moves the model a hundred times too far; the probe loss says how far it has been moved."""

    def __init__(self, file: SiteFile, of: Charter) -> None:
        super().__init__(file.name)
        self._file, self._seed = file, seed_state(of)[NORM]
        self.measured = 0

    def train(self, *args: object, **named: object) -> Trained:
        trained = super().train(*args, **named)  # type: ignore[arg-type]
        times = np.float32(100 if self._site == "cedar" else 1)
        return replace(trained, trunk_delta={n: d * times for n, d in trained.trunk_delta.items()})

    def probe(self, run: str, charter: Charter, state: Arrays, *, watch: Watch) -> tuple[float, ...]:
        self.measured += 1
        try:
            Probe.load(self._file.probe, digest=charter.probe.text, size=charter.probe.bytes)
        except ValueError as error:
            raise TrainingFailed(str(error)) from error
        return (2.0 + float(np.mean(state[NORM] - self._seed)),)


class JudgedStage:
    def __init__(self, folder: Path) -> None:
        self.of = charter(
            probe=NAMED,
            rollback={"on": True, "rise_percent": 1.0, "quarantine_rounds": 1},
            rounds={"quorum": 2, "grace_s": 20, "lease_s": 60},
            learning__rounds=3,
        )
        self.folder, self.home = folder, found(folder, self.of)
        self.coordinator = started(self.home)
        self.office = Office(Seat.load(self.home / "operator"))
        self.sites = [self._site(name) for name in SITES]

    def _site(self, name: str) -> Site:
        home = settled(self.coordinator, name, self.folder)
        (home / "probe.txt").write_bytes(TEXT if name != "birch" else b"another")
        about = f'[site]\nname = "{name}"\npartner = "{name}"\ntext = "words.txt"\nprobe = "probe.txt"\n'
        (home / "SITE.toml").write_text(about)
        site = Site(site_file.load(home / "SITE.toml"))
        site.trainer = Judging(site.file, self.of)
        return site.start()

    @property
    def records(self) -> list[Record]:
        return list(self.coordinator.desk.consortium.journal.records())

    def facts(self, kind: Kind) -> list[dict[str, object]]:
        return [dict(r.facts) for r in self.records if r.kind is kind]

    def close(self) -> None:
        for site in self.sites:
            site.close()
        self.office.close()
        self.coordinator.stop()


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[JudgedStage]:
    stage = JudgedStage(tmp_path)
    yield stage
    stage.close()


def test_the_harmful_update_never_reaches_the_model_and_a_site_without_the_text_holds_nobody_up(
    stage: JudgedStage,
) -> None:
    stage.office.start_run(stage.folder / "seed")
    eventually(
        lambda: any("birch" in s.site and "charter's probe is" in s.why for s in stage.office.run().sites), 60
    )
    stage.office.wait(over, 60)
    rejected = [
        (f["round"], f["site"]) for f in stage.facts(Kind.REJECTION) if f["code"] == Code.UPDATE_HARMFUL
    ]
    assert rejected == [(1, "cedar"), (3, "cedar")]
    contributors = [f["contributors"] for f in stage.facts(Kind.CLOSE)]
    assert contributors == [["alder", "birch"]] * 3
    assert [f["verdict"] for f in stage.facts(Kind.VERDICT)] == ["harmful", "good", "good", "harmful", "good"]
    final = stage.coordinator.desk.store.load(stage.facts(Kind.CLOSE)[-1]["state"])[NORM]  # type: ignore[arg-type]
    np.testing.assert_allclose(final, seed_state(stage.of)[NORM] + 0.03, rtol=1e-5)
    assert judge(stage.records) == ()
