"""The robust rules are what their papers say, and hold where a mean does not."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from commons.names import SiteId
from commons.privacy.terms import Robust
from orchestrator.combine.distances import Distances
from orchestrator.combine.gate import outliers
from orchestrator.combine.robust import combine_block, needs_distances, shares
from orchestrator.combine.selection import CHUNK, middle_mean

Wide = NDArray[np.float64]

untimed = settings(max_examples=60, deadline=None)


def combined(robust: Robust, updates: Wide, weights: Wide | None = None, *, cuts: int = 1) -> Wide:
    """As the fold does it: a first pass where the rule needs one, then block after block."""
    rows = updates.astype(np.float32)
    n = len(rows)
    share = np.full(n, 1 / n) if weights is None else weights / weights.sum()
    distances = Distances(n)
    blocks = np.array_split(rows, cuts, axis=1)
    if needs_distances(robust):
        for block in blocks:
            distances.add(block)
    counted = shares(robust, share, np.linalg.norm(rows.astype(np.float64), axis=1), distances)
    outs = [np.empty(block.shape[1], np.float32) for block in blocks]
    for block, out in zip(blocks, outs, strict=True):
        combine_block(robust, block.copy(), counted, out)
    return np.concatenate(outs).astype(np.float64)


def mean(updates: Wide) -> Wide:
    return np.asarray(updates.mean(axis=0))


# Written from the papers, one value at a time, with nothing of numpy's but storage.


def naive_trimmed(updates: Wide, faulty: int) -> list[float]:
    return [statistics.fmean(sorted(column)[faulty : len(column) - faulty]) for column in updates.T.tolist()]


def naive_median(updates: Wide) -> list[float]:
    return [statistics.median(column) for column in updates.T.tolist()]


def naive_krum(updates: Wide, faulty: int, kept: int) -> list[float]:
    rows = updates.tolist()
    n = len(rows)
    scores = []
    for i in range(n):
        apart = sorted(
            sum((a - b) ** 2 for a, b in zip(rows[i], rows[j], strict=True)) for j in range(n) if j != i
        )
        scores.append((sum(apart[: n - faulty - 2]), i))
    chosen = [rows[i] for _, i in sorted(scores)[:kept]]
    return [statistics.fmean(column) for column in zip(*chosen, strict=True)]


def naive_centred(updates: Wide, weights: Wide, radius: float, iterations: int) -> list[float]:
    centre = [0.0] * updates.shape[1]
    for _ in range(iterations):
        apart = [
            sum((x - c) ** 2 for x, c in zip(row, centre, strict=True)) ** 0.5 for row in updates.tolist()
        ]
        longest = radius or statistics.median(apart)
        step = [0.0] * len(centre)
        for row, distance, weight in zip(updates.tolist(), apart, weights.tolist(), strict=True):
            factor = weight * (1.0 if distance <= longest else longest / distance)
            step = [s + factor * (x - c) for s, x, c in zip(step, row, centre, strict=True)]
        centre = [c + s for c, s in zip(centre, step, strict=True)]
    return centre


def naive_norm_clip(updates: Wide, weights: Wide, longest: float) -> list[float]:
    rows = updates.tolist()
    norms = [sum(x * x for x in row) ** 0.5 for row in rows]
    longest = longest or statistics.median(norms)
    factors = [
        w * (1.0 if norm <= longest else longest / norm) for w, norm in zip(weights, norms, strict=True)
    ]
    return [sum(f * x for f, x in zip(factors, column, strict=True)) for column in zip(*rows, strict=True)]


def update_sets(low: int, high: int) -> st.SearchStrategy[Wide]:
    values = st.floats(-1e3, 1e3, width=32).map(lambda x: 0.0 if abs(x) < 1e-3 else x)
    shapes = st.tuples(st.integers(low, high), st.integers(1, 12))
    return shapes.flatmap(lambda shape: arrays.arrays(np.float64, shape, elements=values))


def close(found: Wide, wanted: list[float], updates: Wide) -> bool:
    scale = float(np.abs(updates).max()) + 1e-30
    return bool(np.allclose(found / scale, np.array(wanted) / scale, atol=3e-6, rtol=0))


@untimed
@given(update_sets(1, 21), st.data())
def test_trimmed_mean_and_median_are_the_naive_ones(updates: Wide, data: st.DataObject) -> None:
    faulty = data.draw(st.integers(0, (len(updates) - 1) // 2))
    if faulty:
        found = combined(Robust(rule="trimmed_mean", faulty=faulty), updates)
        assert close(found, naive_trimmed(updates, faulty), updates)
    assert close(combined(Robust(rule="median"), updates), naive_median(updates), updates)


@untimed
@given(update_sets(5, 12), st.data())
def test_krum_and_multi_krum_are_the_naive_ones(updates: Wide, data: st.DataObject) -> None:
    n = len(updates)
    faulty = data.draw(st.integers(1, (n - 3) // 2))
    kept = data.draw(st.integers(1, n - faulty))
    updates = np.round(updates)  # whole numbers: scores are exact, so that ties are ties to both
    assert close(
        combined(Robust(rule="krum", faulty=faulty), updates), naive_krum(updates, faulty, 1), updates
    )
    many = Robust(rule="multi_krum", faulty=faulty, kept=kept)
    assert close(combined(many, updates), naive_krum(updates, faulty, kept), updates)
    assert close(
        combined(Robust(rule="multi_krum", faulty=faulty), updates),
        naive_krum(updates, faulty, n - faulty),
        updates,
    )


@untimed
@given(
    update_sets(1, 9),
    st.floats(0.1, 2000),
    st.booleans(),
    st.integers(1, 8),
    st.lists(st.integers(1, 50), min_size=9, max_size=9),
)
def test_the_clipping_rules_are_the_naive_ones(
    updates: Wide, length: float, adaptive: bool, iterations: int, tokens: list[int]
) -> None:
    longest = 0.0 if adaptive else length
    weights = np.array(tokens[: len(updates)], np.float64)
    parts = weights / weights.sum()
    clipped = combined(Robust(rule="norm_clip", clip_norm=longest), updates, weights)
    assert close(clipped, naive_norm_clip(updates, parts, longest), updates)
    centred = Robust(rule="centred_clip", radius=longest, iterations=iterations)
    assert close(
        combined(centred, updates, weights), naive_centred(updates, parts, longest, iterations), updates
    )


def everyone(n: int, faulty: int) -> list[Robust]:
    return [
        Robust(rule="median"),
        Robust(rule="trimmed_mean", faulty=faulty),
        Robust(rule="krum", faulty=faulty),
        Robust(rule="multi_krum", faulty=faulty),
        Robust(rule="centred_clip", iterations=20),
        Robust(rule="norm_clip"),
    ]


RULES = {robust.rule: robust for robust in everyone(9, 2)}


@pytest.mark.parametrize("rule", RULES)
def test_where_a_block_ends_changes_no_choice_and_hardly_a_bit(rule: str) -> None:
    rng = np.random.default_rng(5)
    updates = rng.standard_normal((9, 3 * CHUNK + 17))
    whole = combined(RULES[rule], updates)
    for cuts in (2, 7):
        assert np.allclose(combined(RULES[rule], updates, cuts=cuts), whole, atol=1e-6)
    assert np.array_equal(combined(RULES[rule], updates), whole), "a repeat gives the same bytes"


def test_of_equally_good_updates_krum_takes_the_first_by_name() -> None:
    updates = np.repeat([[1.0, 2.0], [5.0, -1.0]], [6, 1], axis=0)
    distances = Distances(7)
    distances.add(updates.astype(np.float32))
    assert distances.chosen(2, 1) == (0,)
    assert distances.chosen(2, 4) == (0, 1, 2, 3)


def test_distances_of_slices_add_up() -> None:
    rng = np.random.default_rng(1)
    updates = rng.standard_normal((4, 9000)).astype(np.float32)
    parts = [Distances(4), Distances(4)]
    parts[0].add(updates[:, :5000])
    parts[1].add(updates[:, 5000:])
    parts[0].include(parts[1])
    wide = updates.astype(np.float64)
    for i, j in combinations(range(4), 2):
        assert parts[0].squared()[i, j] == pytest.approx(((wide[i] - wide[j]) ** 2).sum(), rel=1e-12)
    assert parts[0].norms() == pytest.approx(np.linalg.norm(wide, axis=1), rel=1e-12)
    share = np.array([0.5, 0.2, 0.0, -1.0])
    apart = [np.linalg.norm(row - share @ wide) for row in wide]
    assert parts[0].to_mean(share) == pytest.approx(apart, rel=1e-12)


@untimed
@given(update_sets(3, 15), st.data())
def test_by_element_the_result_lies_among_the_honest_whatever_the_others_send(
    honest: Wide, data: st.DataObject
) -> None:
    faulty = data.draw(st.integers(1, max(1, (len(honest) - 1))))
    lies = data.draw(
        arrays.arrays(
            np.float64, (faulty, honest.shape[1]), elements=st.sampled_from([-1e30, -1.0, 0.0, 7.0, 1e30])
        )
    )
    updates = np.concatenate([honest, lies])
    if len(honest) <= faulty:
        return
    for robust in (Robust(rule="median"), Robust(rule="trimmed_mean", faulty=faulty)):
        found = combined(robust, updates)
        slack = 1e-5 * np.abs(honest).max()
        assert (found >= honest.min(axis=0) - slack).all() and (found <= honest.max(axis=0) + slack).all()


DIMENSION, SITES, FAULTY = 4000, 9, 2


def honest_updates() -> Wide:
    """Seven sites that agree on a direction, each with noise of its own."""
    rng = np.random.default_rng(11)
    return np.asarray(0.5 + rng.standard_normal((SITES - FAULTY, DIMENSION)))


def flipped(honest: Wide) -> Wide:
    return np.repeat(-20 * honest.mean(axis=0)[None], FAULTY, axis=0)


def enormous(honest: Wide) -> Wide:
    return honest[:FAULTY] * 1e6


def inner_product(honest: Wide) -> Wide:
    """Fall of Empires (arXiv 1903.03936): enough of the negative mean that the plain mean points backwards."""
    return np.repeat(-(SITES - FAULTY) / FAULTY * 1.5 * honest.mean(axis=0)[None], FAULTY, axis=0)


def a_little(honest: Wide) -> Wide:
    """A little is enough (arXiv 1902.06156): within the spread of the honest, all to one side."""
    return np.repeat((honest.mean(axis=0) - 1.2 * honest.std(axis=0))[None], FAULTY, axis=0)


ATTACKS: dict[str, Callable[[Wide], Wide]] = {
    "flipped": flipped,
    "enormous": enormous,
    "inner_product": inner_product,
    "a_little": a_little,
}


def attacked(attack: str) -> tuple[Wide, Wide]:
    honest = honest_updates()
    return np.insert(honest, [2, 5], ATTACKS[attack](honest), axis=0), honest


def spread(honest: Wide) -> float:
    """How far an honest update is from the mean of the honest."""
    return float(np.linalg.norm(honest - mean(honest), axis=1).mean())


ELEMENTWISE_AND_BY_DISTANCE = ("median", "trimmed_mean", "krum", "multi_krum", "centred_clip")


@pytest.mark.parametrize(
    ("rule", "attack"),
    [
        (rule, attack)
        for rule in ELEMENTWISE_AND_BY_DISTANCE
        for attack in ATTACKS
        if (rule, attack) != ("krum", "a_little")
    ],
)
def test_the_result_is_no_further_from_the_honest_mean_than_an_honest_update(rule: str, attack: str) -> None:
    updates, honest = attacked(attack)
    found = combined(RULES[rule], updates)
    assert np.linalg.norm(found - mean(honest)) <= 1.05 * spread(honest)
    assert found @ mean(honest) > 0, "it goes where the honest go"


def test_krum_takes_an_attacker_who_stays_within_the_spread() -> None:
    """What that attack is for: Krum is bound to one update, which is then theirs, 1.2 deviations off."""
    updates, honest = attacked("a_little")
    assert combined(RULES["krum"], updates) == pytest.approx(updates[2], abs=1e-6)
    assert np.linalg.norm(updates[2] - mean(honest)) <= 1.25 * spread(honest)


@pytest.mark.parametrize("attack", ["flipped", "enormous"])
def test_a_plain_mean_is_moved_further_than_any_honest_update(attack: str) -> None:
    updates, honest = attacked(attack)
    assert np.linalg.norm(mean(updates) - mean(honest)) > 1.05 * spread(honest)


def test_a_plain_mean_is_turned_around_by_the_inner_product_attack_and_robust_rules_are_not() -> None:
    updates, honest = attacked("inner_product")
    assert mean(updates) @ mean(honest) < 0
    for rule in ELEMENTWISE_AND_BY_DISTANCE:
        found = combined(RULES[rule], updates)
        cosine = found @ mean(honest) / np.linalg.norm(found) / np.linalg.norm(mean(honest))
        assert cosine > 0.3, rule


@pytest.mark.parametrize("attack", ["flipped", "enormous", "inner_product"])
def test_multi_krum_leaves_the_attackers_out(attack: str) -> None:
    updates, honest = attacked(attack)
    assert combined(RULES["multi_krum"], updates) == pytest.approx(mean(honest), abs=1e-5)


def test_norm_clipping_bounds_what_the_enormous_do_and_no_more() -> None:
    updates, honest = attacked("enormous")
    found = combined(RULES["norm_clip"], updates)
    longest = float(np.median(np.linalg.norm(updates, axis=1)))
    assert np.linalg.norm(found) <= longest * (1 + 1e-6)
    assert np.linalg.norm(found - mean(honest)) <= 1.05 * spread(honest)
    turned = combined(RULES["norm_clip"], attacked("flipped")[0])
    assert np.linalg.norm(turned - mean(honest)) <= 2 * FAULTY / SITES * longest * 1.05


def test_krum_does_with_what_the_gate_left() -> None:
    """Four were enough for nothing faulty; of two, none can be told apart."""
    rng = np.random.default_rng(2)
    near = rng.standard_normal((3, 50)) * 0.1 + 1
    four = np.concatenate([near, near[:1] - 9])
    assert np.abs(combined(Robust(rule="krum"), four) - 1).max() < 1
    pair = near[:2]
    assert combined(Robust(rule="krum"), pair) == pytest.approx(pair.mean(axis=0), abs=1e-6)
    assert combined(Robust(rule="multi_krum"), near[:1]) == pytest.approx(near[0], abs=1e-6)
    assert combined(Robust(rule="trimmed_mean", faulty=4), near) == pytest.approx(
        np.median(near, axis=0), abs=1e-6
    )


def test_a_median_leaves_no_more_memory_than_a_chunk() -> None:
    import tracemalloc

    rows = np.ones((8, 1 << 18), np.float32)
    out = np.empty(1 << 18, np.float32)
    middle_mean(rows.copy(), 3, out)
    work = rows.copy()
    tracemalloc.start()
    middle_mean(work, 3, out)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * CHUNK + (64 << 10)


def named(**norms: float) -> dict[SiteId, float]:
    return {SiteId(name): norm for name, norm in norms.items()}


@pytest.mark.parametrize(
    ("norms", "out"),
    [
        ({}, ()),
        (named(a=1e30), ()),
        (named(a=1.0, b=999.0), ()),
        (named(a=1.0, b=1001.0), ("b",)),
        (named(a=1.0, b=2.0, c=1e6), ("c",)),
        (named(c=1e6, b=2.0, a=1e7, d=1.0, e=3.0), ("a", "c")),
        (named(a=0.0, b=0.0, c=5.0), ()),
        (named(a=0.0, b=1.0, c=1e-4), ("b",)),
    ],
)
def test_the_gate_rejects_what_is_far_larger_than_the_median(
    norms: dict[SiteId, float], out: tuple[Any, ...]
) -> None:
    assert outliers(norms, 1000.0) == out
