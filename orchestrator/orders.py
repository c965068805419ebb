"""What a site shall do now: level-triggered, so that asking again from anywhere gives the same answer."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from commons.names import SiteId
from commons.work import AssignmentNote
from orchestrator.desk import Desk
from orchestrator.judging import order_to_measure
from orchestrator.plan import evaluating, training
from orchestrator.progress import RoundState, RunState


@dataclass(frozen=True)
class Order:
    """An assignment, or why there is none."""

    assignment: AssignmentNote | None = None
    why: str = ""
    finished: bool = False
    """The run is over."""

    @property
    def run(self) -> str:
        return self.assignment.run if self.assignment else ""

    @property
    def round(self) -> int:
        return self.assignment.round if self.assignment else 0


def order_for(desk: Desk, site: SiteId, *, over_before: Collection[str]) -> Order:
    """The site's order. `over_before`: runs that were over before it asked, whose end does not concern it."""
    with desk.consortium.lock:
        run = desk.runs.latest
        if run is None:
            return Order(why="no run has been started yet; the operator starts one")
        if run.finished:
            if run.run in over_before:
                return Order(why="no run is going on; the operator starts one")
            return Order(why=f"run {run.run} is {run.finished}: {run.reason}", finished=True)
        if (number := run.carried.get(site)) is not None:
            return _training(desk, run, run.history[number - 1], site)
        charter, digest = desk.consortium.charter, desk.consortium.members.digest
        if charter.site(site) is None:
            return Order(why=f"charter version {charter.version} has no site {site} any more")
        if run.phase == "evaluating":
            if site in run.evaluations:
                return Order(why="evaluated; waiting for the other sites")
            return Order(evaluating(charter, digest, desk.expert_map(charter.version), run, site))
        opened = run.open_round
        if opened is None:
            return Order(why=f"waiting for round {run.closed + 1}")
        if site in opened.waiting:
            return _training(desk, run, opened, site)
        if measuring := order_to_measure(desk, run, opened, site):
            return Order(measuring)
        return Order(why=_why_not(run, opened, site))


def runs_over(desk: Desk, *, but: Collection[str]) -> frozenset[str]:
    """Runs that are over now, without those in `but`: their end still concerns the site."""
    with desk.consortium.lock:
        return frozenset(r.run for r in desk.runs.by_id.values() if r.finished) - set(but)


def _training(desk: Desk, run: RunState, found: RoundState, site: SiteId) -> Order:
    """The same words whether the round is open or has closed without the site."""
    charter = desk.consortium.members.charters[found.charter_version]
    return Order(training(charter, run, found, site))


def _why_not(run: RunState, opened: RoundState, site: SiteId) -> str:
    if site in opened.admitted:
        return f"update of round {opened.number} admitted; waiting for the other sites"
    if (number := run.late.get(site)) is not None:
        return f"update of round {number} admitted late, into round {opened.number}; the next one takes the site in"
    known = opened.rejected.get(site) or opened.left_out.get(site)
    return (
        known.message if known else f"round {opened.number} began without this site; the next one takes it in"
    )
