"""One round: plan, hold, admit, combine, save, judge, settle, track. Start reading here.

`run_round` reads top to bottom as these steps; the rules are pure functions elsewhere (`plan`, `intake`,
`combine`, the ledger), this module waits and carries out. Every step is durable before the next begins, so a
coordinator killed anywhere goes on by calling `run_round` again: what is done answers at once.
"""

from __future__ import annotations

import logging
from contextlib import ExitStack

from commons.charter import Charter
from commons.errors import Code, Refusal, Refused
from commons.names import RunId, SiteId
from commons.privacy.terms import Robust
from commons.records import Record
from governance.ledger import decide_expire, decide_failed, decide_grants, decide_hold, decide_rulings
from orchestrator import checkpoints
from orchestrator.appraising import Key
from orchestrator.charges import end_hold, end_holds
from orchestrator.combine import Combined, Contribution, Opening, Unmoved, combine
from orchestrator.desk import Desk
from orchestrator.facts import close_fact, finish_fact
from orchestrator.judging import Judged, judge, stands
from orchestrator.late import late_updates, staying
from orchestrator.plan import (
    Verdict,
    closing,
    gathering_ms,
    opening_records,
    plan_round,
    too_few,
    without_lacking,
)
from orchestrator.progress import RunState
from orchestrator.rejecting import lapsed, let_go, letting_go, reject, reject_outliers, reject_refusing
from orchestrator.remaking import remake
from orchestrator.unmasked import find_sum, masked_answer, masking_of

log = logging.getLogger("hansa.coordinator")


def run_round(desk: Desk, run: RunId, *, first: bool) -> bool:
    """Open the run's next round, or take up the open one, and see it closed.

    False when no round was closed: the run is over or the coordinator stops. `first`: give all sites of the
    charter time to connect before planning. Raises StoreError when a disk fails: the round
    stays open, the last state is intact, and calling again goes on.
    """
    renew = False
    while True:
        if not _plan_and_hold(desk, run, first=first, renew=renew):
            return False
        verdict = _admit(desk, run)
        if verdict is None:
            return False
        renew = verdict is not Verdict.CLOSE
        if renew:
            first = False
            continue
        combined = _combine_and_save(desk, run)
        if combined is None:
            return False
        judged = judge(desk, run, combined, lambda key: _combine_and_save(desk, run, without=key))
        if judged is None:
            if desk.stopping.is_set():
                return False
            continue
        if _settle(desk, run, judged):
            _track(desk, run)
            return True


def _plan_and_hold(desk: Desk, run: RunId, *, first: bool, renew: bool) -> bool:
    """Carry out due votes, re-make the state where they changed its experts, gather sites, hold budgets and open the
    round; True once it is open."""
    with desk.consortium.lock:
        open_already = desk.open_round(run) is not None
    if open_already and not renew:
        return True
    if open_already:
        _release_unadmitted(desk, run)
    else:
        carry_out_votes(desk, run)
        if not _await_resumption(desk, run):
            return False
        remake(desk, run)
    if not _gather(desk, run, first=first):
        return False
    desk.consortium.commit(lambda now_ms: decide_expire(desk.consortium.ledger, now_ms))
    done = desk.consortium.commit(lambda now_ms: _decide_opening(desk, run, now_ms))
    if isinstance(done, Refusal):
        raise Refused(done)
    with desk.consortium.lock:
        found = desk.runs.by_id[run]
        if found.finished:
            log.warning("run %s ended: %s", run, found.reason)
        for site, why in sorted(found.open_round.left_out.items()) if found.open_round else ():
            log.info("run %s round %d goes on without site %s: %s", run, found.closed + 1, site, why.message)
        return found.open_round is not None


def _admit(desk: Desk, run: RunId) -> Verdict | None:
    """Wait while the sites verify, train, seal and upload, until the round closes or must be tried again."""
    while not desk.stopping.is_set():
        strokes = desk.bell.strokes
        reject_refusing(desk, run)
        let_go(desk, run)
        with desk.consortium.lock:
            found = desk.open_round(run)
            if found is None:
                return None
            charter = desk.consortium.members.charters[found[1].charter_version]
            working = desk.live.working(run, found[1].number)
            masking, now_ms = masking_of(desk, run), desk.consortium.now_ms()
            answer = closing(found[1], charter.rounds, now_ms, working)
            if masking is not None:
                answer = masked_answer(answer, found[1], masking, now_ms)
        if masking is not None:
            if masking.move(now_ms):
                desk.bell.ring()
            reject(desk, run, masking.left_out(), Code.MASK_ATTEMPT_REFUSED)
        if answer.verdict is Verdict.CLOSE and reject_outliers(desk, run):
            continue
        if answer.verdict is not Verdict.WAIT:
            return answer.verdict
        desk.bell.wait_beyond(strokes, answer.wait_ms / 1000)
    return None


