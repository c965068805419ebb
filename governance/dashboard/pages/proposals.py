"""Proposals: what is voted on, and one proposal with all that concerns it, the vote button beside what it would cost."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from commons.course import ENDED
from commons.errors import Refused
from commons.views import BudgetsView, CharterView, ProposalsView, ProposalView, View
from commons.vote_views import EvidenceView
from governance.dashboard.office import V
from governance.dashboard.page import Context, Hall, Page
from governance.dashboard.svg import stack
from governance.dashboard.viewer import Role, Viewer
from governance.quoting import Preview, preview_proposal

OPEN = ("pending", "active", "paused")
WAITING = ("queued", "vetoed", "succeeded")
OVER_SHOWN = 100


class FromFeed:
    """A seat that answers from what open pages are shown already, and asks the coordinator for the rest."""

    def __init__(self, hall: Hall) -> None:
        self._hall = hall

    def read(self, kind: type[V], key: str = "") -> V:
        followed = not key and kind in (CharterView, BudgetsView)
        found = self._hall.feed.latest(kind) if followed else None
        return found if found is not None else self._hall.office.read(kind, key)


def all_proposals(hall: Hall) -> tuple[ProposalView, ...]:
    view = hall.feed.latest(ProposalsView)
    return view.proposals if view else ()


def find(hall: Hall, which: str) -> ProposalView:
    """By number, P-number or id, as open pages are shown it. Raises Refused when there is none."""
    for p in all_proposals(hall):
        if which in (str(p.number), f"P-{p.number:04d}", p.id):
            return p
    return ask(hall, which)


def ask(hall: Hall, which: str) -> ProposalView:
    """The same as the coordinator has it this moment: for what is about to be signed or handed in."""
    return hall.office.read(ProposalView, which)


def list_context(hall: Hall, request: Request) -> Context:
    viewer: Viewer = request.state.viewer
    every = all_proposals(hall)[::-1]
    mine = [p for p in every if awaits(p, viewer)]
    rest = [p for p in every if p not in mine]
    over = [p for p in rest if p.state in ENDED]
    groups = (
        ("Waiting for your ballot", mine),
        ("Open", [p for p in rest if p.state in OPEN]),
        ("Passed, and waiting for their time", [p for p in rest if p.state in WAITING]),
        ("Over", over[:OVER_SHOWN]),
    )
    shown = [(name, found) for name, found in groups if found]
    bars = {p.id: bar(p) for _, found in shown for p in found}
    return {"groups": shown, "bars": bars, "older": len(over[OVER_SHOWN:])}


def awaits(p: ProposalView, viewer: Viewer) -> bool:
    """Whether the viewer's organisation may vote on it now and has not."""
    return p.state == "active" and why_not(p, viewer) == "" and own_ballot(p, viewer) is None


def why_not(p: ProposalView, viewer: Viewer) -> str:
    """Why the viewer cannot vote on it now, in a sentence; empty when they can."""
    match p.state:
        case "pending":
            return "Voting has not begun."
        case "paused":
            return "The vote is paused for a discussion."
        case "active":
            pass
        case _:
            return f"The vote is over: the proposal is {p.state}."
    if viewer.partner is None or Role.VOTER not in viewer.roles:
        return "You can look at it; voting is for the voters of a member."
    if viewer.partner not in p.electorate:
        return f"{viewer.partner} is not in its electorate: it is about {viewer.partner}, or was suspended when it opened."
    return ""


def own_ballot(p: ProposalView, viewer: Viewer) -> Any:
    return next((b for b in p.ballots if b.voter == viewer.partner), None)


def bar(p: ProposalView) -> Any:
    """For, against and abstaining of all weight, with a line where the quorum is; of a roadmap, who has answered."""
    total, needed = sum(p.electorate.values()), quorum(p)
    if p.candidates:
        answered = sum(p.electorate[b.voter] for b in p.ballots)
        return stack([("abstain", answered)], f"{answered} of {total} have answered", total=total)
    said = f"{p.for_weight} for, {p.against_weight} against, {p.abstain_weight} abstain, of {total}"
    parts = [("for", p.for_weight), ("against", p.against_weight), ("abstain", p.abstain_weight)]
    return stack(parts, said, total=total, mark=None if p.objection else needed)


