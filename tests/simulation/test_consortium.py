"""Whole runs of a random consortium with faults, each from a seed; then count what must be conserved.

`make simulate SEEDS=10000` runs many on two cores; a failing seed is printed and replays with `make simulate SEED=17`.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from commons.charter import Charter
from commons.records import Kind
from tests.simulation.cast import random_charter
from tests.simulation.checking import checked
from tests.simulation.world import Faults, World, facts

ONE = os.environ.get("SEED")
SEEDS = [int(ONE)] if ONE else range(int(os.environ.get("SEEDS", "40")))
STEPS = {
    "commons/disk.py": {"fsync"},
    "commons/identity.py": {"fsync", "replace"},
    "commons/spare.py": {"replace"},
    "commons/states/local.py": {"replace", "unlink"},
    "governance/consortium.py": {"committed"},
    "governance/journal/rows.py": {"statement"},
    "governance/journal/store.py": {"commit"},
    "orchestrator/spool.py": {"pwrite", "unlink", "rmtree"},
}
"""Where the coordinator makes something durable while rounds go on, and how."""
KINDS = (
    "grant hold settle release expire contribution rounding breakage dispute dismiss reversal contribution-reversal "
    "convert refused execution ruling rejection period countersign pledge pledge-paid pledge-returned"
)


@pytest.fixture
def folder() -> Iterator[Path]:
    """In memory where there is one: a simulated crash needs no real disk."""
    memory = Path("/dev/shm")
    made = Path(tempfile.mkdtemp(prefix="hansa-sim-", dir=memory if memory.is_dir() else None))
    yield made
    shutil.rmtree(made)


@pytest.mark.parametrize("seed", SEEDS, ids=lambda seed: f"seed-{seed}")
def test_nothing_is_lost_and_nothing_is_charged_twice_whatever_fails(seed: int, folder: Path) -> None:
    checked(World.of_seed(folder, seed))


def test_without_faults_every_round_closes_with_every_site(folder: Path) -> None:
    made = random_charter(1)
    rich = Charter.model_validate(
        made.model_dump()
        | {"members": tuple(m.model_dump() | {"budget_micro": 10**12} for m in made.members)}
    )
    world = World(folder, rich, 1, Faults.none())
    records, _ = checked(world)
    closed = list(facts(records, "close"))
    assert len(closed) == rich.learning.rounds
    assert all(sorted(c["contributors"]) == sorted(s.name for s in rich.sites) for c in closed)
    assert (world.crashes, world.troubles) == (0, 0)
    assert len(world.acknowledged) == len(closed) * len(rich.sites)


def test_the_same_seed_is_the_same_history(folder: Path) -> None:
    first = World(folder / "a", random_charter(3), 3, Faults()).run()
    second = World(folder / "b", random_charter(3), 3, Faults()).run()
    assert [r.leaf for r in first] == [r.leaf for r in second]


def test_the_worlds_die_everywhere_and_see_everything_that_can_happen_to_money(folder: Path) -> None:
    """What the seeds are worth: every durable step was some coordinator's last, every kind of transfer came about."""
    steps = {(module, step) for module, steps in STEPS.items() for step in steps}
    kinds = set(KINDS.split())
    for seed in range(10_000, 10_100):
        world = World(folder / str(seed), random_charter(seed), seed, Faults(coordinator_crash=0.05))
        kinds -= {r.facts["type"] if r.kind is Kind.TRANSFER else r.kind.value for r in world.run()}
        steps -= {tuple(step.split(" ")[::2]) for step in (*world.storage.died, *world.storage.filled)}
        if not steps | kinds:
            return
    raise AssertionError(f"none of a hundred worlds saw {sorted(steps)} {sorted(kinds)}")
