"""What the next round shall be, and when the open one ends. Pure functions over views and the charter.

Nothing here waits, writes or asks the time: the answers are values that `round.py` carries out.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from enum import Enum

from commons.charter import Charter, Rounds, Site
from commons.errors import Code, Refusal
from commons.experts.map import ExpertMap
from commons.names import Digest, Micro, RoundNumber, RunId, SiteId
from commons.records import Record
from commons.work import AssignmentNote
from governance.ledger import HoldRequest
from governance.noised import Noised
from governance.ratecard import rate_card_digest
from orchestrator.charges import bound, ordered_gflop
from orchestrator.facts import rejection_fact, round_fact
from orchestrator.progress import Rejected, RoundState, RunState, hold_id

RETRY_MS = 30_000
"""Pause before a round that every site refused is tried again."""
EVALUATION_PATIENCE_MS = 15_000
"""Least time absent sites have to come and evaluate the final state."""


@dataclass(frozen=True)
class Plan:
    """A round about to be opened: whom to hold for, and who is left out and why."""

    run: RunId
    number: RoundNumber
    attempt: int
    base: Digest
    charter_version: int
    charter: Digest
    expert_map: Digest
    quorum: int
    lease_until_ms: int
    requests: tuple[HoldRequest, ...]
    left_out: dict[SiteId, Rejected]
    admitted: int = 0
    """Updates already admitted in an earlier attempt."""

    @property
    def enough(self) -> bool:
        return len(self.requests) + self.admitted >= self.quorum


def gathering_ms(
    charter: Charter, present: Collection[SiteId], *, met_ms: int | None, first: bool, now_ms: int
) -> int | None:
    """How long to wait for sites before planning; 0: plan now; None: until somebody comes.

    Below the quorum there is no round. The `first` round waits for all sites of the charter, at
    most `grace_s` after the quorum was met (`met_ms`).
    """
    here = [s.name for s in charter.sites if SiteId(s.name) in present]
    if len(here) < charter.rounds.quorum or met_ms is None:
        return None
    if not first or len(here) == len(charter.sites):
        return 0
    return max(0, met_ms + charter.rounds.grace_s * 1000 - now_ms)


def plan_round(
    charter: Charter,
    charter_digest: Digest,
    expert_map: ExpertMap,
    run: RunState,
    present: Collection[SiteId],
    noised: Noised,
    now_ms: int,
) -> Plan:
    """The next round over the sites that are here, or, while a round is open, a further attempt at it."""
    before = run.open_round
    number = before.number if before else RoundNumber(run.closed + 1)
    attempt = before.attempt + 1 if before else 1
    settled = before.admitted if before else {}
    gflop = ordered_gflop(charter, expert_map, number)
    lease_until_ms = now_ms + charter.rounds.lease_s * 1000
    rate_card = rate_card_digest(charter.rate_card)
    requests: list[HoldRequest] = []
    left_out: dict[SiteId, Rejected] = {}
    apart = quarantined(charter, run, present, number)
    for site in sorted(charter.sites, key=lambda s: s.name):
        name = SiteId(site.name)
        most = bound(charter, site, gflop, run.last_usage(name))
        if name in settled:
            continue
        gone = _suspended(charter, site) or _away(run, name, present)
        if why := gone or apart.get(name) or noised.forbids(charter, name, number):
            left_out[name] = Rejected(why.code, why.message)
        elif isinstance(most, Refusal):
            left_out[name] = Rejected(most.code, most.message)
        else:
            requests.append(
                HoldRequest(
                    id=hold_id(run.run, number, name, attempt),
                    payer=site.payer,
                    site=site.name,
                    run=run.run,
                    round=number,
                    amount_micro=most.amount_micro,
                    expires_ms=lease_until_ms + charter.rounds.grace_s * 1000,
                    rate_card=rate_card,
                )
            )
    return Plan(
        run=run.run,
        number=number,
        attempt=attempt,
        base=run.state,
        charter_version=charter.version,
        charter=charter_digest,
        expert_map=expert_map.digest,
        quorum=charter.rounds.quorum,
        lease_until_ms=lease_until_ms,
        requests=tuple(requests),
        left_out=left_out,
        admitted=len(settled),
    )


def _suspended(charter: Charter, site: Site) -> Refusal | None:
    member = charter.member(site.partner)
    if member is None or not member.suspended:
        return None
    message = f"{site.partner}, who owns site {site.name}, is suspended; the members can readmit it by a vote"
    return Refusal(Code.NOT_AUTHORISED, message)


def _away(run: RunState, name: SiteId, present: Collection[SiteId]) -> Refusal | None:
    if (at := run.carried.get(name)) is not None:
        message = f"site {name} is still at work on round {at}; the round after its update takes it in"
        return Refusal(Code.NOT_ASSIGNED, message)
    if name not in present:
        message = f"site {name} is not connected; its operator starts it, and the next round takes it in"
        return Refusal(Code.NOT_ASSIGNED, message)
    return None


def quarantined(
    charter: Charter, run: RunState, present: Collection[SiteId], number: RoundNumber
) -> dict[SiteId, Refusal]:
    """Sites that sit round `number` out since an update of theirs did harm, and why.

    Nobody where the others that are here are fewer than the quorum: a quarantine never stops a run.
    """
    rounds = charter.rollback.quarantine_rounds
    apart = {site: last for site, last in run.harmful.items() if number - last <= rounds}
    others = [s for s in charter.sites if SiteId(s.name) not in apart and SiteId(s.name) in present]
    if not charter.rollback.on or len(others) < charter.rounds.quorum:
        return {}
    return {
        site: Refusal(
            Code.QUARANTINED,
            f"site {site} sits out until round {last + rounds + 1}: its update of round {last} made the model worse on the "
            "probe; its operator looks at its text and training meanwhile",
        )
        for site, last in sorted(apart.items())
    }


def without_lacking(plan: Plan, refusal: Refusal, currency: str) -> Plan:
    """The plan without the sites whose payer lacks budget, each left out with what is lacking and who acts."""
    lacking = refusal.details["lacking"]
    left_out = dict(plan.left_out)
    for request in plan.requests:
        if request.payer in lacking:
            needs, available = lacking[request.payer]["needs"], lacking[request.payer]["available"]
            message = (
                f"budget of {request.payer} has {_money(available)} {currency} left, round {plan.number} needs "
                f"{_money(needs)} for what it pays: site {request.site} sits out and the others go on; it is "
                f"back once the members grant {request.payer} more"
            )
            left_out[SiteId(request.site)] = Rejected(Code.EXCEEDS_BUDGET, message)
    kept = tuple(r for r in plan.requests if r.payer not in lacking)
    assert len(kept) < len(plan.requests), "a refusal for lack of budget names a payer of the plan"
    return replace(plan, requests=kept, left_out=left_out)


def too_few(plan: Plan) -> str:
    """Why the run cannot go on."""
    reasons = "; ".join(why.message for _, why in sorted(plan.left_out.items()))
    have = len(plan.requests) + plan.admitted
    return f"round {plan.number} has {have} of the {plan.quorum} sites its quorum needs: {reasons}"


def opening_records(plan: Plan, now_ms: int) -> list[Record]:
    """The ROUND and a REJECTION for each site left out; appended together with the holds."""
    opened = round_fact(
        now_ms,
        run=plan.run,
        number=plan.number,
        attempt=plan.attempt,
        base=plan.base,
        charter_version=plan.charter_version,
        charter=plan.charter,
        expert_map=plan.expert_map,
        quorum=plan.quorum,
        lease_until_ms=plan.lease_until_ms,
        holds={SiteId(r.site): Micro(r.amount_micro) for r in plan.requests},
    )
    left_out = [
        rejection_fact(
            now_ms, run=plan.run, number=plan.number, site=site, code=why.code, message=why.message
        )
        for site, why in sorted(plan.left_out.items())
    ]
    return [opened, *left_out]


def training(charter: Charter, run: RunState, opened: RoundState, site: SiteId) -> AssignmentNote:
    """The site's order for the open round; asked again, the same words."""
    return AssignmentNote(
        consortium=charter.consortium.name,
        run=run.run,
        round=opened.number,
        work="train",
        site=site,
        base=opened.base,
        charter_version=opened.charter_version,
        charter=opened.charter,
        expert_map=opened.expert_map,
        rounds=run.rounds,
        lease=opened.lease(run.run, site),
        lease_until=opened.lease_until_ms,
        hold=opened.hold_id(run.run, site),
        hold_micro=opened.holds[site],
    )