def quorum(p: ProposalView) -> int:
    """The least weight that makes a quorum: of those that are not dormant, or of a half of all (`commons.tally`)."""
    total = sum(p.electorate.values())
    asleep = sum(p.electorate[member] for member in p.dormant)
    return -(-p.quorum_percent * max(2 * (total - asleep), total) // 200)


def rules(p: ProposalView) -> str:
    """What it needs, in a sentence."""
    if p.objection:
        return f"It becomes law unless {p.objection} of all weight is against it."
    if p.candidates:
        how = (
            f"with {p.credits} credits each; n votes cost n²" if p.credits else "ranked, by Schulze's method"
        )
        return f"An order of {len(p.candidates)} candidates, {how}. It binds nobody."
    share = f" and at least {p.share}" if p.share else ""
    heads = f" At least {p.members} of all members must be for it, by head." if p.members else ""
    return f"It needs {p.quorum_percent} % turnout, and more than {p.pass_percent} %{share} of for and against.{heads}"


def timeline(p: ProposalView) -> list[tuple[int, str, int | None]]:
    """(log time in ms, what, journal record) of all that happened or is due, in order."""
    found: list[tuple[int, str, int | None]] = [
        (p.opened_ms, f"{p.proposer} proposed it; voting begins", p.index)
    ]
    found += [(b.at_ms, f"{b.voter} votes {b.choice}", b.index) for b in p.ballots]
    found += [(m.at_ms, f"{m.member} moves to {m.motion}: {m.reason}", m.index) for m in p.motions]
    if p.decided_ms is not None:
        found.append((p.decided_ms, f"the vote ends: {outcome(p)}", p.outcome_index))
    elif p.state in OPEN:
        found.append((p.closes_ms, "voting ends, if not all have voted before", None))
    if p.executed_ms is not None:
        what = f"carried out: charter version {p.charter_version}, from round {p.executed_round}"
        found.append((p.executed_ms, what, p.execution_index))
    elif p.eta_ms is not None and p.state in WAITING:
        found.append((p.eta_ms, f"may be carried out, from round {p.effective_round} on", None))
    return sorted(found, key=lambda one: one[0])


def moves(p: ProposalView) -> list[tuple[str, str]]:
    """(what may be done about it now, the command): motions are signed with a member's own key."""
    match p.state:
        case "pending":
            return [(f"{p.proposer} may withdraw it", f"hansa proposal withdraw {p.number}")]
        case "active" if not any(m.motion == "resume" for m in p.motions):
            return [
                ("Two members who call for it pause the vote, once", f"hansa proposal discuss {p.number}")
            ]
        case "paused":
            return [("Who called for the discussion may end it", f"hansa proposal resume {p.number}")]
        case "queued" if p.officers:
            who = ", ".join(p.officers)
            return [(f"{who} may veto it until its time comes", f"hansa proposal veto {p.number} --reason …")]
        case "vetoed":
            return [
                ("The members may lift the veto", f"hansa proposal open override-veto -s proposal={p.id}")
            ]
        case _:
            return []


def outcome(p: ProposalView) -> str:
    if p.candidates:
        return "the order stands"
    passed = p.eta_ms is not None or p.state in ("succeeded", "queued", "executed")
    return "passed" if passed else "defeated"


def one_context(hall: Hall, request: Request) -> Context:
    viewer: Viewer = request.state.viewer
    p = find(hall, request.path_params["which"])
    shown = dry_run(hall, p)
    return {
        "p": p,
        "label": f"P-{p.number:04d}",
        "bar": bar(p),
        "quorum": quorum(p),
        "turnout": p.for_weight + p.against_weight + p.abstain_weight,
        "total": sum(p.electorate.values()),
        "rules": rules(p),
        "cast": {member: next((b for b in p.ballots if b.voter == member), None) for member in p.electorate},
        "timeline": timeline(p),
        "moves": moves(p),
        "preview": None if isinstance(shown, str) else shown,
        "why_no_preview": shown if isinstance(shown, str) else "",
        "why_not": why_not(p, viewer),
        "own": own_ballot(p, viewer),
        "currency": budgets.currency if (budgets := hall.feed.latest(BudgetsView)) else "",
        "log_key": hall.office.log_key,
    }


def dry_run(hall: Hall, p: ProposalView) -> Preview | str:
    """What carrying it out now would change and cost, or did; or why it would not apply."""
    try:
        return preview_proposal(FromFeed(hall), p)
    except Refused as refused:
        return refused.refusal.message


def evidence(hall: Hall) -> Sequence[BaseRoute]:
    async def answer(request: Request) -> Response:
        which = (await run_in_threadpool(find, hall, request.path_params["which"])).id
        view: View = await run_in_threadpool(hall.office.read, EvidenceView, which)
        return JSONResponse(view.model_dump() | {"now_ms": time.time_ns() // 1_000_000})

    return [Route("/proposals/{which}/evidence.json", answer)]


LIST = Page("/proposals", "Proposals", "proposals.html.j2", list_context, (ProposalsView,))
ONE = Page(
    "/proposals/{which}",
    "Proposal",
    "proposal.html.j2",
    one_context,
    (ProposalsView, CharterView),
    listed=False,
    more=evidence,
)
