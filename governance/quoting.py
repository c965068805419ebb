"""What a change of the charter would change and cost, from what a seat is shown of charter, budgets and run."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from commons import charter_file, features
from commons.charter import Charter
from commons.course import ENDED
from commons.errors import Code, Refusal, Refused
from commons.exchange import round_gflop
from commons.views import BudgetsView, CharterView, ProposalView, RunView, View
from governance.quotes import Measured, Progress, Quote, quote

V = TypeVar("V", bound=View)


class Seat(Protocol):
    def read(self, kind: type[V], key: str = "") -> V:
        """The view of that type now. Raises Refused and Unreachable."""


@dataclass(frozen=True)
class Preview:
    """What a proposal would do."""

    changes: tuple[tuple[str, Any, Any], ...]
    """(JSON pointer, old value, new value)."""
    quote: Quote | None
    """None: it changes no charter."""


def preview(
    seat: Seat,
    feature: str,
    parameters: Mapping[str, Any],
    effective_round: int,
    pledged: Mapping[str, int] | None = None,
) -> Preview:
    """The dry run: what would change and cost if it were carried out now. `pledged`: member -> what others pay it with the
    change, in micro. Raises Refused when it could not be."""
    charter = charter_in_force(seat)
    if wrong := features.check(charter, feature, parameters):
        raise Refused(wrong)
    if not features.FEATURES[feature].binding:
        return Preview((), None)
    after = features.apply(charter, feature, parameters)
    assert not isinstance(after, Refusal), "it was checked"
    made = _quoted(seat, charter, after, effective_round, pledged)
    return Preview(tuple(charter_file.diff(charter, after)), made)


def preview_proposal(seat: Seat, view: ProposalView) -> Preview:
    """The dry run of a proposal or, once it is law, what it changed. Raises Refused when it does not apply, or will not."""
    if view.state in ENDED and view.state not in ("executed", "ranked"):
        raise Refused(Refusal(Code.PROPOSAL_CLOSED, f"the proposal is {view.state} and changes nothing"))
    if view.charter_version is None:
        pledged: dict[str, int] = {}
        for pledge in view.pledges:
            if pledge.state == "held":
                pledged[pledge.to] = pledged.get(pledge.to, 0) + pledge.amount_micro
        return preview(seat, view.feature, view.parameters, view.effective_round, pledged)
    before, after = (
        charter_in_force(seat, version) for version in (view.charter_version - 1, view.charter_version)
    )
    made = _quoted(seat, before, after, view.executed_round or 1)
    return Preview(tuple(charter_file.diff(before, after)), made)


def quote_change(
    seat: Seat, feature: str, parameters: Mapping[str, Any], *, effective_round: int = 1
) -> Quote:
    """What a feature would cost on the charter in force. Raises Refused when it does not apply to it."""
    charter = charter_in_force(seat)
    return _quoted(seat, charter, features.apply(charter, feature, parameters), effective_round)


def quote_proposal(seat: Seat, view: ProposalView) -> Quote:
    """What a proposal would cost, or, once it is law, what it changed. Raises Refused when it does not apply."""
    made = preview_proposal(seat, view).quote
    if made is None:
        raise Refused(Refusal(Code.REQUEST_INVALID, f"{view.feature} changes no charter and costs nothing"))
    return made


def charter_in_force(seat: Seat, version: int | None = None) -> Charter:
    """The charter in force, or another version of it."""
    view = seat.read(CharterView, "" if version is None else str(version))
    return charter_file.from_canonical(view.text.encode())


def _quoted(
    seat: Seat,
    before: Charter,
    after: Charter | Refusal,
    effective_round: int,
    pledged: Mapping[str, int] | None = None,
) -> Quote:
    if isinstance(after, Refusal):
        raise Refused(after)
    run = latest_run(seat)
    progress = Progress(run.run, run.round + 1, run.rounds) if run and run.phase == "training" else None
    made = quote(
        before,
        after,
        round_gflop,
        available_micro={b.partner: b.available_micro for b in seat.read(BudgetsView).budgets},
        measured={s.site: Measured(s.gflop, s.device_ms) for s in run.sites if s.gflop} if run else {},
        progress=progress,
        effective_round=effective_round,
        now_ms=time.time_ns() // 1_000_000,
        pledged=pledged,
    )
    if isinstance(made, Refusal):
        raise Refused(made)
    return made


def latest_run(seat: Seat) -> RunView | None:
    """None before the first one."""
    try:
        return seat.read(RunView)
    except Refused as refused:
        if refused.refusal.code is Code.NO_RUN:
            return None
        raise
