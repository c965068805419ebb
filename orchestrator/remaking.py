"""Between two rounds: the run's state re-made when a vote changed which experts there are or whose they are."""

from __future__ import annotations

import logging

from commons.experts.remaking import Change, remake_memory, remake_state
from commons.names import RunId
from commons.records import Record
from orchestrator import checkpoints
from orchestrator.desk import Desk
from orchestrator.facts import remade_fact

log = logging.getLogger("hansa.coordinator")


def remake(desk: Desk, run: RunId) -> None:
    """Bring the state to the experts of the charter in force; nothing when it has them.

    The new state is durable before it is recorded, and the record is the commit point: killed before it, the next call
    makes the same bytes again. Raises StoreError when a disk fails.
    """
    consortium, members = desk.consortium, desk.consortium.members
    with consortium.lock:
        found, charter = desk.runs.by_id[run], consortium.charter
        since, state, momentum = found.map_version, found.state, found.momentum
        expert_map = desk.expert_map(charter.version)
        if desk.expert_map(since).digest == expert_map.digest:
            return
        charters = [members.charters[version] for version in range(since, charter.version + 1)]
    change = Change.through(charters)
    made = remake_state(desk.store, state, change)
    memory = remake_memory(desk.store, momentum, change) if momentum else None

    def decide(now_ms: int) -> list[Record]:
        return [
            remade_fact(
                now_ms,
                run=desk.runs.by_id[run],
                charter_version=charter.version,
                charter=members.digest,
                expert_map=expert_map.digest,
                state=made,
                momentum=memory,
            )
        ]

    consortium.commit(decide)
    with consortium.lock:
        keep = checkpoints.kept(desk.runs)
    desk.store.prune(keep)
    log.info(
        "run %s: the state has the %d experts of charter version %d",
        run,
        len(change.origins),
        charter.version,
    )
