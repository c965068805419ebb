"""What a site's part of a round may cost, and what it did cost: the hold's bound, a top-up, the charge.

Pure functions over views and the charter; money moves in `governance.ledger`, here orders and usage become amounts.
Every bound and price is by the rate card the hold names, the one in force when the round was opened.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from commons.amounts import PICO_PER_MICRO
from commons.charter import Charter
from commons.charter import Site as CharterSite
from commons.errors import Code, Refusal
from commons.exchange import Exchange
from commons.experts.map import ExpertMap
from commons.names import RunId, SiteId
from commons.records import Record
from commons.work import UsageNote
from governance.ledger import Charge, Hold, HoldRequest, Ledger, decide_release, decide_settle
from governance.ratecard import Price, price
from orchestrator.progress import RoundState, RunState

log = logging.getLogger("hansa.coordinator")


@dataclass(frozen=True, kw_only=True)
class TopUp:
    """A site asks for more to be held for its part of the open round."""

    site: SiteId
    run: RunId
    round: int
    lease: str
    n: int
    """Made by the site, from 1: asked again, it is the same top-up."""
    amount_micro: int


def ordered_gflop(charter: Charter, expert_map: ExpertMap, number: int) -> int:
    """The work of one site's whole round `number`, in 10^9 useful operations."""
    return Exchange(expert_map, charter.learning, number).gflop(charter.learning.steps_in(number))


