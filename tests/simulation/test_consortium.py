"""Whole runs of a random consortium with faults, each from a seed; then count what must be conserved.

`make simulate SEEDS=10000` runs many; a failing seed is in the test's name and replays with ``-k "seed-17"``.
"""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from commons.charter import Charter
from tests.simulation.auditor import audit, check_promises
from tests.simulation.world import Faults, World, facts
from tests.support.chamber import charter, signer

SEEDS = int(os.environ.get("SEEDS", "40"))


@pytest.fixture
def folder() -> Iterator[Path]:
    """In memory where there is one: a simulated crash needs no real disk."""
    memory = Path("/dev/shm")
    made = Path(tempfile.mkdtemp(prefix="hansa-sim-", dir=memory if memory.is_dir() else None))
    yield made
    shutil.rmtree(made)


def random_charter(seed: int) -> Charter:
    """Two to five members, one to four sites, budgets from too little to plenty (a site-round costs some 700)."""
    dice = random.Random(f"charter {seed}")
    members = [f"m{i}" for i in range(dice.randrange(2, 6))]
    sites = [f"s{i}" for i in range(dice.randrange(1, 5))]

    return charter(
        members=tuple(
            {"name": m, "key": signer(m).vkey, "budget_micro": dice.choice((100, 2_000, 10**6))}
            for m in members
        ),
        sites=tuple(
            {
                "name": s,
                "partner": dice.choice(members),
                "payer": dice.choice(members),
                "domain": f"d{s}",
                "experts": (f"{s}-a", f"{s}-b"),
                "device": "cpu",
                "data_statement": "Made up.",
            }
            for s in sites
        ),
        model={
            "family": "glm4_moe",
            "config": {
                "hidden_size": 8,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "moe_intermediate_size": 8,
                "num_experts_per_tok": 2,
                "vocab_size": 256,
            },
        },
        learning__rounds=dice.randrange(1, 6),
        learning__inner_steps=2,
        learning__batch_size=65_536,
        rounds={
            "quorum": dice.randrange(1, len(sites) + 1),
            "grace_s": dice.randrange(1, 20),
            "lease_s": dice.choice((4, 8, 30)),
        },
        voting={"window_s": dice.randrange(1, 60)},
    )


@pytest.mark.parametrize("seed", range(SEEDS), ids=lambda seed: f"seed-{seed}")
def test_nothing_is_lost_and_nothing_is_charged_twice_whatever_fails(seed: int, folder: Path) -> None:
    world = World(folder, random_charter(seed), seed, Faults())
    records = world.run()
    books = audit(records)
    check_promises(books, world.acknowledged)


def test_without_faults_every_round_closes_with_every_site(folder: Path) -> None:
    none = Faults(drop=0, repeat=0, reply_lost=0, site_crash=0, coordinator_crash=0, clock_jump=0)
    made = random_charter(1)
    rich = Charter.model_validate(
        made.model_dump()
        | {"members": tuple(m.model_dump() | {"budget_micro": 10**12} for m in made.members)}
    )
    world = World(folder, rich, 1, none)
    records = world.run()
    closed = list(facts(records, "close"))
    assert len(closed) == rich.learning.rounds
    assert all(sorted(c["contributors"]) == sorted(s.name for s in rich.sites) for c in closed)  # type: ignore[call-overload]
    assert world.crashes == 0 and len(world.acknowledged) == len(closed) * len(rich.sites)


def test_the_same_seed_is_the_same_history(folder: Path) -> None:
    first = World(folder / "a", random_charter(3), 3, Faults()).run()
    second = World(folder / "b", random_charter(3), 3, Faults()).run()
    assert [r.leaf for r in first] == [r.leaf for r in second]
