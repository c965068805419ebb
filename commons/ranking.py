"""Roadmap ballots: what the members want next, in order. The result is recorded and binds nobody.

Ranked ballots are counted by Schulze's method (Schulze, Social Choice and Welfare 36, 2011), quadratic ones by the sum of
votes that each cost their square (Lalley and Weyl, 2018). Both weigh ballots as other votes do. Pure and integer-only.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_NAME = r"[a-z][a-z0-9-]{0,31}"
RANKED = re.compile(rf"rank {_NAME}(?: > {_NAME})*")
QUADRATIC = re.compile(rf"credits {_NAME} [1-9][0-9]{{0,3}}(?:, {_NAME} [1-9][0-9]{{0,3}})*")


@dataclass(frozen=True)
class Order:
    """Tiers of candidates, the most wanted first."""

    tiers: tuple[tuple[str, ...], ...]
    scores: Mapping[str, int]
    """Schulze: how many others it beats; quadratic: its weighted votes."""

    @property
    def facts(self) -> dict[str, Any]:
        return {"tiers": [list(tier) for tier in self.tiers], "scores": dict(self.scores)}


def readable(choice: str, candidates: Sequence[str], credits: int) -> bool:
    """Whether a choice answers the question: known candidates, each once, and no more credits than there are."""
    if credits:
        votes = _votes(choice)
        return votes.keys() <= set(candidates) and 0 < sum(n * n for n in votes.values()) <= credits
    names = _ranking(choice)
    return bool(names) and len(set(names)) == len(names) and set(names) <= set(candidates)


def ranked(
    candidates: Sequence[str],
    credits: int,
    electorate: Mapping[str, int],
    counted: Mapping[str, tuple[str, int]],
) -> Order:
    """The order that follows from readable ballots: voter -> (choice, index)."""
    weighed = [(choice, electorate[voter]) for voter, (choice, _) in counted.items()]
    if credits:
        scores = {c: sum(w * _votes(choice).get(c, 0) for choice, w in weighed) for c in candidates}
    else:
        scores = _schulze(candidates, [(_ranking(choice), weight) for choice, weight in weighed])
    tiers: dict[int, list[str]] = {}
    for candidate in sorted(candidates):
        tiers.setdefault(scores[candidate], []).append(candidate)
    return Order(tuple(tuple(tiers[score]) for score in sorted(tiers, reverse=True)), scores)


def _schulze(candidates: Sequence[str], rankings: Sequence[tuple[Sequence[str], int]]) -> dict[str, int]:
    """Candidate -> how many others it beats by a stronger path. Those a ballot leaves out stand last, level."""
    pairs = [(a, b) for a in candidates for b in candidates if a != b]
    prefer = dict.fromkeys(pairs, 0)
    for names, weight in rankings:
        place = {name: at for at, name in enumerate(names)}
        for a, b in pairs:
            if place.get(a, len(names)) < place.get(b, len(names)):
                prefer[a, b] += weight
    path = {(a, b): n if n > prefer[b, a] else 0 for (a, b), n in prefer.items()}
    for through in candidates:
        for a, b in pairs:
            if through not in (a, b):
                path[a, b] = max(path[a, b], min(path[a, through], path[through, b]))
    return {a: sum(path[a, b] > path[b, a] for b in candidates if a != b) for a in candidates}


def _ranking(choice: str) -> list[str]:
    return choice.removeprefix("rank ").split(" > ") if RANKED.fullmatch(choice) else []


def _votes(choice: str) -> dict[str, int]:
    """Empty when a candidate is named twice or it is no such choice."""
    if not QUADRATIC.fullmatch(choice):
        return {}
    pairs = [pair.split(" ") for pair in choice.removeprefix("credits ").split(", ")]
    found = {name: int(number) for name, number in pairs}
    return found if len(found) == len(pairs) else {}