def _combine_and_save(desk: Desk, run: RunId, *, without: Key | None = None) -> Combined | None:
    """The new state, durable. The same admitted updates give the same bytes, however often this runs.

    `without`: as if that update were not there.
    """
    with desk.consortium.lock:
        found = desk.open_round(run)
        if found is None:
            return None
        state, opened = found
        charter = desk.consortium.members.charters[opened.charter_version]
        admitted = {s: a.update for s, a in opened.admitted.items() if (s, opened.number) != without}
        late = [one for one in late_updates(state, charter) if (one.site, one.found.number) != without]
        momentum, exchange = state.momentum, desk.exchange(opened)
    rule = _rule(desk, run, charter)
    if rule is None and charter.privacy.mode == "secagg":
        return None
    with ExitStack() as stack:
        contributions = [
            Contribution(site, update.tokens, stack.enter_context(desk.spool.open(run, opened.number, site)))
            for site, update in sorted(admitted.items())
        ]
        contributions += [
            Contribution(
                one.site,
                one.update.tokens * one.share,
                stack.enter_context(desk.spool.open(run, one.found.number, one.site)),
                late=one.rounds,
            )
            for one in late
        ]
        return combine(
            desk.store,
            base=opened.base,
            momentum=momentum,
            exchange=exchange,
            contributions=contributions,
            rule=rule,
        )


def _rule(desk: Desk, run: RunId, charter: Charter) -> Robust | Opening | Unmoved | None:
    """How shared slices are combined; under secure aggregation it waits for what opens the sum."""
    match charter.privacy.mode:
        case "robust":
            return charter.privacy.robust
        case "secagg":
            return find_sum(desk, run)
        case _:
            return None


def _settle(desk: Desk, run: RunId, judged: Judged) -> bool:
    """The commit point: the round's verdict, its CLOSE and the end of all its holds, in one transaction.

    False when another update was admitted while these were combined, the sites have measured more, or the round is gone:
    nothing was written.
    """
    combined = judged.combined
    if reject_outliers(desk, run):  # one that came after the last look
        return False

    def decide(now_ms: int) -> list[Record]:
        found = desk.open_round(run)
        if found is None:
            return []
        (state, opened), consortium = found, desk.consortium
        if opened.admitted.keys() != combined.sites or state.late.keys() != combined.late:
            return []
        if not stands(desk, run, judged):
            return []
        charter = consortium.members.charters[opened.charter_version]
        at_work = desk.live.maybe_working(run, opened.number, opened.waiting)
        carried = staying(state, opened, charter, at_work, now_ms)
        vain = lapsed(desk, state, opened.number + 1, now_ms)
        late = late_updates(state, charter)
        closed = close_fact(
            now_ms,
            run=run,
            number=opened.number,
            base=opened.base,
            state=combined.state,
            momentum=combined.momentum,
            contributors=opened.admitted,
            missing=opened.waiting,
            bytes_up=sum(a.update.payload_bytes for a in opened.admitted.values())
            + sum(one.update.payload_bytes for one in late),
            bytes_down=desk.live.take_fetched(),
            late=state.late,
            carried=carried,
            shared=("masked" if combined.moved else "unmoved") if charter.privacy.mode == "secagg" else "",
        )
        stay = {(opened.number, site) for site in carried}
        stay |= {(number, site) for site, number in state.carried.items() if site not in vain}
        charters = consortium.members.charters
        ended = end_holds(consortium.ledger, charters, state, now_ms, stay=stay)
        said = judged.records(now_ms, state, opened, charter)
        return [*said, closed, *letting_go(state, vain, now_ms), *ended]

    return bool(desk.consortium.commit(decide))


def _track(desk: Desk, run: RunId) -> None:
    """The journal tells everybody else; here the round's spools and states nobody needs any more go."""
    with desk.consortium.lock:
        state = desk.runs.by_id[run]
        closed, more = state.history[-1], not state.finished and state.closed < state.rounds
        wanted = min([closed.number + 1, *state.carried.values(), *state.late.values()])
        keep = checkpoints.kept(desk.runs)
    updates = len(closed.admitted) + len(closed.takes)
    log.info("run %s round %d closed: %d updates, state %s", run, closed.number, updates, closed.state)
    desk.spool.drop_before(run, wanted, more=more)
    desk.store.prune(keep)


def carry_out_votes(desk: Desk, run: RunId | None) -> None:
    """Decided votes become outcomes, and those due the charter in force, before the run's next round is planned.

    `run` None: while no run goes on, for the first round of the next one; nothing when one has begun. What a charter
    grants and rules is booked after it, also when a crash came between the two. While a late update waits for the next
    close they wait too: it was admitted by the rules in force.
    """
    consortium = desk.consortium
    consortium.commit(consortium.proposals.decide_close)

    def decide(now_ms: int) -> list[Record]:
        if run is None and desk.runs.active is not None:
            return []
        if run is not None and desk.runs.by_id[run].late:
            return []
        number = desk.runs.by_id[run].closed + 1 if run else 1
        return consortium.proposals.decide_execute(consortium.charter, number, now_ms, run=run or "")

    executed = consortium.commit(decide)
    if isinstance(executed, Refusal):
        raise Refused(executed)
    consortium.commit(lambda now_ms: decide_grants(consortium.ledger, consortium.charter, now_ms))
    consortium.commit(lambda now_ms: decide_rulings(consortium.ledger, consortium.charter, now_ms))
    if executed:
        log.info("charter version %d is in force", consortium.charter.version)