def evaluating(
    charter: Charter, charter_digest: Digest, expert_map: ExpertMap, run: RunState, site: SiteId
) -> AssignmentNote:
    """The order to evaluate the final state on one's own held-out text; nothing is charged."""
    return AssignmentNote(
        consortium=charter.consortium.name,
        run=run.run,
        round=run.closed,
        work="evaluate",
        site=site,
        base=run.state,
        charter_version=charter.version,
        charter=charter_digest,
        expert_map=expert_map.digest,
        rounds=run.rounds,
        lease=f"lease/{run.run}/evaluate/{site}",
        lease_until=run.last_ms + charter.rounds.lease_s * 1000,
        hold="-",
        hold_micro=0,
    )


def probing(
    charter: Charter, run: RunState, opened: RoundState, site: SiteId, state: Digest
) -> AssignmentNote:
    """The order to measure a state of the open round on the probe; nothing is charged."""
    return AssignmentNote(
        consortium=charter.consortium.name,
        run=run.run,
        round=opened.number,
        work="probe",
        site=site,
        base=state,
        charter_version=charter.version,
        charter=opened.charter,
        expert_map=opened.expert_map,
        rounds=run.rounds,
        lease=f"lease/{run.run}/{opened.number}/{site}/probe",
        lease_until=opened.lease_until_ms + charter.rounds.lease_s * 1000,
        hold="-",
        hold_micro=0,
    )


