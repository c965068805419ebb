"""A site's request for more money to be held, on its way into the journal."""

from __future__ import annotations

import logging

from commons.errors import Code, Refusal
from commons.records import Record
from governance.ledger import decide_failed, decide_hold
from orchestrator.charges import TopUp, top_up_request
from orchestrator.desk import Desk

log = logging.getLogger("hansa.coordinator")


def top_up(desk: Desk, asked: TopUp) -> Refusal | None:
    """Hold more for a round under way; None once it is held. Asked twice with the same `n`: nothing more.

    Refuses: run_unknown, round_closed, and what `top_up_request` and `decide_hold` refuse. A top-up that exceeds
    the budget has failed for ever: for a new attempt the site makes another `n`.
    """
    refused: list[Refusal] = []

    def decide(now_ms: int) -> list[Record] | Refusal:
        consortium, run = desk.consortium, desk.runs.by_id.get(asked.run)
        if run is None:
            return Refusal(Code.RUN_UNKNOWN, f"there is no run {asked.run[:64]!r} here")
        if not 1 <= asked.round <= len(run.history):
            return Refusal(Code.ROUND_CLOSED, f"run {run.run} has no round {asked.round} yet")
        found = run.history[asked.round - 1]
        charter = consortium.members.charters[found.charter_version]
        expert_map = desk.expert_map(found.charter_version)
        request = top_up_request(consortium.ledger, charter, expert_map, run, found, asked, now_ms)
        if isinstance(request, Refusal):
            return request
        held = decide_hold(consortium.ledger, [request], now_ms)
        if isinstance(held, Refusal) and held.code is Code.EXCEEDS_BUDGET:
            refused.append(held)
            return decide_failed(consortium.ledger, [request.id], held, now_ms)
        return held

    done = desk.consortium.commit(decide)
    refusal = done if isinstance(done, Refusal) else next(iter(refused), None)
    if refusal is not None:
        log.warning("site %s asked for %d micro more: %s", asked.site, asked.amount_micro, refusal)
    return refusal
