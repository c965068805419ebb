"""kill -9 of a real coordinator, many times, in the middle of real rounds with real sites; then the books are audited.

Every kill is kept in `kills.json` of the work folder with the consortium beside it: interrupted, it goes on there.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from commons.records import Kind, Record
from tests.simulation.auditor import Books, audit, check_promises
from tests.support.real_consortium import AIMS, SITES, Kill, Killer, Real, found, real_consortium

RUN = "run-1"
INNER_STEPS = 2
GRACE_S = 15


@dataclass(frozen=True)
class KillReport:
    kills: int
    aims: dict[str, int]
    """Moment -> kills aimed at it."""
    after: dict[str, int]
    """Kind of the last record that a dead coordinator left -> how often."""
    resumed_s: tuple[float, ...]
    """From each death until the journal grew again, ascending."""
    rounds: int
    records: int
    acknowledged: int
    """Updates that sites were told are admitted."""
    lost_updates: int
    """Acknowledged and not in the journal where it was said, or admitted and left out of their round."""
    double_charges: int
    problems: tuple[str, ...]
    """What the auditor or the journal's own check found; empty when all is well."""


def kill_many(work: Path, kills: int, *, seed: int = 1) -> KillReport:
    """Kill until `kills` are done in `work`, end the run, audit. Done before: audited again.

    Raises AssertionError when a coordinator does not come back or its history shrank.
    """
    with real_consortium(work / "consortium") as real:
        progress = work / "kills.json"
        done = [Kill(**kill) for kill in json.loads(progress.read_text())] if progress.exists() else []
        _set_out(real)
        while sum(kill.deaths for kill in done) < kills:
            killer = Killer(real, seed=1000 * seed + len(done))
            done.append(killer.kill(AIMS[len(done) % len(AIMS)]))
            progress.write_text(json.dumps([asdict(kill) for kill in done]))
        records, problems = end(real)
        return report(done, records, problems, real.acknowledged(RUN))


def report(
    done: Sequence[Kill],
    records: Sequence[Record],
    problems: Sequence[str],
    acknowledged: Mapping[tuple[str, int, str], int],
) -> KillReport:
    """What `kill_many` answers, of these kills and this ended run."""
    found_wrong = list(problems)
    books = Books()
    try:
        books = audit(records)
        check_promises(books, acknowledged)
    except AssertionError as wrong:
        found_wrong.append(str(wrong))
    lost = [key for key, index in acknowledged.items() if books.admitted.get(key) != index]
    lost += [
        (run, number, site)
        for run, number, site in books.admitted
        if (run, number) in books.combined and site not in books.combined[run, number]
    ]
    return KillReport(
        kills=sum(kill.deaths for kill in done),
        aims=dict(Counter(kill.aim for kill in done)),
        after=dict(Counter(kill.after for kill in done).most_common()),
        resumed_s=tuple(sorted(round(kill.resumed_s, 3) for kill in done)),
        rounds=len(books.combined),
        records=len(records),
        acknowledged=len(acknowledged),
        lost_updates=len(set(lost)),
        double_charges=sum(times > 1 for times in books.charged_for.values()),
        problems=tuple(found_wrong),
    )


def end(real: Real) -> tuple[list[Record], list[str]]:
    """Stop the run; the records, and what the coordinator's own totals and the journal's check object to."""
    from commons.identity import Seat
    from commons.views import BudgetsView
    from hansa.chamber import Chamber

    with real.journal() as journal:
        over = any(record.kind is Kind.FINISH for record in journal.records())
    if not over:
        real.hansa("run", "stop", "--home", "home", "--reason", "killed often enough")
    records = real.wait_for("end of the run", lambda seen: any(r.kind is Kind.FINISH for r in seen))
    with Chamber(Seat.load(real.folder / "home" / "operator")) as chamber:
        shown = chamber.read(BudgetsView)
    with real.journal() as journal:
        problems = journal.verify()
    money = audit(records).money
    for budget in shown.budgets:
        said = budget.model_dump()
        ours = {name: amount for name, amount in money.totals(budget.partner).items() if name in said}
        problems += [
            f"{budget.partner}: {name} is {said[name]} to the coordinator, {amount} to the auditor"
            for name, amount in ours.items()
            if said[name] != amount
        ]
    return records, problems


def _set_out(real: Real) -> None:
    """Found the consortium and start its run, or take both up again."""
    if not (real.folder / "home" / "operator" / "seat.toml").exists():
        found(real, inner_steps=INNER_STEPS, grace_s=GRACE_S, quorum=len(SITES))
    else:
        real.start_coordinator()
    real.wait_until(real.serves, "listening coordinator")
    for name in SITES:
        real.start_site(name)
    if not any(record.kind is Kind.RUN for record in real.records()):
        real.hansa("run", "start", "--home", "home", "--seed", "seed", "--run", RUN)
    closed = sum(record.kind is Kind.CLOSE for record in real.records())
    real.wait_for("rounds", lambda seen: sum(r.kind is Kind.CLOSE for r in seen) > closed + 1)
