"""Real processes killed without warning: a coordinator and a site, in the middle of rounds with real training."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.ledger_parts.kills import kill_many
from commons.records import Kind
from tests.simulation.auditor import audit, check_promises
from tests.support.real_consortium import SITES, Real, contributors, facts, found, real_consortium

KILLS = 3
"""`hansa bench ledger` kills at fifty moments and more."""
pytestmark = [pytest.mark.slow, pytest.mark.ray]


@pytest.fixture
def real(tmp_path: Path) -> Iterator[Real]:
    with real_consortium(tmp_path) as consortium:
        yield consortium


def test_a_run_survives_the_death_of_its_coordinator_and_of_a_site(real: Real) -> None:
    found(real, inner_steps=20, grace_s=3)
    for name in SITES:
        real.start_site(name)
    real.hansa("run", "start", "--home", "home", "--seed", "seed")

    real.wait_for("second round", lambda seen: len(facts(seen, Kind.ROUND)) == 2)
    real.kill("coordinator")
    before = real.records()
    real.start_coordinator()
    records = real.wait_for("third round", lambda seen: len(facts(seen, Kind.ROUND)) >= 3)
    assert [r.leaf for r in records[: len(before)]] == [r.leaf for r in before], "history only grows"
    assert contributors(records)[1] == ["alder-site", "birch-site"], "no work was lost"

    open_round = len(facts(records, Kind.ROUND))
    real.kill("birch")
    records = real.wait_for("close", lambda seen: contributors(seen)[-1] == ["alder-site"])
    assert all(len(both) == 2 for both in contributors(records)[: open_round - 1]), "quorum and grace"
    real.start_site("birch")
    real.wait_for("round with both", lambda seen: len(contributors(seen)[-1]) == 2)
    real.hansa("run", "stop", "--home", "home", "--reason", "seen enough")
    records = real.wait_for("end of the run", lambda seen: bool(facts(seen, Kind.FINISH)))

    closed = facts(records, Kind.CLOSE)
    assert [c["round"] for c in closed] == list(range(1, len(closed) + 1))
    assert facts(records, Kind.FINISH)[0]["phase"] == "stopped"
    books = audit(records)
    check_promises(books, real.acknowledged("run-1"))
    assert set(books.charged_for.values()) == {1}
    real.hansa("journal", "verify", "--home", "home")


def test_a_coordinator_killed_again_and_again_loses_nothing_and_charges_nothing_twice(tmp_path: Path) -> None:
    seen = kill_many(tmp_path, KILLS)
    assert seen.kills >= KILLS
    assert (seen.lost_updates, seen.double_charges, seen.problems) == (0, 0, ())
    assert seen.acknowledged > 0 and seen.rounds > 0
