"""The auditor's question about ballots that sites keep: each is in its vote, however that ended."""

from __future__ import annotations

from collections.abc import Iterable

from commons.delegating import open_ballot
from commons.lodging import LodgedBallot, convince, ended_ms
from commons.notes import parse
from commons.tally import fits
from governance.fsck_findings import Findings, Rule
from governance.fsck_votes import Vote, Votes


def check_lodged(findings: Findings, votes: Votes, lodged: Iterable[LodgedBallot], size: int) -> None:
    """After the last of `size` records. Asks for as many partners' words as a proof to others does."""
    law = votes.charter
    partners = {site.name: site.partner for site in law.sites}
    keys = {name: key for name in partners if (key := votes.key(name))}
    for one in lodged:
        vote = votes.vote(one.ballot.proposal)
        if vote is None or vote.decided is None or votes.stood(one.digest) or not _lawful(votes, vote, one):
            continue
        count = vote.tally(vote.decided[0])
        at = {index: at_ms for index, at_ms, _ in vote.ballots}
        window = (vote.opening.opened_ms, ended_ms(vote.opening, count, at.__getitem__), count.pause)
        witnesses = one.witnesses(keys, partners, *window)
        if convince(witnesses, law.witnesses.quorum, ""):
            what = f"is the last, and {one.ballot.voter}'s ballot on P-{vote.opening.number:04d} is not in the journal"
            findings.add(Rule.TALLY, size - 1, f"{what}, which {', '.join(witnesses)} had in time")


def _lawful(votes: Votes, vote: Vote, one: LodgedBallot) -> bool:
    member = votes.history[vote.base].member(one.ballot.voter)
    if member is None or not fits(vote.opening, one.ballot):
        return False
    delegated = votes.ballot_key(member.name)
    return open_ballot(parse(one.note), member, delegated, vote.opening.opened_ms) is None
