"""Everything the coordinator shows follows from the journal: built anew from the records, it is the same to the byte."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from commons.certificates import Subject
from commons.charter import Charter
from commons.errors import Refusal
from commons.records import Kind
from commons.wire.v1 import consortium_pb2 as wire
from governance.bell import Bell
from orchestrator.board import run_view
from orchestrator.desk import Desk
from orchestrator.live import Live
from tests.simulation.cast import random_charter
from tests.simulation.world import RUN, Faults, World

VIEWS = ("budgets", "disputes", "proposals", "proposal", "journal", "charter")


class Shown(World):
    """Keeps what its coordinator showed at the end of a life that began with an empty journal."""

    shown: dict[str, bytes]

    def _compare(self, desk: Desk) -> None:
        self.shown = self.show(desk)

    def show(self, desk: Desk) -> dict[str, bytes]:
        asked = [(name, "") for name in VIEWS]
        asked += [("charter", str(version)) for version in desk.consortium.members.charters]
        asked += [("proposal", str(view.number)) for view in desk.consortium.proposals.views()]
        run = run_view(
            desk.runs.by_id[RUN],
            charters=desk.consortium.members.charters,
            ledger=desk.consortium.ledger,
            live=Live(self, Bell(), Bell()),
            noised=desk.runs.noised,
            journal_size=desk.consortium.size,
        )
        return {f"{name} {key}": self.read(name, key) for name, key in asked} | {
            "run": run.model_dump_json().encode()
        }

    def read(self, view: str, key: str) -> bytes:
        """As the operator is shown it; a refusal (there is no proposal) is an answer too."""
        assert self.chamber is not None
        found = self.chamber._view(wire.ReadRequest(view=view, key=key), Subject("operator"))
        return repr(found).encode() if isinstance(found, Refusal) else found


@pytest.mark.parametrize("seed", [2, 5, 11, 23])
def test_every_view_rebuilt_from_the_records_alone_is_the_same_to_the_byte(seed: int, tmp_path: Path) -> None:
    one_life = replace(Faults(), coordinator_crash=0.0, disk_full=0.0, store_closed=0.0, clock_jump=0.0)
    made = random_charter(seed)
    rich = tuple(member.model_dump() | {"budget_micro": 10**12} for member in made.members)
    world = Shown(tmp_path, Charter.model_validate(made.model_dump() | {"members": rich}), seed, one_life)
    records = world.run()
    assert {"close", "settle"} <= {
        r.facts["type"] if r.kind is Kind.TRANSFER else r.kind.value for r in records
    }
    try:
        again = world.show(world.boot())
    finally:
        world.close()
    for name, shown in world.shown.items():
        assert again[name] == shown, name
    assert again.keys() == world.shown.keys()
