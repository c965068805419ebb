"""Voting power from worth: what members' work is worth on the probe, made into the weights of an electorate.

Pure and integers only, the same wherever it is counted (vectors in tests/support/vectors/power.json). Where a charter takes
weights from is not said here; an opening (`commons.opening`) freezes them.
"""

from __future__ import annotations

from collections.abc import Mapping

POINTS = 10_000
"""All that is shared out among members."""


def power(worth: Mapping[str, int], *, equal_percent: int, cap_percent: int) -> dict[str, int]:
    """Member -> weight, at least 1 each, `POINTS` together.

    `equal_percent` of the points are shared alike, the others by `worth` (any unit; below zero counts as none, and where
    nobody's counts they are shared alike too). Nobody has more than `cap_percent` of all, or than an equal share where
    that is more: what is above goes to the others by their worth. Ends of division go to the largest remainder, of equals
    to the first by name. Raises ValueError for percentages outside 0 to 100, or more members than points.
    """
    if not (0 <= equal_percent <= 100 and 0 <= cap_percent <= 100):
        raise ValueError("percentages are from 0 to 100")
    if not 0 < len(worth) <= POINTS:
        raise ValueError(f"between 1 and {POINTS} members share the power")
    names, least = sorted(worth), 1
    alike = max(least * len(names), POINTS * equal_percent // 100)
    found = _shares(dict.fromkeys(names, 1), alike)
    cap = max(POINTS * cap_percent // 100, -(-POINTS // len(names)))
    left = POINTS - alike
    free = {name: max(0, worth[name]) for name in names}
    while left:
        room = {name: free[name] for name in names if found[name] < cap}
        if not any(room.values()):
            room = dict.fromkeys(room, 1)
        given = {name: min(share, cap - found[name]) for name, share in _shares(room, left).items()}
        for name, share in given.items():
            found[name] += share
        left -= sum(given.values())
    return found


def _shares(weights: Mapping[str, int], points: int) -> dict[str, int]:
    """`points` in proportion to `weights`, not all zero, by largest remainder."""
    total = sum(weights.values())
    found = {name: points * weight // total for name, weight in weights.items()}
    rests = sorted(weights, key=lambda name: (-(points * weights[name] % total), name))
    for name in rests[: points - sum(found.values())]:
        found[name] += 1
    return found
