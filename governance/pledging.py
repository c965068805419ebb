"""What becomes of members' pledges (`commons.pledging`): held at once, paid with the charter they were for, or given back.

Decisions over the books and the courses of proposals; nothing changes here. A pledge is held like a round's charge, and ends
once: `pledge-paid` in the transaction that makes its proposal law, `pledge-returned` when the proposal has ended otherwise or
the pledge's own time is over.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from commons.amounts import is_amount
from commons.charter import Charter
from commons.course import ENDED
from commons.errors import Code, Refusal
from commons.names import ProposalId
from commons.notes import Note
from commons.pledging import PLEDGES_MAX, Pledge, check_pledge
from commons.records import Kind, Record, fact
from governance.courses import Courses, Item
from governance.ledger import Ledger
from governance.ledger.accounts import budget_account
from governance.ledger.holds import invalid_amount


def decide_pledge(
    ledger: Ledger, courses: Courses, note: Note, charter: Charter, now_ms: int
) -> list[Record] | Refusal:
    """The PLEDGE record of a member's word, and the hold of its money; [] for a repeat.

    Refuses as `commons.pledging.check_pledge` does, and: proposal_unknown, proposal_closed, amount_invalid, hold_expired,
    request_invalid (too many), exceeds_budget.
    """
    pledge = check_pledge(note, charter)
    if isinstance(pledge, Refusal):
        return pledge
    if courses.known(pledge.digest):
        return []
    item = courses.items.get(ProposalId(pledge.proposal))
    if item is None:
        message = f"there is no proposal {pledge.proposal} in this journal"
        return Refusal(Code.PROPOSAL_UNKNOWN, message)
    if wrong := _unlawful(item, pledge, now_ms):
        return wrong
    available = ledger.available_micro(pledge.member, now_ms)
    if available < pledge.amount_micro:
        lacking = {pledge.member: {"needs": pledge.amount_micro, "available": available}}
        message = (
            f"{pledge.member} pledges {pledge.amount_micro} micro and has {available}: it pledges what it has"
        )
        return Refusal(Code.EXCEEDS_BUDGET, message, {"lacking": lacking})
    more = {"expires_ms": pledge.expires_ms}
    return [Record(Kind.PLEDGE, now_ms, note.data), _transfer("pledge", pledge, now_ms, more)]


def decide_payments(item: Item, after: Charter, now_ms: int) -> Iterator[Record]:
    """What ends the pledges on a proposal that makes `after` the charter now: paid where they stand, else given back."""
    for pledge in item.open_pledges():
        if pledge.stands(after, now_ms):
            yield _transfer("pledge-paid", pledge, now_ms, {})
        else:
            yield _returned(pledge, now_ms, "it no longer stood when its proposal became law")


def decide_returns(item: Item, now_ms: int) -> Iterator[Record]:
    """What is given back of the pledges on a proposal by now; nothing of one that became law, which paid them."""
    state = item.state(now_ms) if item.open_pledges() else ""
    for pledge in item.open_pledges():
        if state in ENDED:
            yield _returned(pledge, now_ms, f"its proposal is {state}")
        elif now_ms >= pledge.expires_ms:
            yield _returned(pledge, now_ms, "its time is over")


def _unlawful(item: Item, pledge: Pledge, now_ms: int) -> Refusal | None:
    name, state = f"P-{item.opening.number:04d}", item.state(now_ms)
    if not item.binding:
        message = f"{name} changes no charter: there is nothing that a pledge could pay for"
        return Refusal(Code.REQUEST_INVALID, message)
    if state in ENDED:
        return Refusal(Code.PROPOSAL_CLOSED, f"{name} is {state}: it takes no pledges")
    if not is_amount(pledge.amount_micro) or not pledge.amount_micro:
        return invalid_amount(f"pledge of {pledge.member}", pledge.amount_micro, 1)
    if pledge.expires_ms <= now_ms:
        return Refusal(Code.HOLD_EXPIRED, f"the pledge of {pledge.member} would be over before it is made")
    if sum(known.member == pledge.member for _, _, known in item.pledges) >= PLEDGES_MAX:
        message = (
            f"{pledge.member} has made {PLEDGES_MAX} pledges on {name}, and no more are taken of one member"
        )
        return Refusal(Code.REQUEST_INVALID, message)
    return None


def _returned(pledge: Pledge, now_ms: int, why: str) -> Record:
    return _transfer("pledge-returned", pledge, now_ms, {"why": why})


def _transfer(kind: str, pledge: Pledge, now_ms: int, more: dict[str, Any]) -> Record:
    """Of the whole amount, from the member's budget to the other's."""
    ending = {} if kind == "pledge" else {"hold": f"pledge/{pledge.tail}"}
    return fact(
        Kind.TRANSFER,
        now_ms,
        type=kind,
        id=f"{kind}/{pledge.tail}",
        debit=budget_account(pledge.member),
        credit=budget_account(pledge.to),
        amount_micro=pledge.amount_micro,
        payer=pledge.member,
        to=pledge.to,
        proposal=pledge.proposal,
        **ending,
        **more,
    )
