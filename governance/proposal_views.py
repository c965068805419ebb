"""A proposal as people are shown it: what it asks for, under which rules, who voted how, and where it stands."""

from __future__ import annotations

from commons import features
from commons.charter import Charter
from commons.errors import Refusal
from commons.pledging import Pledge
from commons.views import BallotView, MotionView, ProposalPledgeView, ProposalView
from governance.courses import Item


def label(number: int) -> str:
    """A proposal's name for people: P-0001."""
    return f"P-{number:04d}"


def proposal_view(item: Item, base: Charter, now_ms: int) -> ProposalView:
    """`base`: the charter it was made on."""
    proposal, opening, count = item.proposal, item.opening, item.tally(now_ms)
    cast_ms = {index: at_ms for index, at_ms, _ in item.ballots}
    patch = features.patch(base, proposal.feature, proposal.parameters)
    return ProposalView(
        id=opening.proposal,
        number=opening.number,
        title=proposal.title,
        proposer=proposal.proposer,
        feature=proposal.feature,
        type=features.type_of(base, proposal.feature, proposal.parameters),
        parameters=dict(proposal.parameters),
        state=item.state(now_ms),
        opened_ms=opening.opened_ms,
        closes_ms=count.closes_ms,
        index=item.index,
        decided_ms=item.decided[0] if item.decided else None,
        outcome_index=item.outcome_index,
        eta_ms=item.eta_ms,
        effective_round=proposal.effective_round,
        executed_round=item.executed_round,
        executed_ms=item.executed_ms,
        execution_index=item.execution_index,
        charter_version=item.charter_version,
        patch=() if isinstance(patch, Refusal) else tuple(patch),
        electorate=dict(opening.electorate),
        dormant=opening.dormant,
        officers=opening.officers,
        quorum_percent=opening.quorum_percent,
        pass_percent=opening.pass_percent,
        share=opening.share,
        members=opening.members,
        objection=opening.objection,
        candidates=opening.candidates,
        credits=opening.credits,
        tiers=count.order.tiers if count.order else (),
        for_weight=count.for_weight,
        against_weight=count.against_weight,
        abstain_weight=count.abstain_weight,
        ballots=tuple(
            BallotView(voter=voter, choice=choice, index=index, at_ms=cast_ms[index])
            for voter, (choice, index) in count.counted.items()
        ),
        motions=tuple(
            MotionView(member=m.member, motion=m.motion, reason=m.reason, at_ms=at, index=index)
            for index, at, m in item.motions
        ),
        rules=opening.rules_digest,
        electorate_digest=opening.electorate_digest,
        lodged=len(item.lodged),
        needs_micro=item.needs_micro,
        pledged_micro=sum(p.amount_micro for _, _, p in item.pledges if _counts(item, p, now_ms)),
        pledges=tuple(_pledge(item, index, pledge) for index, _, pledge in item.pledges),
    )


def _pledge(item: Item, index: int, pledge: Pledge) -> ProposalPledgeView:
    return ProposalPledgeView(
        member=pledge.member,
        to=pledge.to,
        amount_micro=pledge.amount_micro,
        expires_ms=pledge.expires_ms,
        state=item.settled.get(pledge.tail, "held"),
        index=index,
    )


def _counts(item: Item, pledge: Pledge, now_ms: int) -> bool:
    ended = item.settled.get(pledge.tail)
    return ended == "paid" if ended else now_ms < pledge.expires_ms
