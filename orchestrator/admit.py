"""One upload from its first byte to its receipt: the claim checked, the payload spooled, the update admitted."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from commons.errors import Code, Refusal
from commons.names import RunId
from commons.records import Kind, Record
from orchestrator.desk import Desk
from orchestrator.facts import rejection_fact
from orchestrator.intake import (
    RECORDED,
    Claim,
    check_claim,
    check_norm,
    check_open,
    check_overlap,
    check_usage,
    find_round,
)
from orchestrator.progress import RoundState
from orchestrator.unmasked import masking_of

log = logging.getLogger("hansa.coordinator")


def admit(
    desk: Desk, claim: Claim, lane: int, lanes: int, offset: int, messages: Iterable[bytes]
) -> int | Refusal | None:
    """Journal index of the admitted update, None while other lanes are missing; the same update has the same index.

    When this returns an index the update is durable: it is combined even if the coordinator dies now. A lane
    that breaks off is kept for resuming. Raises StoreError when the disk is full.
    """
    with desk.consortium.lock:
        wanted = _is_wanted(desk, claim)
    if isinstance(wanted, int):
        return wanted
    refusal = wanted if isinstance(wanted, Refusal) else _check(desk, claim, wanted)
    if refusal is not None:
        return _refuse(desk, claim, refusal)
    refusal = desk.spool.receive(claim, lane, lanes, offset, messages)
    if (
        refusal is not None
    ):  # bytes that went wrong on the way may be sent again, values that are wrong stay wrong
        return _refuse(desk, claim, refusal) if refusal.code is Code.UPDATE_NOT_FINITE else refusal
    norm = desk.spool.whole_norm(claim, lanes)
    if norm is None:
        return None
    refusal = check_norm(claim.site, norm)
    if refusal is not None:
        return _refuse(desk, claim, refusal)
    desk.live.weighed(claim.site, norm)
    return _record(desk, claim)


def _is_wanted(desk: Desk, claim: Claim) -> RoundState | int | Refusal:
    """The round that waits for this update, open or with the site still at work on it, or the index of the update admitted before. Holding the lock."""
    found = find_round(desk.runs, claim)
    if isinstance(found, Refusal):
        return found
    run, opened = found
    known = opened.update(claim.site)
    if known is not None and known.update == claim.update:
        return known.index
    epoch, now_ms = desk.consortium.journal.epoch, desk.consortium.now_ms()
    refusal = check_open(run, opened, claim, epoch=epoch, now_ms=now_ms)
    if refusal is None and opened.closed_ms is not None:
        refusal = desk.too_late(run, claim.site, run.next, now_ms)
    return refusal or opened


def _check(desk: Desk, claim: Claim, opened: RoundState) -> Refusal | None:
    with desk.consortium.lock:
        charter = desk.consortium.members.charters[opened.charter_version]
        expert_map = desk.expert_map(opened.charter_version)
        return check_claim(opened, claim, charter, expert_map, desk.runs.usages)


def _record(desk: Desk, claim: Claim) -> int | Refusal:
    """Append UPDATE and USAGE together, if the round still wants them and no other usage came in between."""
    known: list[int] = []

    def decide(now_ms: int) -> list[Record] | Refusal:
        wanted = _is_wanted(desk, claim)
        if isinstance(wanted, Refusal):
            return wanted
        if isinstance(wanted, int):
            known.append(wanted)
            return []
        if refusal := check_overlap(claim, desk.runs.usages):
            return refusal
        masking = masking_of(desk, RunId(claim.update.run))
        if masking is not None and (refusal := masking.hand_in(claim.site)):
            return refusal
        return [
            Record(Kind.UPDATE, now_ms, claim.upload.update),
            Record(Kind.USAGE, now_ms, claim.upload.usage),
        ]

    done = desk.consortium.commit(decide)
    return _refuse(desk, claim, done) if isinstance(done, Refusal) else (*done, *known)[0]


def _refuse(desk: Desk, claim: Claim, refusal: Refusal) -> Refusal:
    """Record the rejection of a signed update that is wrong, so that nobody waits for the site this round.

    Where the charter charges for rejected updates, the usage record stands before it if it is in order itself.
    """

    def decide(now_ms: int) -> list[Record]:
        opened = _is_wanted(desk, claim)
        if not isinstance(opened, RoundState):
            return []
        rejection = rejection_fact(
            now_ms,
            run=RunId(claim.update.run),
            number=opened.number,
            site=claim.site,
            code=refusal.code,
            message=refusal.message,
            update=claim.key,
        )
        usage = [Record(Kind.USAGE, now_ms, claim.upload.usage)] if _is_charged(desk, claim, opened) else []
        return [*usage, rejection]

    log.warning("update of site %s refused: %s", claim.site, refusal)
    if refusal.code in RECORDED:
        desk.consortium.commit(decide)
    return refusal


def _is_charged(desk: Desk, claim: Claim, opened: RoundState) -> bool:
    charter = desk.consortium.members.charters[opened.charter_version]
    if not charter.accounting.charge_rejected_percent or claim.usage.update != claim.update.payload:
        return False
    wrong = check_usage(opened, claim, charter, desk.expert_map(opened.charter_version))
    return wrong is None and check_overlap(claim, desk.runs.usages) is None