class Verdict(Enum):
    WAIT = "wait"
    CLOSE = "close"
    RENEW = "renew"
    """Nobody can bring the quorum any more: open another attempt."""


@dataclass(frozen=True)
class Closing:
    verdict: Verdict
    wait_ms: int = 0
    """When to ask again, if nothing happens before."""


def grace_ms(opened: RoundState, rules: Rounds, working: Collection[SiteId]) -> int:
    """How long the round waits for the rest once its quorum is met.

    Adaptive: a share of the median time the admitted sites needed, between the charter's least and most, and the least
    for nobody who is seen at work (`working`).
    """
    if rules.grace == "fixed":
        return rules.grace_s * 1000
    least = rules.grace_least_s * 1000
    if not any(site in working for site in opened.waiting):
        return least
    needed = sorted(
        a.at_ms - opened.assigned_ms.get(site, opened.opened_ms) for site, a in opened.admitted.items()
    )
    share = needed[len(needed) // 2] * rules.grace_percent // 100
    return min(max(least, share), rules.grace_s * 1000)


def closing(opened: RoundState, rules: Rounds, now_ms: int, working: Collection[SiteId] = ()) -> Closing:
    """Whether the open round closes: all assigned sites are settled, or the quorum's grace or the lease is over."""
    over = now_ms >= opened.lease_until_ms
    if len(opened.admitted) >= opened.quorum and opened.quorum_ms is not None:
        deadline = min(opened.quorum_ms + grace_ms(opened, rules, working), opened.lease_until_ms)
        if not opened.waiting or now_ms >= deadline:
            return Closing(Verdict.CLOSE)
        return Closing(Verdict.WAIT, deadline - now_ms)
    if over:
        return Closing(Verdict.RENEW)
    if not opened.waiting:
        retry_ms = min(opened.last_ms + RETRY_MS, opened.lease_until_ms)
        return Closing(Verdict.RENEW) if now_ms >= retry_ms else Closing(Verdict.WAIT, retry_ms - now_ms)
    return Closing(Verdict.WAIT, opened.lease_until_ms - now_ms)


def evaluated(
    charter: Charter, run: RunState, present: Collection[SiteId], refusing: Collection[SiteId], now_ms: int
) -> Closing:
    """Whether the run may finish: all sites have evaluated, or those here have and the others had their time."""
    owed = [SiteId(s.name) for s in charter.sites if SiteId(s.name) not in run.evaluations]
    owed = [site for site in owed if site not in refusing]
    patience_ms = run.last_ms + max(EVALUATION_PATIENCE_MS, charter.rounds.grace_s * 1000)
    lease_ms = run.last_ms + charter.rounds.lease_s * 1000
    if not owed or now_ms >= lease_ms:
        return Closing(Verdict.CLOSE)
    if any(site in present for site in owed):
        return Closing(Verdict.WAIT, lease_ms - now_ms)
    return Closing(Verdict.CLOSE) if now_ms >= patience_ms else Closing(Verdict.WAIT, patience_ms - now_ms)


def _money(micro: int) -> str:
    return f"{micro // 1_000_000}.{micro % 1_000_000:06d}"
