"""Every round that closes is combined again from what its contributors sent: the state must be the one it names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from commons.charter import Charter
from commons.names import Digest, SiteId
from commons.notes import parse
from commons.records import Kind, Record
from commons.updates import UpdateManifest
from commons.work import UpdateNote
from orchestrator.combine import Contribution, combine
from orchestrator.intake import Upload
from orchestrator.progress import RoundState
from tests.support.updates import UpdateInMemory

if TYPE_CHECKING:
    from tests.simulation.world import World


class Closings:
    """A view of the journal that looks at what it is told while the coordinator lives, not at what it replays."""

    def __init__(self, world: World) -> None:
        self._world = world

    def apply(self, index: int, record: Record) -> None:
        if record.kind is Kind.CLOSE and self._world.desk is not None:
            armed, self._world.storage.armed = self._world.storage.armed, False
            self._check(index, record.facts)
            self._world.storage.armed = armed

    def _check(self, index: int, closed: dict[str, Any]) -> None:
        world = self._world
        assert world.desk is not None
        desk = world.desk
        found = desk.runs.by_id[closed["run"]].history[closed["round"] - 1]
        charter = desk.consortium.members.charters[found.charter_version]
        again = combine(
            desk.store,
            base=found.base,
            momentum=self._momentum(index),
            exchange=desk.exchange(found),
            rule=charter.privacy.robust if charter.privacy.mode == "robust" else None,
            contributions=[
                *(self._sent(found, closed["run"], site) for site in closed["contributors"]),
                *(
                    self._late(desk.runs.by_id[closed["run"]].history[of - 1], closed, site, charter)
                    for site, of in closed.get("late", {}).items()
                ),
            ],
        )
        assert again.state == closed["state"], f"round {found.number} is not what its contributors sent"

    def _late(self, of: RoundState, closed: dict[str, Any], site: SiteId, charter: Charter) -> Contribution:
        """What was sent for an earlier round, by the share that is left of its weight."""
        sent, late = self._sent(of, closed["run"], site), closed["round"] - of.number
        return Contribution(site, sent.weight * charter.rounds.late_discount**late, sent.update, late=late)

    def _sent(self, found: RoundState, run: Any, site: SiteId) -> Contribution:
        upload, payload = self._world.sites.all[site].outbox[found.lease(run, site)]
        manifest = UpdateManifest.from_bytes(upload.manifest)
        return Contribution(site, _tokens(upload), UpdateInMemory(manifest, payload))

    def _momentum(self, index: int) -> Digest | None:
        """Of the round before."""
        assert self._world.desk is not None
        before = self._world.desk.consortium.journal.records(stop=index)
        closed = [record for record in before if record.kind is Kind.CLOSE]
        return closed[-1].facts["momentum"] or None if closed else None


def _tokens(upload: Upload) -> int:
    return UpdateNote.from_note(parse(upload.update)).tokens
