"""How long a budget lasts: what was spent so far, at what pace, and when it is used up if that goes on.

Pure, integers in, integers out: charges and lots come in as values, time as Unix ms. The pace is the mean of the last
rounds, rounded up, so that a forecast never promises a round that is not paid for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

RECENT_ROUNDS = 10
"""The pace is that of the last rounds, at most this many."""
ROUNDS_MAX = 1_000_000
"""No forecast looks further."""
DAY_MS = 86_400_000


@dataclass(frozen=True)
class Spent:
    """What one payer paid for one round."""

    run: str
    round: int
    at_ms: int
    """When it was charged."""
    amount_micro: int


@dataclass(frozen=True)
class Free:
    """Budget that is neither held nor spent, in the order in which it is spent."""

    amount_micro: int
    not_before_ms: int = 0
    expires_ms: int = 0
    """0: never."""

    def in_force(self, now_ms: int) -> bool:
        return self.not_before_ms <= now_ms and (not self.expires_ms or now_ms < self.expires_ms)


@dataclass(frozen=True)
class Forecast:
    partner: str
    available_micro: int
    rounds: tuple[Spent, ...]
    """Every round the partner paid for, oldest first."""
    days: tuple[tuple[int, int], ...]
    """(begin of the day in UTC, charged on it), oldest first; days without a charge are left out."""
    round_micro: int
    """Mean of the last rounds, rounded up; 0 when nothing was charged."""
    round_ms: int
    """The usual (median) time between their charges; 0 when there were not two."""
    day_micro: int
    """What a day of such rounds costs; 0 when their time is not known."""
    rounds_left: int | None
    """Rounds the budget pays for at this pace; None: nothing is spent, or more rounds than anybody counts."""
    exhausted_ms: int | None
    """When it no longer pays for a round."""
    expiring_micro: int
    """What expires before it is spent."""
    run_rounds: int
    """Rounds that the running run has not opened yet."""
    lacking_micro: int
    """What they cost at this pace beyond the budget; 0: the run finishes inside it."""


@dataclass(frozen=True)
class _Burnt:
    rounds: int | None
    at_ms: int
    lost_micro: int


def forecast(
    partner: str,
    spent: Sequence[Spent],
    free: Sequence[Free],
    *,
    available_micro: int,
    run_rounds: int,
    now_ms: int,
) -> Forecast:
    """`spent`: the partner's rounds in the order they were charged; `free`: its lots, in the order they are spent.

    `run_rounds`: how many rounds the running run has yet to open; 0 without a run.
    """
    free = [lot for lot in free if not lot.expires_ms or now_ms < lot.expires_ms]
    recent = spent[-RECENT_ROUNDS:]
    round_micro = -(-sum(s.amount_micro for s in recent) // len(recent)) if recent else 0
    gaps = sorted(later.at_ms - earlier.at_ms for earlier, later in pairwise(recent))
    round_ms = gaps[len(gaps) // 2] if gaps else 0
    burnt = _burn(free, round_micro, max(1, round_ms), now_ms) if round_micro else _Burnt(None, now_ms, 0)
    run = _burn(free, round_micro, max(1, round_ms), now_ms, most=run_rounds) if round_micro else burnt
    paid = run_rounds if run.rounds is None else run.rounds
    return Forecast(
        partner=partner,
        available_micro=available_micro,
        rounds=tuple(spent),
        days=_days(spent),
        round_micro=round_micro,
        round_ms=round_ms,
        day_micro=round_micro * DAY_MS // round_ms if round_ms else 0,
        rounds_left=burnt.rounds,
        exhausted_ms=burnt.at_ms if burnt.rounds is not None and round_ms else None,
        expiring_micro=burnt.lost_micro,
        run_rounds=run_rounds,
        lacking_micro=(run_rounds - paid) * round_micro,
    )


def by_round(charges: Sequence[Spent]) -> list[Spent]:
    """One entry per round, in the order of their first charge: a payer may pay for several sites."""
    rounds: dict[tuple[str, int], Spent] = {}
    for charge in charges:
        key = (charge.run, charge.round)
        before = rounds.get(key)
        amount = charge.amount_micro + (before.amount_micro if before else 0)
        rounds[key] = replace(charge, amount_micro=amount)
    return list(rounds.values())


def _burn(
    free: Sequence[Free], round_micro: int, round_ms: int, now_ms: int, most: int = ROUNDS_MAX
) -> _Burnt:
    """Spend a round after the other until one is not paid for, or `most` are: how many, when, and what expired.

    `rounds` is None when `most` rounds did not use it up. Jumps from one begin or end of a lot to the next.
    """
    left = [lot.amount_micro for lot in free]
    at_ms, rounds = now_ms, 0
    while True:
        usable = [i for i, lot in enumerate(free) if lot.in_force(at_ms)]
        events = [t for lot in free for t in (lot.not_before_ms, lot.expires_ms) if t > at_ms]
        within = -(-(min(events) - at_ms) // round_ms) if events else most
        count = min(within, most - rounds, sum(left[i] for i in usable) // round_micro)
        owed = count * round_micro
        for i in usable:
            part = min(owed, left[i])
            left[i] -= part
            owed -= part
        rounds, at_ms = rounds + count, at_ms + count * round_ms
        lost = sum(m for m, lot in zip(left, free, strict=True) if 0 < lot.expires_ms <= at_ms)
        if rounds == most:
            return _Burnt(None, at_ms, lost)
        if count < within:
            return _Burnt(rounds, at_ms, lost)


def _days(spent: Sequence[Spent]) -> tuple[tuple[int, int], ...]:
    days: dict[int, int] = {}
    for one in spent:
        day = one.at_ms // DAY_MS * DAY_MS
        days[day] = days.get(day, 0) + one.amount_micro
    return tuple(sorted(days.items()))
