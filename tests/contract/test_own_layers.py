"""A run in which every site has layers of its own, over real gRPC and on a frozen trunk: who sends and moves what."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from commons.exchange import Exchange
from commons.experts.map import ExpertMap, Kind
from commons.names import RunId, SiteId
from commons.notes import parse
from commons.records import Kind as Records
from commons.work import UpdateNote
from governance.fsck import judge
from orchestrator.intake import payload_bytes
from orchestrator.release import Made, make, verify
from tests.support.consortium import charter, over
from tests.support.real_sites import RealStage

BASE = charter(
    learning__routing="lean",
    learning__strategy="sovereign",
    learning__codecs={"expert": "int4", "router": "fp32"},
)
OF = BASE.model_copy(update={"model": BASE.model.model_copy(update={"reader": 4, "own_from": 0})})
MAP = ExpertMap.from_charter(OF)


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[RealStage]:
    made = RealStage(tmp_path, OF)
    yield made
    made.close()


def test_sites_send_their_own_layers_with_their_experts_and_nobody_moves_anothers_or_the_seeds(
    stage: RealStage,
) -> None:
    stage.office.start_run(stage.folder / "seed")
    view = stage.office.wait(over, 60)
    assert (view.phase, view.round) == ("finished", 2), view.reason
    assert judge(stage.records) == ()
    notes = [UpdateNote.from_note(parse(r.body)) for r in stage.records if r.kind is Records.UPDATE]
    assert len(notes) == 6
    for note in notes:
        sends = Exchange(MAP, OF.learning, note.round).uplink(SiteId(note.site))
        assert note.payload_bytes == payload_bytes(sends, OF, note.round)
        assert {s.stands_for for s in sends if s.kind is Kind.OWN} == MAP.late
        assert all(s.name.split(".")[1] == note.site for s in sends if s.kind is Kind.OWN)
    store, closed = (
        stage.coordinator.desk.store,
        [r.facts for r in stage.records if r.kind is Records.CLOSE][-1],
    )
    base, state = store.load(closed["base"]), store.load(closed["state"])
    moved = {n for n in state if not np.array_equal(base[n], state[n])}
    assert moved == {s.name for s in MAP.slices if s.expert is not None or s.kind is Kind.ROUTER}
    run = stage.coordinator.desk.runs.by_id[RunId("run-1")]
    made = make(stage.coordinator.desk, run, stage.folder / "release")
    assert isinstance(made, Made) and verify(made.folder) == []
