"""A site whose model's experts changed between two rounds: what it keeps goes on under new indices, to the bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from commons.experts.map import ExpertMap, Kind
from commons.names import ExpertId, SiteId
from tests.support.parts import put_together, take_apart
from tests.unit.test_trainer import (
    LEARNING,
    MAP,
    MODEL,
    OWNERS,
    State,
    corpora,
    ignore,
    start,
    trainer_at,
)
from workers.residual import Residual, ResidualWriter
from workers.trainer import Trainer

__all__ = ["corpora", "trainer_at"]
LEAN = LEARNING.model_copy(update={"routing": "lean"})
BERLIN, OSLO = SiteId("berlin"), SiteId("oslo")


def owners(*experts: str, **given: str) -> ExpertMap:
    known = {str(e): s for e, s in OWNERS.items()} | {e: SiteId(s) for e, s in given.items()}
    return ExpertMap.from_owners(MODEL, {ExpertId(e): known[e] for e in experts})


CHANGED = {
    "others first": owners("e2", "e3", "e0", "e1"),
    "one of the others retired": owners("e2", "e0", "e1"),
    "one of the others' added before": owners("e9", "e0", "e1", "e2", "e3", e9="oslo"),
}


def moved(state: State, to: ExpertMap, origin: ExpertMap = MAP) -> State:
    trunk, parts = take_apart(origin, state)
    return put_together(to, trunk, parts | {ExpertId("e9"): parts[ExpertId("e2")]})


@pytest.mark.parametrize("case", CHANGED)
def test_lean_training_goes_on_as_if_nothing_had_changed(
    trainer_at: Callable[..., Trainer], case: str
) -> None:
    """Weights, moments and step counts of its own experts and of its rows are found again, whatever their index.

    To the bit where there are as many experts as before; a product of another width rounds otherwise.
    """
    one, other, to = trainer_at("a", learning=LEAN), trainer_at("b", learning=LEAN), CHANGED[case]
    for trainer in (one, other):
        first = trainer.train_round(round_number=1, base=start(), learning=LEAN, on_step=ignore)
    base = start() | first.experts
    same = one.train_round(round_number=2, base=base, learning=LEAN, on_step=ignore)
    again = trainer_at("b", learning=LEAN, expert_map=to)
    went = again.train_round(round_number=2, base=moved(base, to), learning=LEAN, on_step=ignore)
    apart = 0.0 if len(to.experts) == len(MAP.experts) else 1e-5
    assert went.loss == pytest.approx(same.loss, abs=apart)
    before = take_apart(
        MAP, start() | same.experts | {n: start()[n] + d for n, d in same.trunk_delta.items()}
    )
    based = moved(base, to)
    after = take_apart(to, based | went.experts | {n: based[n] + d for n, d in went.trunk_delta.items()})
    assert all(np.allclose(after[0][n], before[0][n], rtol=0, atol=apart) for n in before[0])
    for expert in MAP.experts_of(BERLIN):
        of_expert = before[1][expert].items()
        assert all(np.allclose(after[1][expert][n], a, rtol=0, atol=apart) for n, a in of_expert), expert


def test_an_expert_that_came_begins_as_the_base_has_it(trainer_at: Callable[..., Trainer]) -> None:
    given = owners("e0", "e1", "e2", "e3", e2="berlin")
    first = trainer_at("a", learning=LEAN).train_round(
        round_number=1, base=start(), learning=LEAN, on_step=ignore
    )
    still = LEAN.model_copy(update={"learning_rate": 1e-30, "weight_decay": 0.0})
    held = trainer_at("a", learning=still, expert_map=given).train_round(
        round_number=2, base=start() | first.experts, learning=still, on_step=ignore
    )
    new = [s.name for s in given.owned_by(BERLIN) if s.expert == "e2"]
    assert new and all(np.array_equal(held.experts[n], start()[n]) for n in new)
    own = [s.name for s in MAP.owned_by(BERLIN)]
    assert not all(np.array_equal(held.experts[n], start()[n]) for n in own), "its others are as it left them"


def test_an_expert_that_was_away_and_comes_back_is_as_the_base_has_it(
    trainer_at: Callable[..., Trainer],
) -> None:
    """Between the two rounds another site trained it; what this one remembers of it is out of date."""
    trainer_at("a", learning=LEAN).train_round(round_number=1, base=start(), learning=LEAN, on_step=ignore)
    still = LEAN.model_copy(update={"learning_rate": 1e-30, "weight_decay": 0.0})
    back = owners("e1", "e0", "e2", "e3")
    base = moved(start(), back)
    held = trainer_at("a", learning=still, expert_map=back).train_round(
        round_number=3, base=base, learning=still, on_step=ignore
    )
    assert all(np.array_equal(held.experts[s.name], base[s.name]) for s in back.owned_by(BERLIN))


@pytest.mark.parametrize("case", CHANGED)
def test_what_a_codec_dropped_stays_with_its_row(tmp_path: Path, case: str) -> None:
    router = next(s for s in MAP.slices if s.kind is Kind.ROUTER and len(s.shape) == 2)
    width, to = router.shape[1], CHANGED[case]
    writer = ResidualWriter(tmp_path, expert_map=MAP)
    left = np.arange(router.size, dtype=np.float32)
    writer.add(router.name, left)
    writer.add("model.norm.weight", left[:width])
    own = next(s for s in MAP.slices if s.expert == "e1")
    writer.add(own.name, left[:width] + 1)
    writer.close()
    found = Residual(tmp_path, to)
    e1 = found.read(own.name.replace(".experts.1.", f".experts.{to.index(ExpertId('e1'))}."), 0, width)
    assert e1 is not None and np.array_equal(e1, left[:width] + 1), "where experts are combined too"
    size = width * len(to.experts)
    parts = [found.read(router.name, first, min(7, size - first)) for first in range(0, size, 7)]
    rows = np.concatenate([p for p in parts if p is not None]).reshape(-1, width)
    for row, expert in zip(rows, to.experts, strict=True):
        known = (
            left.reshape(-1, width)[MAP.index(expert)]
            if expert in MAP.owners
            else np.zeros(width, np.float32)
        )
        assert np.array_equal(row, known), expert
    norm = found.read("model.norm.weight", 0, width)
    assert norm is not None and np.array_equal(norm, left[:width])
    assert json.loads((tmp_path / "residual.json").read_text())["experts"] == list(MAP.experts)