def _await_resumption(desk: Desk, run: RunId) -> bool:
    """While rounds are paused votes are carried out, and nothing else; False when the run ended or the coordinator stops."""
    consortium = desk.consortium
    while not desk.stopping.is_set():
        strokes = desk.bell.strokes
        with consortium.lock:
            now_ms = consortium.now_ms()
            until_ms = consortium.pauses.until_ms(consortium.charter, now_ms)
            finished = desk.runs.by_id[run].finished
        if finished or until_ms == now_ms:
            return not finished
        desk.bell.wait_beyond(strokes, None if until_ms is None else (until_ms - now_ms) / 1000)
        carry_out_votes(desk, run)
    return False


def _gather(desk: Desk, run: RunId, *, first: bool) -> bool:
    """Wait until enough sites are here; False when the run ended or the coordinator stops meanwhile."""
    met_ms: int | None = None
    while not desk.stopping.is_set():
        strokes = desk.bell.strokes
        let_go(desk, run)
        present = desk.live.present()
        with desk.consortium.lock:
            found = desk.runs.by_id[run]
            if found.finished:
                return False
            charter, now_ms = desk.consortium.charter, desk.consortium.now_ms()
        settled = found.open_round.admitted if found.open_round else {}
        leases = [found.history[number - 1].lease_until_ms for number in found.carried.values()]
        free = {SiteId(s.name) for s in charter.sites} - found.carried.keys()
        here = {site for site in free if site in present or site in settled}
        met_ms = (met_ms or now_ms) if len(here) >= charter.rounds.quorum else None
        wait_ms = gathering_ms(charter, here, met_ms=met_ms, first=first and here != free, now_ms=now_ms)
        if wait_ms == 0:
            return True
        waits = [end_ms - now_ms for end_ms in leases] + ([] if wait_ms is None else [wait_ms])
        desk.bell.wait_beyond(strokes, min(waits) / 1000 if waits else None)
    return False


def _decide_opening(desk: Desk, run: RunId, now_ms: int) -> list[Record] | Refusal:
    """Holds and ROUND together; sites whose payer lacks budget are left out; the run ends below the quorum."""
    consortium, state = desk.consortium, desk.runs.by_id[run]
    before = state.open_round
    charter = consortium.members.charters[before.charter_version] if before else consortium.charter
    digest = before.charter if before else consortium.members.digest
    expert_map = desk.expert_map(charter.version)
    plan = plan_round(charter, digest, expert_map, state, desk.live.present(), desk.runs.noised, now_ms)
    failed: list[Record] = []
    while plan.enough:
        held = decide_hold(consortium.ledger, plan.requests, now_ms)
        if not isinstance(held, Refusal):
            return [*failed, *held, *opening_records(plan, now_ms)]
        if held.code is not Code.EXCEEDS_BUDGET:
            return held
        wanted = {r.id for r in plan.requests}
        plan = without_lacking(plan, held, charter.rate_card.currency)
        lost = sorted(wanted - {r.id for r in plan.requests})
        failed += decide_failed(consortium.ledger, lost, held, now_ms)
    if all(why.code == Code.NOT_ASSIGNED for why in plan.left_out.values()):
        return []  # only absent ones are lacking: they may come
    return [*failed, *finishing_records(desk, state, "stopped", too_few(plan), now_ms)]


def finishing_records(desk: Desk, run: RunState, phase: str, reason: str, now_ms: int) -> list[Record]:
    """The run ends; its holds end with it, and what was delivered is paid."""
    ended = end_holds(desk.consortium.ledger, desk.consortium.members.charters, run, now_ms)
    return [*ended, finish_fact(now_ms, run=run, phase=phase, reason=reason)]


def _release_unadmitted(desk: Desk, run: RunId) -> None:
    """Before another attempt: budgets held for sites that did not deliver are free again."""

    def decide(now_ms: int) -> list[Record]:
        found = desk.open_round(run)
        if found is None:
            return []
        opened, ledger = found[1], desk.consortium.ledger
        charter = desk.consortium.members.charters[opened.charter_version]
        why = "the lease ended without an update"
        lost = [site for site in sorted(opened.holds) if site not in opened.admitted]
        return [r for s in lost for r in end_hold(ledger, charter, run, opened, s, why, now_ms)]

    desk.consortium.commit(decide)
