"""Who is out of a round, and why: sites that refuse it or come too late for it, updates out of all proportion."""

from __future__ import annotations

from collections.abc import Mapping

from commons.errors import Code, Refusal
from commons.names import RunId, SiteId
from commons.records import Record
from orchestrator.charges import end_hold
from orchestrator.combine.gate import outliers
from orchestrator.desk import Desk
from orchestrator.facts import rejection_fact
from orchestrator.progress import RunState

GATED_FROM = 3
"""Of fewer updates nobody can say which is out of proportion."""


def reject_refusing(desk: Desk, run: RunId) -> None:
    """Sites that say they will not do the round's work are not waited for."""
    with desk.consortium.lock:
        found = desk.open_round(run)
    if found is not None:
        reject(desk, run, desk.live.refusing(run, found[1].number), Code.POLICY_FORBIDS)


def reject(desk: Desk, run: RunId, why: Mapping[SiteId, str], code: Code) -> None:
    """Those of these sites that the open round still waits for are waited for no more."""

    def decide(now_ms: int) -> list[Record]:
        found = desk.open_round(run)
        if found is None:
            return []
        opened = found[1]
        return [
            rejection_fact(now_ms, run=run, number=opened.number, site=site, code=code, message=why[site])
            for site in opened.waiting
            if site in why
        ]

    if why:
        desk.consortium.commit(decide)


def let_go(desk: Desk, run: RunId) -> None:
    """Sites still at work on a closed round whose update can count no more, or who refuse, are free for the next one."""
    with desk.consortium.lock:
        if not desk.runs.by_id[run].carried:
            return

    def decide(now_ms: int) -> list[Record]:
        state, consortium = desk.runs.by_id[run], desk.consortium
        if state.finished:
            return []
        ended: list[Record] = []
        vain = lapsed(desk, state, state.next, now_ms)
        for site, why in vain.items():
            found = state.history[state.carried[site] - 1]
            charter = consortium.members.charters[found.charter_version]
            ended += end_hold(consortium.ledger, charter, run, found, site, why.message, now_ms)
        return [*letting_go(state, vain, now_ms), *ended]

    desk.consortium.commit(decide)


def lapsed(desk: Desk, state: RunState, into: int, now_ms: int) -> dict[SiteId, Refusal]:
    """Sites that are at work on a closed round in vain, in order of name, and why, where round `into` is the next to close."""
    vain: dict[SiteId, Refusal] = {}
    for site, number in sorted(state.carried.items()):
        refusing = desk.live.refusing(state.run, number)
        why = desk.too_late(state, site, into, now_ms)
        if site in refusing:
            why = Refusal(Code.POLICY_FORBIDS, refusing[site])
        if why is not None:
            vain[site] = why
    return vain


def letting_go(state: RunState, vain: Mapping[SiteId, Refusal], now_ms: int) -> list[Record]:
    return [
        rejection_fact(
            now_ms, run=state.run, number=state.carried[site], site=site, code=why.code, message=why.message
        )
        for site, why in vain.items()
    ]


def reject_outliers(desk: Desk, run: RunId) -> bool:
    """Before they are combined: updates out of all proportion to the round's others are rejected; whether there were any.

    Nobody can say it of masked ones.
    """
    with desk.consortium.lock:
        found = desk.open_round(run)
        if found is None:
            return False
        state, opened = found
        admitted = {(site, opened.number): a.update for site, a in opened.admitted.items()}
        admitted |= {(s, n): state.history[n - 1].late[s].update for s, n in state.late.items()}
        charter = desk.consortium.members.charters[opened.charter_version]
        gate = charter.learning.norm_gate
    if charter.privacy.mode == "secagg" or len(admitted) < GATED_FROM:
        return False
    norms = {(site, number): desk.spool.norm(run, number, site) for site, number in admitted}

    def decide(now_ms: int) -> list[Record]:
        return [
            rejection_fact(
                now_ms,
                run=run,
                number=number,
                site=site,
                code=Code.UPDATE_NORM,
                message=f"its update's norm is {norms[site, number]:.3g}, the round's others are {gate:g} times smaller and more; "
                "its operator looks for what went wrong in its training",
                update=admitted[site, number].digest,
            )
            for site, number in outliers(norms, gate)
            if state.history[number - 1].update(site) is not None
        ]

    return bool(desk.consortium.commit(decide))
