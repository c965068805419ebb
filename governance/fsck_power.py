"""The auditor's sum of contributions, which weigh ballots where the charter says so."""

from __future__ import annotations

import re
from collections import defaultdict

from commons.ballot_weights import DAY_MS, decayed
from commons.charter import Charter
from commons.records import Record

_ABOUT = b'"type":"contribution'
"""Stands in the canonical JSON of every contribution and its reversal; spares reading the other transfers."""


class Contributions:
    def __init__(self) -> None:
        self._days: dict[str, dict[int, int]] = defaultdict(lambda: defaultdict(int))
        self._work: dict[str, int] = {}
        """Tail of the base hold's id -> the day on which its work was settled."""

    def take(self, record: Record) -> None:
        if _ABOUT not in record.body:
            return
        facts = record.facts
        if facts["type"] == "contribution":
            day = self._work[facts["hold"].removeprefix("hold/")] = record.at_ms // DAY_MS
            self._days[facts["partner"]][day] += facts["amount_micro"]
        else:
            base = re.sub(r"/top[0-9]+$", "", facts["reverses"].removeprefix("settle/"))
            self._days[facts["partner"]][self._work[base]] -= facts["amount_micro"]

    def at(self, charter: Charter, now_ms: int) -> dict[str, int]:
        """Member -> what counts at this time."""
        half_life, today = charter.voting.power.half_life_days, now_ms // DAY_MS
        sums = {
            member: sum(decayed(micro, today - day, half_life) for day, micro in days.items())
            for member, days in self._days.items()
        }
        return {member.name: max(0, sums.get(member.name, 0)) for member in charter.members}
