"""Secure aggregation in the course of a round: sites are heard, the sum is opened, or given up with its reason.

Between the desk and one attempt (`orchestrator.masking`). Knows nothing of how words are checked or kept.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from commons.errors import Code, Refusal
from commons.masking import Attempt
from commons.names import RunId, SiteId
from orchestrator.combine import Opening, Unmoved
from orchestrator.desk import Desk
from orchestrator.masking import PATIENCE_MS, MaskingAttempt, Said, Shown, folder_of
from orchestrator.plan import Closing, Verdict
from orchestrator.progress import RoundState

log = logging.getLogger("hansa.coordinator")

ANSWER_S = 10.0
"""How long a site that has seen everything waits for more."""
LOOK_MS = 1000


def masking_of(desk: Desk, run: RunId) -> MaskingAttempt | None:
    """Of the open round; None when there is none, or its charter asks for no secure aggregation. Holding the lock.

    Raises StoreError when what was kept of it cannot be read.
    """
    found = desk.open_round(run)
    if found is None:
        return None
    opened, members = found[1], desk.consortium.members
    charter = members.charters[opened.charter_version]
    if charter.privacy.mode != "secagg":
        return None
    attempt = Attempt(
        consortium=charter.consortium.name,
        run=run,
        round=opened.number,
        attempt=opened.attempt,
        charter=opened.charter,
    )
    keys = {site: members.site_key(site) for site in opened.holds}

    def make() -> MaskingAttempt:
        folder = folder_of(desk.spool.root, run, opened.number, opened.attempt)
        sites = {str(site): key for site, key in keys.items() if key is not None}
        return MaskingAttempt(
            folder, attempt, charter, log_key=desk.signer, sites=sites, admitted=opened.admitted
        )

    return desk.masking.of(attempt, make)


def converse(
    desk: Desk,
    site: SiteId,
    *,
    run: RunId,
    number: int,
    seen: tuple[int, int],
    said: Said | None,
    active: Callable[[], bool],
) -> Shown | Refusal:
    """Take in what the site says, then show all that was said once that is more than it has `seen` (attempt, stage).

    Raises StoreError when the word cannot be kept: it was not said then.
    """
    until = time.monotonic() + ANSWER_S
    while True:
        strokes = desk.bell.strokes
        with desk.consortium.lock:
            masking = _wanted(desk, site, run, number)
        if isinstance(masking, Refusal):
            return masking
        if said is not None:
            if refusal := masking.say(site, said):
                return refusal
            said = None
            desk.bell.ring()
            continue
        shown, left_s = masking.shown(), until - time.monotonic()
        if (shown.attempt, shown.stage) != seen or left_s <= 0 or desk.stopping.is_set() or not active():
            return shown
        desk.bell.wait_beyond(strokes, left_s)


def _wanted(desk: Desk, site: SiteId, run: RunId, number: int) -> MaskingAttempt | Refusal:
    if run not in desk.runs.by_id:
        return Refusal(Code.RUN_UNKNOWN, f"there is no run {run[:64]!r} here")
    found = desk.open_round(run)
    if found is None or found[1].number != number:
        return Refusal(Code.ROUND_CLOSED, f"round {number} of run {run} is not open")
    if site not in found[1].holds or site in found[1].rejected:
        return Refusal(Code.NOT_ASSIGNED, f"site {site} has no part in round {number}")
    masking = masking_of(desk, run)
    if masking is None:
        return Refusal(
            Code.REQUEST_INVALID, f"round {number} is under a charter that asks for no secure aggregation"
        )
    return masking


def masked_answer(answer: Closing, opened: RoundState, masking: MaskingAttempt, now_ms: int) -> Closing:
    """When a masked round closes: not before a crowd has handed in, unless the leases end and it never will."""
    if answer.verdict is Verdict.RENEW and opened.admitted:
        return Closing(
            Verdict.CLOSE
        )  # their masks are of this attempt: what they sent is of no use in another
    if answer.verdict is Verdict.CLOSE and len(opened.admitted) < masking.crowd:
        over = now_ms >= opened.lease_until_ms or not opened.waiting
        return Closing(Verdict.CLOSE) if over else Closing(Verdict.WAIT, LOOK_MS)
    return Closing(answer.verdict, min(answer.wait_ms, LOOK_MS))


def find_sum(desk: Desk, run: RunId) -> Opening | Unmoved | None:
    """What opens the sum of the admitted updates, waiting for the sites' shares; None when the round is gone, or the
    coordinator stops. Raises StoreError."""
    with desk.consortium.lock:
        masking, found = masking_of(desk, run), desk.open_round(run)
        if masking is None or found is None:
            return None
        opened, admitted = found[1], tuple(sorted(found[1].admitted))
        # Under the lock: whoever is admitted now is in the list, and nobody is admitted after it.
        refusal = masking.list_survivors(admitted) if len(admitted) >= masking.crowd else None
        until_ms = max(opened.lease_until_ms, desk.consortium.now_ms() + PATIENCE_MS)
    if refusal is not None or not masking.listed:
        return _lost(
            opened, refusal.message if refusal else f"{len(admitted)} updates, {masking.crowd} make a crowd"
        )
    stage = -1
    while not desk.stopping.is_set():
        strokes = desk.bell.strokes
        opening = masking.opening()
        if not isinstance(opening, Refusal):
            return opening
        if opening.code is not Code.MASK_BELOW_THRESHOLD:
            return _lost(opened, opening.message)
        if stage != (stage := masking.shown().stage):
            desk.bell.ring()
            continue
        with desk.consortium.lock:
            gone, now_ms = desk.open_round(run) is None, desk.consortium.now_ms()
        if gone:
            return None
        if now_ms >= until_ms:
            return _lost(opened, opening.message)
        desk.bell.wait_beyond(strokes, LOOK_MS / 1000)
    return None


def _lost(opened: RoundState, why: str) -> Unmoved:
    log.warning("round %d: the masked sum is lost, trunk and router stay as they are: %s", opened.number, why)
    return Unmoved()
