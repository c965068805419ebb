"""Combining masked updates: the mean of the survivors to the fixed point's precision, the same bits in any order."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np

from commons.codec import encode
from commons.experts.map import ExpertMap, Kind
from commons.learning import Outer
from commons.names import SiteId
from commons.states import StateStore
from commons.updates import lay_out
from orchestrator.combine import Contribution, Opening, Unmoved, combine
from tests.support.consortium import charter, exchange, seed_state
from tests.support.masked_rounds import Crowd, good
from tests.support.updates import UpdateInMemory
from workers.seal import Masking

MAP = ExpertMap.from_charter(charter())
SLICES = {part.name: number for number, part in enumerate(MAP.shared())}
OUTER = Outer(learning_rate=1.0)


def delta(site: str, size: int) -> np.ndarray:
    return (np.random.default_rng(sum(site.encode())).standard_normal(size) * 0.05).astype(np.float32)


def opened(lost: str) -> tuple[list[Contribution], Opening, list[str]]:
    """Five sites mask, one is lost after it dealt, the others open the sum."""
    crowd = Crowd().announce().deal()
    made = []
    for site in [name for name in crowd.names if name != lost]:
        how = Masking(crowd.fixed_point, good(crowd.sites[site].masker(crowd.dealt)), SLICES)
        parts = []
        for part in MAP.uplink(SiteId(site)):
            assert part.kind is not Kind.EXPERT
            data, _ = how.frame(part.name, 0, delta(site + part.name, part.size), None)
            parts.append((part.name, "masked", part.shape, data))
        manifest, payload = lay_out(parts)
        made.append(Contribution(SiteId(site), 1, UpdateInMemory(manifest, payload)))
        assert crowd.coordinator.take_masked(site, crowd.sites[site].bound.deals or "") is None
        crowd.masked[site] = []
    crowd.survivors = good(crowd.coordinator.close_masked())
    streams = good(crowd.agree().reveal().coordinator.close_reveals())
    return made, Opening(streams, crowd.fixed_point), list(crowd.masked)


def test_the_sum_of_masked_updates_is_their_mean_in_any_order_and_number_of_threads(tmp_path: Path) -> None:
    made, opening, survivors = opened("site-03")
    assert len(survivors) == 4
    store, base = StateStore(tmp_path), seed_state(charter())
    found = {
        combine(
            store, base=store.save(base), momentum=None, exchange=exchange(MAP, outer=OUTER),
            contributions=order, rule=opening, threads=threads,
        )
        for threads, order in itertools.product((1, 2, 4), (made, made[::-1]))
    }  # fmt: skip
    [done] = found
    state = store.load(done.state)
    for part in MAP.shared():
        mean = np.mean([delta(site + part.name, part.size) for site in survivors], axis=0)
        moved = (state[part.name] - base[part.name]).reshape(-1)
        np.testing.assert_allclose(moved, mean, atol=3e-7)


def test_one_masked_update_alone_says_nothing(tmp_path: Path) -> None:
    [first, *_], _, _ = opened("site-03")
    update = first.update
    assert isinstance(update, UpdateInMemory)
    words = np.frombuffer(update.payload, "<u4")
    assert abs(words.mean() / 2**32 - 0.5) < 0.02 and abs(np.corrcoef(words[:-1], words[1:])[0, 1]) < 0.05


def test_a_lost_sum_leaves_shared_slices_and_their_momentum_and_moves_experts(tmp_path: Path) -> None:
    store, base = StateStore(tmp_path), seed_state(charter())
    outer = Outer(learning_rate=0.5, momentum=0.9)
    deltas = {part.name: np.full(part.shape, 0.01, np.float32) for part in MAP.uplink(SiteId("alder"))}
    manifest, payload = lay_out((n, "fp32", d.shape, encode("fp32", d)) for n, d in deltas.items())
    alder = Contribution(SiteId("alder"), 1, UpdateInMemory(manifest, payload))
    first = combine(
        store,
        base=store.save(base),
        momentum=None,
        exchange=exchange(MAP, outer=outer),
        contributions=[alder],
    )
    done = combine(
        store, base=first.state, momentum=first.momentum, exchange=exchange(MAP, outer=outer),
        contributions=[alder], rule=Unmoved(),
    )  # fmt: skip
    assert (done.momentum, done.moved) == (first.momentum, False)
    before, after = store.load(first.state), store.load(done.state)
    for part in MAP.slices:
        stays = part.kind is not Kind.EXPERT or part.expert != "alder-0"
        assert np.array_equal(before[part.name], after[part.name]) is stays
