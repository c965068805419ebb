"""What a change of the charter costs: per payer and round, for the rest of a run and for a full one, before and after.

Pure, integers in, integers out; knows nothing of where charter, budgets and progress were read. A quote is a bound: every
site takes part in every round, at the dearest precision of its device. Where time has a price, a site takes as long per
operation as it took the last time, or its whole lease where nothing is known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from commons.amounts import MICRO
from commons.charter import Charter, Site
from commons.errors import Refusal
from governance.ratecard import price

RoundGflop = Callable[[Charter], int]
"""Charter -> 10^9 operations of one site's whole round (`commons.exchange`)."""


@dataclass(frozen=True)
class Measured:
    """What one round took at a site."""

    gflop: int
    device_ms: int


@dataclass(frozen=True)
class Progress:
    """A run that goes on."""

    run: str
    next_round: int
    """The first one that is not open yet; after `rounds` when none is left."""
    rounds: int


@dataclass(frozen=True)
class Span:
    """One payer's cost in micro, at most."""

    round_micro: int
    rest_micro: int
    """Of the rounds that the run has not opened yet."""
    run_micro: int
    """Of a full run by this charter."""
    lacks_from: int | None
    """The first round for which the payer's budget is too small; None: it is enough for what is left."""


@dataclass(frozen=True)
class PayerQuote:
    payer: str
    available_micro: int
    granted_micro: int
    """What the change itself adds to the budget at once, with what others pledged."""
    later_micro: int
    """What it adds later."""
    before: Span
    after: Span


@dataclass(frozen=True)
class Quote:
    currency: str
    run: str
    """The run that goes on; empty: none, and what is left is a full run."""
    from_round: int
    """The first round under the changed charter."""
    last_round: int
    payers: tuple[PayerQuote, ...]
    """Who pays for a site before or after, or is granted something, in charter order."""
    assumed: tuple[str, ...]
    """Sites whose time is taken to be the whole lease, as nothing is known."""


@dataclass(frozen=True)
class _Cost:
    """Of one payer's sites in one round."""

    charged: int = 0
    held: int = 0


def quote(
    before: Charter,
    after: Charter,
    round_gflop: RoundGflop,
    *,
    available_micro: Mapping[str, int],
    measured: Mapping[str, Measured],
    progress: Progress | None,
    effective_round: int,
    now_ms: int,
    pledged: Mapping[str, int] | None = None,
) -> Quote | Refusal:
    """What `after`, in force from `effective_round` on at the earliest, costs compared with staying at `before`.

    `pledged`: member -> what it is paid as pledges when the change becomes law, in micro. `available_micro`: partner -> what may still be held. `measured`: site -> its last usage. Refuses as
    `governance.ratecard.price` does.
    """
    assumed: set[str] = set()
    costs = []
    for charter in (before, after):
        found = _round_costs(charter, round_gflop, measured, assumed)
        if isinstance(found, Refusal):
            return found
        costs.append(found)
    first, last = (progress.next_round, progress.rounds) if progress else (1, after.learning.rounds)
    from_round = max(effective_round, first)
    now, later = _granted(before, after, now_ms)
    for member, amount in (pledged or {}).items():
        now[member] = now.get(member, 0) + amount
    concerned = {*costs[0], *costs[1], *now, *later}
    payers = []
    for member in [m.name for m in after.members if m.name in concerned]:
        old, new = costs[0].get(member, _Cost()), costs[1].get(member, _Cost())
        free, added = available_micro.get(member, 0), now.get(member, 0)
        stay = [(old, max(0, last - first + 1))]
        change = [(old, max(0, min(from_round - 1, last) - first + 1)), (new, max(0, last - from_round + 1))]
        payers.append(
            PayerQuote(
                payer=member,
                available_micro=free,
                granted_micro=added,
                later_micro=later.get(member, 0),
                before=_span(old, stay, before.learning.rounds, free, first),
                after=_span(new, change, after.learning.rounds, free + added, first),
            )
        )
    return Quote(
        currency=after.rate_card.currency,
        run=progress.run if progress else "",
        from_round=from_round,
        last_round=last,
        payers=tuple(payers),
        assumed=tuple(sorted(assumed)),
    )


def _round_costs(
    charter: Charter, round_gflop: RoundGflop, measured: Mapping[str, Measured], assumed: set[str]
) -> dict[str, _Cost] | Refusal:
    gflop = round_gflop(charter)
    costs: dict[str, _Cost] = {}
    for site in charter.sites:
        took, held_for = _device_ms(charter, site, gflop, measured.get(site.name))
        charged = price(charter.rate_card, site.device, None, gflop=gflop, device_ms=took)
        held = price(charter.rate_card, site.device, None, gflop=gflop, device_ms=held_for)
        if isinstance(charged, Refusal):
            return charged
        if isinstance(held, Refusal):
            return held
        timed = any(r.micro_per_device_second for r in charter.rate_card.rates if r.device == site.device)
        if timed and site.name not in measured:
            assumed.add(site.name)
        sum_before = costs.get(site.payer, _Cost())
        costs[site.payer] = _Cost(
            sum_before.charged + charged.amount_micro, sum_before.held + held.amount_micro
        )
    return costs


def _device_ms(charter: Charter, site: Site, gflop: int, last: Measured | None) -> tuple[int, int]:
    """Device time that a round takes, and that is held for: a quarter more, at most the lease on all devices."""
    most = charter.rounds.lease_s * 1000 * site.devices
    if last is None or not last.gflop:
        return most, most
    took = -(-last.device_ms * gflop // last.gflop)
    return min(most, took), min(most, -(-5 * last.device_ms * gflop // (4 * last.gflop)))


def _span(
    round_cost: _Cost, rest: list[tuple[_Cost, int]], rounds: int, available_micro: int, first: int
) -> Span:
    """`rest`: what is left of the run, as (cost of a round, how many of them), in order."""
    lacks_from, left, number = None, available_micro, first
    for cost, count in rest:
        enough = _rounds_within(left, cost)
        if lacks_from is None and enough is not None and enough < count:
            lacks_from = number + enough
        left -= cost.charged * count
        number += count
    return Span(
        round_micro=round_cost.charged,
        rest_micro=sum(cost.charged * count for cost, count in rest),
        run_micro=round_cost.charged * rounds,
        lacks_from=lacks_from,
    )


def _rounds_within(available_micro: int, cost: _Cost) -> int | None:
    """How many rounds can be held for and charged; None: any number."""
    if available_micro < cost.held:
        return 0
    return (available_micro - cost.held) // cost.charged + 1 if cost.charged else None


def _granted(before: Charter, after: Charter, now_ms: int) -> tuple[dict[str, int], dict[str, int]]:
    """Budget that `after` grants beyond `before`: to be spent at once, and later."""
    known = {grant.name for grant in before.grants}
    now: dict[str, int] = {}
    later: dict[str, int] = {}
    for grant in after.grants:
        if grant.name not in known and grant.unit == MICRO:
            target = now if grant.not_before_ms <= now_ms else later
            target[grant.member] = target.get(grant.member, 0) + grant.amount
    return now, later
