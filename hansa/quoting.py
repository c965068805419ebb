"""Quotes from a seat: what a change of the charter would cost, from what the coordinator shows of charter, budgets and run."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from commons import charter_file, features
from commons.charter import Charter
from commons.course import ENDED
from commons.errors import Code, Refusal, Refused
from commons.exchange import round_gflop
from commons.views import BudgetsView, CharterView, ProposalView, RunView
from governance.quotes import Measured, Progress, Quote, quote
from hansa.chamber import Chamber


def quote_change(
    chamber: Chamber,
    feature: str,
    parameters: Mapping[str, Any],
    *,
    effective_round: int = 1,
    pledged: Mapping[str, int] | None = None,
) -> Quote:
    """What a feature would cost on the charter in force. Raises Refused when it does not apply to it."""
    charter = charter_in_force(chamber)
    after = features.apply(charter, feature, parameters)
    return _quoted(chamber, charter, after, effective_round, pledged)


def quote_proposal(chamber: Chamber, view: ProposalView) -> Quote:
    """What a proposal would cost, or, once it is law, what it changed. Raises Refused when it does not apply."""
    if view.state in ENDED and view.state != "executed":
        raise Refused(Refusal(Code.PROPOSAL_CLOSED, f"the proposal is {view.state} and changes nothing"))
    if view.charter_version is None:
        pledged: dict[str, int] = {}
        for pledge in view.pledges:
            if pledge.state == "held":
                pledged[pledge.to] = pledged.get(pledge.to, 0) + pledge.amount_micro
        return quote_change(
            chamber, view.feature, view.parameters, effective_round=view.effective_round, pledged=pledged
        )
    before, after = (
        charter_in_force(chamber, version) for version in (view.charter_version - 1, view.charter_version)
    )
    return _quoted(chamber, before, after, view.executed_round or 1)


def charter_in_force(chamber: Chamber, version: int | None = None) -> Charter:
    """The charter in force, or another version of it."""
    view = chamber.read(CharterView, "" if version is None else str(version))
    return charter_file.from_canonical(view.text.encode())


def _quoted(
    chamber: Chamber,
    before: Charter,
    after: Charter | Refusal,
    effective_round: int,
    pledged: Mapping[str, int] | None = None,
) -> Quote:
    if isinstance(after, Refusal):
        raise Refused(after)
    run = latest_run(chamber)
    progress = Progress(run.run, run.round + 1, run.rounds) if run and run.phase == "training" else None
    made = quote(
        before,
        after,
        round_gflop,
        available_micro={b.partner: b.available_micro for b in chamber.read(BudgetsView).budgets},
        measured={s.site: Measured(s.gflop, s.device_ms) for s in run.sites if s.gflop} if run else {},
        progress=progress,
        effective_round=effective_round,
        now_ms=time.time_ns() // 1_000_000,
        pledged=pledged,
    )
    if isinstance(made, Refusal):
        raise Refused(made)
    return made


def latest_run(chamber: Chamber) -> RunView | None:
    """None before the first one."""
    try:
        return chamber.read(RunView)
    except Refused as refused:
        if refused.refusal.code is Code.NO_RUN:
            return None
        raise


def currency_of(chamber: Chamber) -> str:
    """Of the charter our partner signed: no vote changes it."""
    return charter_file.from_canonical(chamber.seat.charter).rate_card.currency
