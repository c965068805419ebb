"""The auditor's reading of pledges: whose word they are, that their money was there, and that each ends as it was promised."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from commons import notes
from commons.course import ENDED
from commons.errors import Refusal
from commons.pledging import PLEDGES_MAX, Pledge, check_pledge
from commons.records import Kind, Record
from governance.fsck_accounts import NEVER, Books, Draw, put_back
from governance.fsck_charges import MICRO, Facts
from governance.fsck_findings import Findings, Rule
from governance.fsck_votes import Vote, Votes

CheckLegs = Callable[[int, Facts, str, str], None]
"""(index, facts, debit, credit): the transfer moves between these two accounts."""


@dataclass(frozen=True)
class _Held:
    pledge: Pledge
    vote: Vote
    draws: list[Draw]


class Pledges:
    """Reads PLEDGE records and the transfers that follow from them."""

    def __init__(self, findings: Findings, votes: Votes, books: Books, check_legs: CheckLegs) -> None:
        self._findings, self._votes, self._books, self._check_legs = findings, votes, books, check_legs
        self._promised: tuple[int, Pledge, Vote] | None = None
        """A pledge whose money must be held by the next record."""
        self._held: dict[str, _Held] = {}
        self.types = {"pledge": self._hold, "pledge-paid": self._pay, "pledge-returned": self._give_back}

    def take(self, index: int, record: Record) -> None:
        """Before the money of record `index` is read."""
        held_now = record.kind is Kind.TRANSFER and record.facts["type"] == "pledge"
        if self._promised is not None and not held_now:
            self._findings.add(Rule.HOLD, self._promised[0], "is a pledge of which nothing was held")
            self._promised = None
        if record.kind is Kind.PLEDGE:
            self._promise(index, record)

    def finish(self, size: int) -> None:
        """After the last record."""
        self.take(size, Record(Kind.FINISH, 0, b"{}"))
        for held in self._held.values():
            what = f"is the last, and a pledge of {held.pledge.member} is open though its proposal is law"
            self._findings.require(held.vote.ended != "executed", Rule.ENDING, size - 1, what)

    def _promise(self, index: int, record: Record) -> None:
        note, need = notes.parse(record.body), self._findings.require
        pledge = check_pledge(note, self._votes.charter)
        if isinstance(pledge, Refusal):
            self._findings.add(Rule.SIGNATURE, index, f"is no lawful pledge: {pledge.message}")
            return
        self._votes.once(index, note, Rule.VOTE, "is a pledge that stood before")
        vote = self._votes.vote(pledge.proposal)
        if vote is None:
            self._findings.add(Rule.VOTE, index, "is a pledge on a proposal that was never opened")
            return
        state = vote.state(record.at_ms)
        by_member = sum(known.member == pledge.member for _, _, known in vote.pledges)
        taken = vote.binding and state not in ENDED and by_member < PLEDGES_MAX
        need(taken, Rule.VOTE, index, f"is a pledge on a proposal that takes none: it is {state}")
        need(
            record.at_ms < pledge.expires_ms, Rule.VOTE, index, "is a pledge that was over before it was made"
        )
        vote.pledges.append((index, record.at_ms, pledge))
        self._promised = (index, pledge, vote)

    def _hold(self, index: int, at_ms: int, facts: Facts) -> None:
        promised, self._promised = self._promised, None
        if promised is None or facts["id"] != f"pledge/{promised[1].tail}":
            self._findings.add(Rule.HOLD, index, f"holds {facts['id']}, which nobody has promised")
            return
        _, pledge, vote = promised
        self._check(index, facts, pledge)
        draws, lacking = self._books.draw(pledge.member, facts["amount_micro"], at_ms)
        what = f"holds {pledge.amount_micro} micro of {pledge.member}, who lacks {lacking} of them"
        self._findings.require(not lacking, Rule.OVERDRAFT, index, what)
        self._books.pend(facts["debit"], facts["credit"], MICRO, facts["amount_micro"])
        self._held[facts["id"]] = _Held(pledge, vote, draws)

    def _pay(self, index: int, at_ms: int, facts: Facts) -> None:
        held = self._end(index, facts)
        if held is None:
            return
        pledge, law = held.pledge, self._votes.charter
        due = held.vote.made == law.version and pledge.stands(law, at_ms)
        what = (
            f"pays a pledge of {pledge.member}, whose proposal does not become law with it, or which is over"
        )
        self._findings.require(due, Rule.ENDING, index, what)
        put_back(held.draws, pledge.amount_micro)
        self._books.post(facts["debit"], facts["credit"], MICRO, facts["amount_micro"])
        for number, (lot, taken) in enumerate(held.draws, 1):
            self._books.add_lot(
                pledge.to,
                f"{facts['hold']}/{number}",
                taken,
                priority=lot.priority,
                not_before_ms=lot.not_before_ms,
                expires_ms=0 if lot.expires_ms == NEVER else lot.expires_ms,
            )

    def _give_back(self, index: int, at_ms: int, facts: Facts) -> None:
        held = self._end(index, facts)
        if held is None:
            return
        pledge, state = held.pledge, held.vote.state(at_ms)
        stands = pledge.stands(self._votes.charter, at_ms)
        over = at_ms >= pledge.expires_ms or (state in ENDED and not (state == "executed" and stands))
        what = f"gives a pledge back to {pledge.member}, which stands: its proposal is {state}"
        self._findings.require(over, Rule.ENDING, index, what)
        put_back(held.draws, 0)

    def _end(self, index: int, facts: Facts) -> _Held | None:
        held = self._held.pop(facts["hold"], None)
        if held is None:
            self._findings.add(Rule.ENDING, index, f"ends {facts['hold']}, which is not open")
            return None
        self._check(index, facts, held.pledge)
        self._books.pend(facts["debit"], facts["credit"], MICRO, -held.pledge.amount_micro)
        return held

    def _check(self, index: int, facts: Facts, pledge: Pledge) -> None:
        """The transfer is the pledge's, between its two budgets, and whole."""
        budgets = (f"partner/{pledge.member}/budget", f"partner/{pledge.to}/budget")
        self._check_legs(index, facts, *budgets)
        said = (
            f"{facts['type']}/{pledge.tail}",
            pledge.amount_micro,
            pledge.member,
            pledge.to,
            pledge.proposal,
        )
        booked = tuple(facts[name] for name in ("id", "amount_micro", "payer", "to", "proposal"))
        what = f"books {booked}, {pledge.member} signed {said}"
        self._findings.require(booked == said, Rule.TRANSFER, index, what)
