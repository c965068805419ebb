"""The trainer where a round exchanges a part of the model, and where it begins before the last exchange is here.

What a site has trained is never lost, deltas are against what all have, and neither a killed process nor steps made ahead
of the base change a byte.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from commons.clock import SystemClock
from commons.experts.fragments import due
from commons.experts.map import ExpertMap, Kind
from commons.learning import Learning
from commons.names import SiteId
from tests.unit.test_trainer import MAP, MODEL, OWNERS, State, ignore, same, start, stop_after
from workers.data import Corpus
from workers.gauge import Gauge
from workers.rounds import RoundResult
from workers.trainer import Trainer

LEARNING = Learning(
    rounds=5, inner_steps=3, batch_size=2, sequence_length=16, learning_rate=0.01, routing="lean", fragments=2
)
ALONE = ExpertMap.from_owners(MODEL, dict.fromkeys(OWNERS, SiteId("berlin")))
SHARED = {s.name for s in MAP.shared()}


def learning(**changes: Any) -> Learning:
    return LEARNING.model_copy(update=changes)


@pytest.fixture
def trainer_at(tmp_path: Path) -> Callable[..., Trainer]:
    def make(home: str, expert_map: ExpertMap = MAP) -> Trainer:
        text = tmp_path / "berlin.txt"
        text.write_text("\n\n".join(f"berlin says {i * i} times that it is number {i}" for i in range(200)))
        return Trainer(
            model=MODEL, expert_map=expert_map, site=SiteId("berlin"), learning=LEARNING,
            corpus=Corpus.load(text, sequence_length=16), public=None, home=tmp_path / home,
        )  # fmt: skip

    return make


def round_of(trainer: Trainer, number: int, base: State, of: Learning = LEARNING, **more: Any) -> RoundResult:
    return trainer.train_round(
        **{"round_number": number, "base": base, "learning": of, "on_step": ignore} | more
    )


def combined(base: State, result: RoundResult, elsewhere: float = 0.0) -> State:
    """What others sent as well moves every slice of the round by `elsewhere`."""
    trunk = {n: base[n] + d + np.float32(elsewhere) for n, d in result.trunk_delta.items()}
    return base | trunk | result.experts


def test_an_update_is_of_what_is_due_and_against_what_all_have(trainer_at: Callable[..., Trainer]) -> None:
    trainer, base = trainer_at("a"), start()
    plain = round_of(trainer_at("plain"), 1, base, learning(fragments=1))
    first = round_of(trainer, 1, base)
    assert first.trunk_delta.keys() == SHARED & due(MAP, LEARNING, 1)
    assert all(np.array_equal(d, plain.trunk_delta[n]) for n, d in first.trunk_delta.items())
    base = combined(base, first, elsewhere=0.01)
    second = round_of(trainer, 2, base)
    assert second.trunk_delta.keys() == SHARED & due(MAP, LEARNING, 2)
    earlier = {n: plain.trunk_delta[n] for n in second.trunk_delta}
    grown = [n for n in earlier if np.abs(second.trunk_delta[n]).sum() > np.abs(earlier[n]).sum()]
    assert len(grown) > len(earlier) / 2, "two rounds' steps are in it"
    anew = round_of(trainer_at("anew"), 2, base)
    assert not same(anew, second), "who joins begins at what all have"


@pytest.mark.parametrize("overlap", [0, 2])
@pytest.mark.parametrize("turns", [(2, 2, 2, 2, 2), (1, 3, 3, 2, 2), (2, 1, 4, 1, 3)])
def test_of_one_site_alone_nothing_is_lost_however_the_members_vote(
    trainer_at: Callable[..., Trainer], turns: tuple[int, ...], overlap: int
) -> None:
    """What was not exchanged goes on, and so do steps made meanwhile: the last round's state is that of plain training."""
    base, plain = start(), start()
    streaming, steady = trainer_at("streaming", ALONE), trainer_at("steady", ALONE)
    for number, fragments in enumerate(turns, 1):
        of = learning(fragments=fragments, overlap_steps=overlap)
        base = combined(base, round_of(streaming, number, base, of))
        plain = combined(plain, round_of(steady, number, plain, learning(fragments=1)))
    for name, array in plain.items():
        assert np.allclose(base[name], array, atol=1e-5), name


@pytest.mark.parametrize("overlap", [0, 2])
def test_of_what_a_site_owns_nothing_is_lost_in_rounds_that_do_not_exchange_it(
    trainer_at: Callable[..., Trainer], overlap: int
) -> None:
    """The coordinator has a site's experts as they were exchanged last; the site goes on with its own."""
    of, base, plain = learning(fragments=1, owned_every=3, overlap_steps=overlap), start(), start()
    resting, steady = trainer_at("resting", ALONE), trainer_at("steady", ALONE)
    own = [s.name for s in ALONE.slices if s.kind is Kind.EXPERT]
    for number in range(1, LEARNING.rounds + 1):
        result, before = round_of(resting, number, base, of), base
        base = base | {n: a for n, a in combined(base, result).items() if n in due(ALONE, of, number)}
        assert all((base[n] is before[n]) == (number not in (3, 5)) for n in own)
        plain = combined(plain, round_of(steady, number, plain, learning(fragments=1)))
    for name, array in plain.items():
        assert np.allclose(base[name], array, atol=1e-5), name


