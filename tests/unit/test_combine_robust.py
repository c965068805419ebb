"""Combining by the charter's robust rules: one site that sends anything moves the model no further than honest ones do."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from commons.codec import encode
from commons.experts.map import ExpertMap, Kind
from commons.learning import Codec, Outer
from commons.names import SiteId
from commons.privacy.terms import Robust, Rule
from commons.states import StateStore
from commons.updates import lay_out
from orchestrator.combine import Contribution, combine
from tests.support.consortium import charter, exchange, seed_state
from tests.support.updates import UpdateInMemory

MAP = ExpertMap.from_charter(charter())
SHAPES = {s.name: s.shape for s in MAP.slices}
SHARED = [s.name for s in MAP.slices if s.kind is not Kind.EXPERT]
HONEST = ("alder", "birch", "cedar", "elm", "fir", "hazel")
RULES: tuple[Rule, ...] = get_args(Rule)


def honest(site: str) -> dict[str, np.ndarray]:
    """A step all agree on and noise of its own, as sites with other data send it."""
    own = np.random.default_rng(sum(site.encode()))
    return {
        s.name: (0.01 + 0.002 * own.standard_normal(s.shape)).astype(np.float32)
        for s in MAP.uplink(SiteId(site))
    }


def sends(
    site: str, deltas: dict[str, np.ndarray], *, tokens: int = 100, codec: Codec = "fp32"
) -> Contribution:
    manifest, payload = lay_out((n, codec, SHAPES[n], encode(codec, d)) for n, d in deltas.items())
    return Contribution(SiteId(site), tokens, UpdateInMemory(manifest, payload))


def all_honest() -> list[Contribution]:
    return [sends(site, honest(site)) for site in HONEST]


def attack(kind: str) -> dict[str, np.ndarray]:
    return {
        name: (1e4 if kind == "scaled" else -1.0) * delta for name, delta in honest("yew").items()
    } if kind != "noise" else {
        name: np.random.default_rng(3).standard_normal(d.shape).astype(np.float32) for name, d in honest("yew").items()
    }  # fmt: skip


def moved(store: StateStore, contributions: list[Contribution], robust: Robust | None) -> np.ndarray:
    """How far the shared slices moved: all in one row."""
    base = seed_state(charter())
    done = combine(
        store, base=store.save(base), momentum=None, exchange=exchange(MAP, outer=Outer()),
        contributions=contributions, rule=robust,
    )  # fmt: skip
    new = store.load(done.state)
    return np.concatenate([(new[name] - base[name]).ravel() for name in SHARED])


@pytest.mark.parametrize("kind", ["scaled", "reversed", "noise"])
@pytest.mark.parametrize("rule", RULES)
def test_one_site_that_sends_anything_does_not_turn_the_step(tmp_path: Path, rule: Rule, kind: str) -> None:
    store = StateStore(tmp_path)
    fair = moved(store, all_honest(), None)
    bad = sends("yew", attack(kind), tokens=10**9)
    found = moved(store, [*all_honest(), bad], Robust(rule=rule))
    # The mean would go where the attacker, who claims most tokens, wants it.
    assert np.linalg.norm(moved(store, [*all_honest(), bad], None) - fair) > np.linalg.norm(fair)
    assert np.linalg.norm(found - fair) < 0.45 * np.linalg.norm(fair)


@pytest.mark.parametrize("rule", RULES)
def test_the_state_depends_neither_on_order_nor_on_threads(tmp_path: Path, rule: Rule) -> None:
    store = StateStore(tmp_path)
    base = store.save(seed_state(charter()))
    updates = [*all_honest()[:4], sends("yew", attack("noise"), codec="int8")]
    found = {
        combine(
            store, base=base, momentum=None, exchange=exchange(MAP, outer=Outer(momentum=0.9)),
            contributions=order, rule=Robust(rule=rule), threads=threads,
        )
        for threads, order in itertools.product((1, 2, 4), (updates, updates[::-1], updates[2:] + updates[:2]))
    }  # fmt: skip
    assert len(found) == 1


def test_experts_follow_their_owner_under_every_rule(tmp_path: Path) -> None:
    store = StateStore(tmp_path)
    base = seed_state(charter())
    for rule in RULES:
        done = combine(
            store, base=store.save(base), momentum=None, exchange=exchange(MAP, outer=Outer()),
            contributions=all_honest(), rule=Robust(rule=rule),
        )  # fmt: skip
        new, sent = store.load(done.state), honest("alder")
        [name] = [s.name for s in MAP.slices if s.expert == "alder-0"][:1]
        assert np.array_equal(new[name], base[name] + sent[name])


def test_the_median_is_that_of_each_element(tmp_path: Path) -> None:
    store = StateStore(tmp_path)
    found = moved(store, all_honest(), Robust(rule="median"))
    rows = np.stack([np.concatenate([honest(s)[n].ravel() for n in SHARED]) for s in HONEST])
    np.testing.assert_allclose(found, np.median(rows, axis=0), rtol=1e-3, atol=1e-6)
