"""How much each member's ballot weighs: equal, or by what it contributed, never more than a third for one owner.

Pure and integer-only, so that every site and a browser come to the same weights (vectors in
tests/support/vectors/ballot_weights.json). Affiliates (members of one `group`) are capped together, as the Kubernetes steering
committee caps companies: splitting into subsidiaries gains nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import gcd, isqrt

from commons.charter import Charter, Member
from commons.voting import Power

CAP = 3
"""A group has at most one part in so many; with fewer groups no cap can hold, and all groups weigh the same."""
DAY_MS = 86_400_000
_PARTS = 1_000_000
_FINE = 1000
"""Above the number of members, so that also a capped group has something for each of its own."""


def weights(charter: Charter, contributed: Mapping[str, int], without: Iterable[str] = ()) -> dict[str, int]:
    """Member -> weight, at least 1, in charter order, of all members that are not suspended nor in `without`.

    `contributed`: member -> what counts of its contributions now (`decayed`), in micro, used where the charter says so.
    """
    left_out = set(without)
    members = [m for m in charter.members if not m.suspended and m.name not in left_out]
    return capped(members, shares(charter.voting.power, [contributed.get(m.name, 0) for m in members]))


def shares(power: Power, contributed: Sequence[int]) -> list[int]:
    """Parts of a million before any cap, at least 1 each. Equal where nobody contributed anything."""
    values = [1] * len(contributed)
    if power.base == "contribution" and any(contributed):
        values = [isqrt(c) if power.curve == "sqrt" else c for c in contributed]
    total = sum(values)
    return [max(1, value * _PARTS // total) for value in values]


def capped(members: Sequence[Member], raw: Sequence[int]) -> dict[str, int]:
    """Weights in which no group has more than a third of all, divided by their greatest common divisor.

    Exact water-filling: what is above the cap is cut off, not given to others. With three groups or more at most two
    can be above it. Let W1 >= W2 be the largest groups: W1 is cut to half of all others together; if W2 is above
    that, both are cut to the sum of the rest, so that each has exactly a third.
    """
    groups: dict[str, list[int]] = {}
    for at, member in enumerate(members):
        groups.setdefault(member.group or member.name, []).append(at)
    fine = [value * _FINE for value in raw]
    sums = {name: sum(fine[at] for at in places) for name, places in groups.items()}
    level = _level(sorted(sums.values(), reverse=True))
    for name, places in groups.items():
        if len(groups) < CAP or sums[name] > level:
            for at, value in zip(places, _divided(level, [fine[at] for at in places]), strict=True):
                fine[at] = value
    common = gcd(*fine) or 1
    return {member.name: value // common for member, value in zip(members, fine, strict=True)}


def decayed(amount_micro: int, age_days: int, half_life_days: int) -> int:
    """What is left of a contribution: halved for each half-life, and in a straight line between two halvings."""
    halvings, rest = divmod(age_days, half_life_days)
    return amount_micro * (2 * half_life_days - rest) // (2 * half_life_days) >> halvings


def _level(sums: Sequence[int]) -> int:
    """What a group may weigh at most, given all groups' weights, the largest first."""
    if len(sums) < CAP:
        return _PARTS * _FINE
    first, second, *others = sums
    rest = sum(others)
    if CAP * first <= first + second + rest:
        return first
    if (second + rest) // 2 >= second:
        return (second + rest) // 2
    return rest


def _divided(total: int, by: Sequence[int]) -> list[int]:
    """`total` in proportion, at least 1 each: largest remainders first, then the order given."""
    spare, whole = total - len(by), sum(by)
    parts = [1 + spare * value // whole for value in by]
    order = sorted(range(len(by)), key=lambda at: (-(spare * by[at] % whole), at))
    for at in order[: total - sum(parts)]:
        parts[at] += 1
    return parts
