"""The auditor's reading of runs and of updates that come after their round: each counts once, in time, or has an end."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from commons.charter import Charter
from governance.fsck_findings import Findings, Rule
from governance.fsck_votes import Votes


@dataclass
class Round:
    number: int
    attempt: int
    charter: Charter
    base: str
    quorum: int
    opened_ms: int
    earliest_ms: int
    """Before this no work for it may have begun: where rounds overlap, the opening of the one before."""
    lease_until_ms: int
    holds: dict[str, int]
    attempts: dict[str, int]
    admitted: set[str] = field(default_factory=set)
    rejected: set[str] = field(default_factory=set)
    left_out: set[str] = field(default_factory=set)

    def hold_id(self, run: str, site: str) -> str:
        attempt = self.attempts[site]
        return f"hold/{run}/{self.number}/{site}" + (f"/{attempt}" if attempt > 1 else "")


@dataclass
class Run:
    name: str
    rounds: int
    state: str
    experts_of: Charter
    """The charter whose experts the state has."""
    momentum: str = ""
    closed: int = 0
    opened_ms: int = 0
    """When its last round was opened; 0 before the first."""
    round: Round | None = None
    carried: dict[str, Round] = field(default_factory=dict)
    """Sites at work on a round that has closed."""
    late: dict[str, Round] = field(default_factory=dict)
    """Sites whose update of a closed round waits for the next close."""
    lasting: set[str] = field(default_factory=set)
    """Holds of closed rounds that may still be open until the next close."""
    evaluated: set[str] = field(default_factory=set)
    licences: dict[tuple[str, int], str] = field(default_factory=dict)
    """(state, round) -> licence of the charter it was made under."""
    finished: bool = False

    def part(self, number: int, site: str) -> Round | None:
        """That round, if it is open or waits for this site."""
        known = (self.round, self.carried.get(site), self.late.get(site))
        return next((found for found in known if found and found.number == number), None)

    def leave(self, found: Round, site: str) -> None:
        """The site's part in a closed round has ended without an update that counts."""
        for under_way in (self.carried, self.late):
            if under_way.get(site) is found:
                del under_way[site]


class LateUpdates:
    """Told by `governance.fsck_rounds` of what concerns sites at work on a closed round."""

    def __init__(self, findings: Findings, votes: Votes) -> None:
        self._findings, self._votes = findings, votes

    def open(self, index: int, run: Run, opened: Round, assigned: Collection[str]) -> None:
        """Who is still at work may stay so in this round, and has no part in it; what waits counts in it."""
        need, charter = self._findings.require, opened.charter
        for site, found in (*run.carried.items(), *run.late.items()):
            fits = opened.number - found.number <= charter.rounds.late_rounds
            fits = fits and found.charter.privacy == charter.privacy
            fits = fits and found.charter.owners == charter.owners
            what = f"opens round {opened.number} for an update of site {site} for round {found.number}, which counts no more"
            need(fits, Rule.ROUND, index, what)
        for site in sorted(run.carried.keys() & assigned):
            what = f"assigns site {site}, which is still at work on round {run.carried[site].number}"
            need(False, Rule.ROUND, index, what)

    def admit(self, index: int, run: Run, found: Round, site: str) -> None:
        """Only once, and only into a round whose charter takes an update that is so late."""
        need, into = self._findings.require, run.closed + 1
        name = f"an update of site {site} for round {found.number}"
        carried = run.carried.pop(site, None) is found
        need(carried, Rule.UPDATE, index, f"admits {name}, at which nobody is at work any more")
        most = (run.round.charter if run.round else self._votes.charter).rounds.late_rounds
        need(
            into - found.number <= most,
            Rule.UPDATE,
            index,
            f"admits {name} into round {into}, which is too late",
        )
        run.late[site] = found

    def close(self, index: int, at_ms: int, run: Run, closed: Round, facts: Mapping[str, Any]) -> None:
        """Every late update that waits is taken, at most as late as the charter says; who may stay at work."""
        need, number, most = self._findings.require, closed.number, closed.charter.rounds.late_rounds
        waiting = {site: found.number for site, found in run.late.items()}
        taken = facts.get("late", {})
        what = f"takes late updates {_listed(taken)} into round {number}, admitted were {_listed(waiting)}"
        need(taken == waiting, Rule.ROUND, index, what)
        old = {site: n for site, n in taken.items() if not 1 <= number - n <= most}
        need(not old, Rule.ROUND, index, f"takes {_listed(old)} into round {number}, which is too late")
        stay = facts.get("carried", [])
        may = bool(most) and number < run.rounds and at_ms < closed.lease_until_ms
        right = not stay or (
            may and set(stay) <= set(facts["missing"]) and not set(stay) & run.carried.keys()
        )
        need(right, Rule.ROUND, index, f"keeps {', '.join(stay)} at work on round {number}, which may not be")
        run.late = {}
        run.carried |= {site: closed for site in stay if site in closed.attempts}
        run.lasting = {
            found.hold_id(run.name, site)
            for site, found in run.carried.items()
            if number + 1 - found.number <= most
        }


def _listed(late: Mapping[str, int]) -> str:
    return ", ".join(f"{site} of round {number}" for site, number in sorted(late.items())) or "none"