def bound(charter: Charter, site: CharterSite, gflop: int, last: UsageNote | None) -> Price | Refusal:
    """What is held for `gflop` at `site`: the dearest precision, and time by what it took the last time in this run.

    That is a quarter more than the `last` usage per gflop, and never more than the lease on all devices, which is
    also what is held for without one. Refuses as `price` does.
    """
    device_ms = charter.rounds.lease_s * 1000 * site.devices
    if last is not None and last.gflop:
        device_ms = min(device_ms, -(-5 * last.device_ms * gflop // (4 * last.gflop)))
    return price(charter.rate_card, site.device, None, gflop=gflop, device_ms=device_ms)


def top_up_request(
    ledger: Ledger,
    charter: Charter,
    expert_map: ExpertMap,
    run: RunState,
    found: RoundState,
    asked: TopUp,
    now_ms: int,
) -> HoldRequest | Refusal:
    """The hold that `asked` is, in round `found` of `run` under its charter. One that stands already is not judged.

    Refuses: not_assigned, lease_expired, round_closed, exceeds_hold (more top-ups than the charter allows, or more
    than the whole lease can cost).
    """
    site = asked.site
    if site not in found.attempts:
        return Refusal(Code.NOT_ASSIGNED, f"site {site} was not assigned in round {found.number}")
    if asked.lease != found.lease(run.run, site):
        message = f"the lease {asked.lease[:100]} of site {site} is over: ask for work again"
        return Refusal(Code.LEASE_EXPIRED, message)
    hold = ledger.hold(found.hold_id(run.run, site))
    assert hold is not None, "an assigned site has a hold"
    base = hold.request
    request = HoldRequest(
        id=f"{base.id}/top{asked.n}",
        payer=base.payer,
        site=base.site,
        run=base.run,
        round=base.round,
        amount_micro=asked.amount_micro,
        expires_ms=base.expires_ms,
        rate_card=base.rate_card,
        tops=base.id,
    )
    if ledger.hold(request.id) is not None:
        return request
    closed = found.closed_ms is not None and run.carried.get(site) != found.number
    if closed or run.finished or now_ms >= found.lease_until_ms:
        message = f"round {found.number} of run {run.run} is closed, or its lease is over: ask for work again"
        return Refusal(Code.ROUND_CLOSED, message)
    if site not in found.waiting:
        return Refusal(Code.NOT_ASSIGNED, f"site {site} has no work to do in round {found.number}")
    held_micro = sum(h.request.amount_micro for h in _family(ledger, hold))
    return _exceeds(charter, expert_map, held_micro, asked) or request


def _exceeds(charter: Charter, expert_map: ExpertMap, held_micro: int, asked: TopUp) -> Refusal | None:
    site, entry = asked.site, charter.site(asked.site)
    assert entry is not None, "an assigned site is in its charter"
    if not 1 <= asked.n <= charter.accounting.topups:
        message = (
            f"site {site} asks for top-up {asked.n}, the charter allows {charter.accounting.topups} a round; it "
            "hands in what is trained when the hold is used up"
        )
        return Refusal(Code.EXCEEDS_HOLD, message)
    most = bound(charter, entry, ordered_gflop(charter, expert_map, asked.round), None)
    if isinstance(most, Refusal):
        return most
    if held_micro + asked.amount_micro > most.amount_micro:
        message = (
            f"site {site} asks for {asked.amount_micro} micro on top of {held_micro}; round {asked.round} can cost "
            f"at most {most.amount_micro} within its lease"
        )
        return Refusal(Code.EXCEEDS_HOLD, message)
    return None


def end_holds(
    ledger: Ledger,
    charters: Mapping[int, Charter],
    run: RunState,
    now_ms: int,
    *,
    stay: Collection[tuple[int, SiteId]] = (),
) -> list[Record]:
    """Settle what was delivered, release the rest: every hold of the run ends. Call it inside a commit.

    `stay`: (round, site) of those still at work, which keep theirs. `charters`: by version.
    """
    held = (h.request for h in ledger.open.values() if not h.request.tops)
    parts = sorted((h.round, SiteId(h.site)) for h in held if h.run == run.run)
    ended: list[Record] = []
    for number, site in (part for part in parts if part not in stay):
        found = run.history[number - 1]
        charter = charters[found.charter_version]
        ended += end_hold(ledger, charter, run.run, found, site, "no update was admitted", now_ms)
    return ended


def end_hold(
    ledger: Ledger, charter: Charter, run: RunId, opened: RoundState, site: SiteId, why: str, now_ms: int
) -> list[Record]:
    """Settle or release (`why`) the site's hold and its top-ups. One that has ended stays as it is.

    `charter` is the round's. A rejected update costs the share of its price that the charter says.
    """
    hold = ledger.hold(opened.hold_id(run, site))
    assert hold is not None, "an assigned site has a hold"
    usage, accepted = opened.usage(site), opened.update(site) is not None
    ended: list[Record] | Refusal = []
    if usage is not None and hold.state != "settled":
        percent = 100 if accepted else charter.accounting.charge_rejected_percent
        charge = _charge(ledger, hold, usage, percent=percent, accepted=accepted)
        ended = decide_settle(ledger, hold.request.id, charge, now_ms)
    elif usage is None and hold.state == "held":
        ended = decide_release(ledger, hold.request.id, why, now_ms)
    if isinstance(ended, Refusal):
        log.error("run %s round %d: %s", run, opened.number, ended)
        return []
    return ended


def _charge(ledger: Ledger, hold: Hold, usage: UsageNote, *, percent: int, accepted: bool) -> Charge:
    """The price of `usage` by the hold's card, at most what is held with top-ups: nobody owes what was not held."""
    held_micro = sum(h.request.amount_micro for h in _family(ledger, hold))
    card = ledger.cards[hold.request.rate_card]
    due = price(card, usage.device, usage.precision, gflop=usage.gflop, device_ms=usage.device_ms)
    if isinstance(due, Refusal):
        log.error("%s: %s; all that is held is charged", hold.request.id, due)
        due = Price(held_micro, 0)
    amount_micro = due.amount_micro * percent // 100
    if amount_micro > held_micro:
        what = "%s: the usage costs %d micro, %d are held and charged"
        log.warning(what, hold.request.id, amount_micro, held_micro)
        amount_micro = held_micro
    exact_pico = due.amount_micro * PICO_PER_MICRO - due.rounded_pico
    return Charge(
        amount_micro=amount_micro,
        usage=usage.digest,
        rounded_pico=max(0, amount_micro * PICO_PER_MICRO - exact_pico),
        device=usage.device,
        precision=usage.precision,
        gflop=usage.gflop,
        device_ms=usage.device_ms,
        tokens=usage.tokens,
        energy_j=usage.energy_j,
        percent=percent,
        accepted=accepted,
    )


def _family(ledger: Ledger, base: Hold) -> list[Hold]:
    """The hold and its top-ups, without those that have ended."""
    return [hold for hold in (base, *ledger.topups(base.request.id)) if hold.state == "held"]
