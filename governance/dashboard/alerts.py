"""What is wrong and who acts next, from what the views say. Pure: the time comes in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from commons.charter import Charter
from commons.roll_views import MembersView
from commons.run_views import NowView, RoundDetailView, RoundsView
from commons.views import BudgetsView, JournalView, ProposalsView, ProposalView
from commons.written import duration, money
from governance.burndown import forecast_of

Level = Literal["bad", "warn"]
UNWITNESSED_MS = 5 * 60_000
EXPIRING_MS = 14 * 86_400_000
CLOSING_SHARE = 4
"""A vote is about to close in the last quarter of its window."""
ROUNDS_LEFT_FEW = 3
LATE_SHARE = 2
"""A round takes too long at so many times the usual."""
EPSILON_PERCENT = 90
ROUNDS_LOOKED_AT = 3


@dataclass(frozen=True)
class Alert:
    level: Level
    what: str
    who: str
    """Who acts, and how."""
    href: str
    command: str = ""
    """By which they do."""


@dataclass(frozen=True)
class Scene:
    """What alerts are made from; None: there is nothing of it yet."""

    now_ms: int
    charter: Charter | None = None
    run: NowView | None = None
    rounds: RoundsView | None = None
    budgets: BudgetsView | None = None
    proposals: ProposalsView | None = None
    members: MembersView | None = None
    journal: JournalView | None = None


def alerts(scene: Scene) -> list[Alert]:
    """The worst first."""
    found = [a for part in (_journal, _run, _sites, _rounds, _budgets, _votes, _members) for a in part(scene)]
    return sorted(found, key=lambda alert: alert.level != "bad")


def _journal(s: Scene) -> Iterator[Alert]:
    if s.journal is None or s.charter is None:
        return
    if not s.charter.witnesses.quorum:
        yield Alert(
            "warn",
            "Nobody witnesses the journal: the coordinator could show its members different ones.",
            "Any member proposes a quorum of witnesses:",
            "/journal",
            "hansa proposal open witnesses",
        )
    since = s.journal.unwitnessed_since_ms
    if since is not None and s.now_ms - since > UNWITNESSED_MS:
        waits = duration((s.now_ms - since) / 1000)
        yield Alert(
            "bad",
            f"Records have waited {waits} for witnesses; {s.charter.witnesses.quorum} must cosign.",
            "Operators of the sites that witness see that theirs are connected and on one history.",
            "/journal",
        )


def _run(s: Scene) -> Iterator[Alert]:
    run = s.run
    if run is None:
        return
    if run.phase == "stopped":
        yield Alert(
            "bad", f"Run {run.run} was stopped: {run.reason}", "The operator starts another run.", "/rounds"
        )
    elif run.phase != "finished" and run.reason:
        yield Alert(
            "bad", f"Run {run.run} is held up: {run.reason}", "The operator looks into it.", "/rounds"
        )


def _sites(s: Scene) -> Iterator[Alert]:
    if s.run is None or s.run.phase in ("finished", "stopped"):
        return
    for site in s.run.sites:
        if site.state in ("refused", "gone", "offline"):
            level: Level = "bad" if site.state == "refused" else "warn"
            what = f"Site {site.site} is {site.state}" + (f": {site.why}" if site.why else ".")
            yield Alert(level, what, f"{site.partner}, who runs the site.", "/rounds")
        if (
            site.epsilon is not None
            and site.epsilon_max
            and site.epsilon * 100 > site.epsilon_max * EPSILON_PERCENT
        ):
            what = f"Site {site.site} has spent {site.epsilon:.2f} of epsilon {site.epsilon_max:g}; it will sit out."
            yield Alert("warn", what, f"{site.partner} and the members, who may vote for more.", "/members")


def _rounds(s: Scene) -> Iterator[Alert]:
    rounds: Sequence[RoundDetailView] = s.rounds.rounds if s.rounds else ()
    for found in rounds[-ROUNDS_LOOKED_AT:]:
        for site, why in found.rejected.items():
            yield Alert(
                "bad",
                f"Round {found.round} rejected the update of {site}: {why}",
                f"The operator of {site}.",
                "/rounds",
            )
        if found.verdict == "rolled-back":
            what = f"Round {found.round} was rolled back: its state did worse on the probe"
            change = (
                f" by {found.probe_change_ppm / 10_000:.2f} %." if found.probe_change_ppm is not None else "."
            )
            yield Alert("bad", what + change, "The members look at whose update it was.", "/rounds")
    took = sorted(r.closed_ms - r.opened_ms for r in rounds if r.closed_ms)
    opened = rounds[-1] if rounds and rounds[-1].closed_ms is None else None
    running = s.run is not None and s.run.phase == "training"
    if opened and running and took and s.now_ms - opened.opened_ms > LATE_SHARE * took[len(took) // 2]:
        waiting = [p.site for p in opened.parts if p.admitted_ms is None and p.rejected_ms is None]
        usual, now = duration(took[len(took) // 2] / 1000), duration((s.now_ms - opened.opened_ms) / 1000)
        yield Alert(
            "warn",
            f"Round {opened.round} has been open for {now}, usual are {usual}.",
            f"It waits for {', '.join(waiting)}." if waiting else "The coordinator is combining.",
            "/rounds",
        )


def _budgets(s: Scene) -> Iterator[Alert]:
    if s.budgets is None:
        return
    run = s.run
    rounds = max(0, run.rounds - run.round) if run and run.phase == "training" else 0
    for budget in s.budgets.budgets:
        found = forecast_of(budget, s.budgets, rounds, s.now_ms)
        if found.lacking_micro:
            what = f"{budget.partner} lacks {money(found.lacking_micro, s.budgets.currency)} to the end of the run."
        elif found.rounds_left is not None and found.rounds_left < ROUNDS_LEFT_FEW and rounds:
            what = f"The budget of {budget.partner} pays for {found.rounds_left} more rounds."
        else:
            continue
        who = f"The members grant {budget.partner} more:"
        yield Alert("warn", what, who, "/budgets", "hansa proposal open grant")


def _votes(s: Scene) -> Iterator[Alert]:
    for vote in s.proposals.proposals if s.proposals else ():
        window = vote.closes_ms - vote.opened_ms
        soon = s.now_ms > vote.closes_ms - window / CLOSING_SHARE
        if vote.state == "active" and soon and not _has_quorum(vote):
            missing = [m for m in vote.electorate if m not in {b.voter for b in vote.ballots}]
            left = duration(max(0, vote.closes_ms - s.now_ms) / 1000)
            what = f"P-{vote.number:04d} closes in {left} without its quorum: {vote.title}"
            yield Alert("warn", what, f"{', '.join(missing)} can still vote.", f"/proposals/{vote.number}")


def _has_quorum(vote: ProposalView) -> bool:
    counted = sum(weight for member, weight in vote.electorate.items() if member not in vote.dormant)
    cast = vote.for_weight + vote.against_weight + vote.abstain_weight
    return cast * 100 >= counted * vote.quorum_percent


def _members(s: Scene) -> Iterator[Alert]:
    soon = s.now_ms + EXPIRING_MS
    for held in s.members.access if s.members else ():
        if held.joined and 0 < held.certificate_until_ms < soon:
            gone = held.certificate_until_ms <= s.now_ms
            left = duration(max(0, held.certificate_until_ms - s.now_ms) / 1000)
            when = "has expired" if gone else f"expires in {left}"
            yield Alert(
                "bad" if gone else "warn",
                f"The certificate of {held.subject} {when}.",
                f"{held.partner} joins again with an invite from the operator.",
                "/members",
            )
    for member in s.members.members if s.members else ():
        if s.now_ms < member.ballot_key_until_ms < soon:
            what = f"The ballot key of {member.member} expires soon."
            who = f"{member.member} delegates one anew:"
            yield Alert("warn", what, who, "/members", "hansa member ballot-key")
