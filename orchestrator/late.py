"""Updates under way when their round closes: who stays at work on it, until when, and what such an update counts.

Pure functions over views and charters. What a late update is and costs is by the charter of its own round; whether and
how much it counts, by that of the round that takes it.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from commons.charter import Charter
from commons.errors import Code, Refusal
from commons.names import SiteId
from commons.work import UpdateNote
from orchestrator.progress import RoundState, RunState


@dataclass(frozen=True)
class Late:
    """A late update that the next close takes."""

    site: SiteId
    found: RoundState
    """The round it is of."""
    update: UpdateNote
    rounds: int
    """How many rounds late it is."""
    share: float
    """What its weight in shared slices is multiplied by."""


def late_updates(run: RunState, taking: Charter) -> list[Late]:
    """Late updates that wait for the next close, in order of site. `taking`: charter of the round that takes them."""
    made = []
    for site, number in sorted(run.late.items()):
        found, rounds = run.history[number - 1], run.next - number
        share = taking.rounds.late_discount**rounds
        made.append(Late(site, found, found.late[site].update, rounds, share))
    return made


def staying(
    run: RunState, opened: RoundState, charter: Charter, working: Collection[SiteId], now_ms: int
) -> list[SiteId]:
    """Sites that stay at work on the open round when it closes now: those seen at it, while their lease holds."""
    more = opened.number < run.rounds and now_ms < opened.lease_until_ms
    if not charter.rounds.late_rounds or not more:
        return []
    return [site for site in opened.waiting if site in working]


def words(rounds: int, charter: Charter) -> str:
    """How late an update is, and what that makes of its weight, for people."""
    share = charter.rounds.late_discount**rounds
    return f"late by {_rounds(rounds)}, weight {share:.3g}"


def too_late(
    run: RunState, site: SiteId, into: int, own: Charter, taking: Charter, now_ms: int
) -> Refusal | None:
    """Why the update that `site` is carried for can count in round `into` no more; None while it can.

    `own` is the charter of the update's round, `taking` that of the round it would count in.
    """
    found = run.history[run.carried[site] - 1]
    what, most = f"the update of site {site} for round {found.number}", taking.rounds.late_rounds
    if into > run.rounds:
        return Refusal(Code.ROUND_CLOSED, f"{what} came in no round: the run's last one is closed")
    if into - found.number > most:
        message = f"{what} would be {_rounds(into - found.number)} late, the charter takes {most}; its next order is new"
        return Refusal(Code.ROUND_CLOSED, message)
    if own.privacy != taking.privacy:
        message = f"{what} was made under other terms of privacy than those in force; its next order is new"
        return Refusal(Code.ROUND_CLOSED, message)
    if own.owners != taking.owners:  # what is moved also has another owner, so that indices are the same too
        message = (
            f"{what} is of other experts, or of another site's, than the model has now; its next order is new"
        )
        return Refusal(Code.EXPERT_MAP_MISMATCH, message)
    mine, theirs = own.learning, taking.learning
    if (mine.strategy, mine.counts) != (theirs.strategy, theirs.counts):
        message = f"{what} was made under another strategy or weighting than the one in force; its next order is new"
        return Refusal(Code.ROUND_CLOSED, message)
    if now_ms >= found.lease_until_ms:
        message = f"{what} did not come before its lease was over; its next order is new"
        return Refusal(Code.LEASE_EXPIRED, message)
    return None


def _rounds(count: int) -> str:
    return f"{count} round{'s' if count > 1 else ''}"