@pytest.mark.parametrize("changes", [{}, {"fragments": 1, "owned_every": 2}], ids=["fragments", "owned"])
@pytest.mark.parametrize("overlap", [0, 2])
def test_a_killed_site_ends_at_the_same_bytes(
    trainer_at: Callable[..., Trainer], overlap: int, changes: dict[str, int]
) -> None:
    of, seen = learning(overlap_steps=overlap, **changes), list[list[RoundResult]]()
    for home, fresh in (("steady", False), ("killed", True)):
        trainer, base, results = trainer_at(home), start(), list[RoundResult]()
        for number in (1, 2, 3):
            if fresh:
                with pytest.raises(InterruptedError):
                    round_of(trainer, number, base, of, on_step=dying)
                trainer = trainer_at(home)
            elif overlap:
                ahead(trainer, number, of)
            results.append(round_of(trainer, number, base, of))
            base = combined(base, results[-1], elsewhere=0.01)
        seen.append(results)
    assert all(same(a, b) for a, b in zip(*seen, strict=True))


def dying(step: int, loss: float) -> None:
    if step == 2:
        raise InterruptedError


def ahead(trainer: Trainer, number: int, of: Learning) -> list[int]:
    steps: list[int] = []
    gauge = Gauge(SystemClock(), "cpu/berlin/berlin")
    trainer.ahead(round_number=number, learning=of, on_step=lambda step, _: steps.append(step), gauge=gauge)
    return steps


def test_steps_made_ahead_are_made_once_and_only_under_the_terms_that_hold(
    trainer_at: Callable[..., Trainer],
) -> None:
    of, base, trainer = learning(overlap_steps=2), start(), trainer_at("a")
    assert ahead(trainer, 1, of) == [], "the first round has nothing to begin from"
    base = combined(base, round_of(trainer, 1, base, of))
    made: list[int] = []
    assert ahead(trainer, 2, of) == [1, 2]
    round_of(trainer, 2, base, of, on_step=lambda step, _: made.append(step))
    assert made == [3]
    voted = learning(overlap_steps=2, learning_rate=0.02)
    base = combined(base, round_of(trainer_at("a"), 2, base, of))
    trainer = trainer_at("a")
    assert ahead(trainer, 3, of) == [1, 2]
    made.clear()
    result = round_of(trainer, 3, base, voted, on_step=lambda step, _: made.append(step))
    assert made == [1, 2, 3]
    assert same(result, round_of(trainer_at("a"), 3, base, voted))


def test_what_was_made_ahead_outlives_a_look_at_another_state(trainer_at: Callable[..., Trainer]) -> None:
    of, base, results, made = learning(overlap_steps=2), start(), list[RoundResult](), list[int]()
    for home in ("undisturbed", "asked"):
        trainer = trainer_at(home)
        after = combined(base, round_of(trainer, 1, base, of))
        ahead(trainer, 2, of)
        if home == "asked":
            trainer.evaluate(base, trainer._corpus)
        made.clear()
        results.append(round_of(trainer, 2, after, of, on_step=lambda step, _: made.append(step)))
        assert made == [3]
    assert same(*results)


def test_a_state_that_was_taken_back_is_taken_whole(trainer_at: Callable[..., Trainer]) -> None:
    of, base = learning(overlap_steps=2, fragments=1), start()
    trainer, other = trainer_at("a"), trainer_at("b")
    round_of(trainer, 1, base, of)
    ahead(trainer, 2, of)
    back = round_of(trainer, 2, base, of)
    round_of(other, 1, base, learning(fragments=1))
    plain = round_of(other, 2, base, learning(fragments=1))
    assert all(np.array_equal(d, plain.trunk_delta[n]) for n, d in back.trunk_delta.items())


def test_a_round_cut_short_before_it_took_the_exchange_in_takes_it_in(
    trainer_at: Callable[..., Trainer],
) -> None:
    of, base, trainer = learning(overlap_steps=2, fragments=1), start(), trainer_at("a")
    base = combined(base, round_of(trainer, 1, base, of), elsewhere=10.0)
    short = round_of(trainer, 2, base, of, on_step=stop_after(1))
    assert short.steps == 1
    for part in (s for s in MAP.shared() if not s.name.endswith("e_score_correction_bias")):
        delta = short.trunk_delta[part.name]
        trained = delta[:2] if part.kind is Kind.ROUTER else delta
        assert 0 < np.abs(trained).max() < 0.1, f"{part.name} moved by its one step, and not back"
        assert part.kind is not Kind.ROUTER or not delta[2:].any(), "rows of absent experts are the base's"
