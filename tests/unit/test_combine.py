"""Combining: token-weighted trunk, experts by their owners, the outer step, and always the same bytes."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from commons.codec import FRAME, decode, encode
from commons.experts.fragments import deal
from commons.experts.map import ExpertMap, Kind
from commons.learning import Codec, Codecs, Outer
from commons.names import Digest, SiteId
from commons.privacy.terms import Robust
from commons.states import StateStore
from commons.updates import lay_out
from orchestrator.combine import Combined, Contribution, combine
from orchestrator.combine.outer import outer_step
from tests.support.consortium import charter, exchange, seed_state
from tests.support.updates import UpdateInMemory

MAP = ExpertMap.from_charter(charter())


def contribution(
    site: str,
    tokens: int,
    scale: float = 1.0,
    *,
    codec: Codec = "fp32",
    names: frozenset[str] = frozenset(s.name for s in MAP.slices),
) -> tuple[Contribution, dict[str, np.ndarray]]:
    rng = np.random.default_rng(sum(site.encode()))
    deltas = {
        s.name: rng.standard_normal(s.shape, np.float32) * np.float32(scale) for s in MAP.uplink(SiteId(site))
    }
    deltas = {name: delta for name, delta in deltas.items() if name in names}
    shapes = {s.name: s.shape for s in MAP.slices}
    manifest, payload = lay_out((n, codec, shapes[n], encode(codec, d)) for n, d in deltas.items())
    sent = {n: decode(codec, encode(codec, d), shapes[n]) for n, d in deltas.items()}
    return Contribution(SiteId(site), tokens, UpdateInMemory(manifest, payload)), sent


@pytest.fixture
def store(tmp_path: Path) -> StateStore:
    return StateStore(tmp_path)


@pytest.mark.parametrize("codec", ["fp32", "bf16", "int8"])
def test_the_trunk_moves_by_the_mean_weighted_by_tokens_and_experts_by_their_owner(
    store: StateStore, codec: Codec
) -> None:
    base = seed_state(charter())
    (alder, a), (birch, b) = contribution("alder", 300, codec=codec), contribution("birch", 100, codec=codec)
    done = combine(
        store, base=store.save(base), momentum=None, exchange=exchange(MAP, outer=Outer()),
        contributions=[birch, alder],
    )  # fmt: skip
    new = store.load(done.state)
    assert done.momentum is None
    for part in MAP.slices:
        if part.kind is not Kind.EXPERT:
            want = base[part.name] + 0.75 * a[part.name] + 0.25 * b[part.name]
            np.testing.assert_allclose(new[part.name], want, rtol=1e-5, atol=1e-6)
        elif part.expert == "alder-0":
            assert np.array_equal(new[part.name], base[part.name] + a[part.name])
        elif part.expert == "cedar-0":
            assert np.array_equal(new[part.name], base[part.name])


def test_the_result_does_not_depend_on_who_came_first(store: StateStore) -> None:
    base = store.save(seed_state(charter()))
    three = [contribution(s, n)[0] for s, n in (("alder", 7), ("birch", 11), ("cedar", 13))]
    outer = Outer(learning_rate=0.7, momentum=0.9, nesterov=True)
    results = {
        combine(store, base=base, momentum=None, exchange=exchange(MAP, outer=outer), contributions=order)
        for order in itertools.permutations(three)
    }
    assert len(results) == 1


def test_two_outer_steps_with_momentum_are_those_of_sgd(store: StateStore) -> None:
    base = store.save(seed_state(charter()))
    one, sent = contribution("alder", 5)
    outer = Outer(learning_rate=0.5, momentum=0.9)
    first = combine(store, base=base, momentum=None, exchange=exchange(MAP, outer=outer), contributions=[one])
    second = combine(
        store,
        base=first.state,
        momentum=first.momentum,
        exchange=exchange(MAP, outer=outer),
        contributions=[one],
    )
    name = "model.norm.weight"
    start, delta = store.load(base)[name], sent[name]
    np.testing.assert_allclose(
        store.load(second.state)[name], start + 0.5 * delta + 0.5 * 1.9 * delta, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("nesterov", [False, True])
def test_the_outer_step_is_pytorchs_sgd(nesterov: bool) -> None:
    import torch

    rng = np.random.default_rng(0)
    base = rng.standard_normal(9, np.float32)
    weight = torch.nn.Parameter(torch.from_numpy(base.copy()))
    sgd = torch.optim.SGD([weight], lr=0.7, momentum=0.9, nesterov=nesterov)
    outer, velocity = Outer(learning_rate=0.7, momentum=0.9, nesterov=nesterov), None
    for _ in range(3):
        delta = rng.standard_normal(9, np.float32)
        step, velocity = outer_step(delta, velocity, outer)
        base = base + step
        weight.grad = torch.from_numpy(-delta)
        sgd.step()
    np.testing.assert_allclose(base, weight.detach().numpy(), rtol=1e-6, atol=1e-6)


def test_plain_averaging_of_one_site_is_base_plus_its_delta_to_the_bit(store: StateStore) -> None:
    base = seed_state(charter())
    one, sent = contribution("cedar", 123)
    done = combine(
        store,
        base=store.save(base),
        momentum=None,
        exchange=exchange(MAP, outer=Outer()),
        contributions=[one],
    )
    new = store.load(done.state)
    assert all(np.array_equal(new[n], base[n] + d) for n, d in sent.items())


def test_switching_momentum_off_forgets_it(store: StateStore) -> None:
    base = store.save(seed_state(charter()))
    one, _ = contribution("alder", 5)
    with_it = combine(
        store,
        base=base,
        momentum=None,
        exchange=exchange(MAP, outer=Outer(momentum=0.9)),
        contributions=[one],
    )
    without = combine(
        store,
        base=base,
        momentum=with_it.momentum,
        exchange=exchange(MAP, outer=Outer()),
        contributions=[one],
    )
    plain = combine(
        store, base=base, momentum=None, exchange=exchange(MAP, outer=Outer()), contributions=[one]
    )
    assert isinstance(with_it.momentum, str) and without == plain


@pytest.mark.parametrize("rule", [None, Robust(rule="median"), Robust(rule="centred_clip")])
def test_what_no_update_holds_stays_with_its_momentum_and_its_turn_comes(
    store: StateStore, rule: Robust | None
) -> None:
    base = seed_state(charter())
    outer, fragments = Outer(learning_rate=0.5, momentum=0.9), deal(MAP, 2)
    state, momentum = store.save(base), None
    for number in range(4):
        names = fragments[number % 2]
        three = [contribution(s, 1, names=names) for s in ("alder", "birch", "cedar")]
        before, kept = store.load(state), store.manifest(momentum) if momentum else {}
        done = combine(
            store, base=state, momentum=momentum, rule=rule, contributions=[one for one, _ in three],
            exchange=exchange(MAP, number=2 + number, fragments=2, rounds=99, outer=outer),
        )  # fmt: skip
        state, momentum = done.state, done.momentum
        assert momentum is not None
        new, now = store.load(state), store.manifest(momentum)
        assert {n for n in new if not np.array_equal(new[n], before[n])} == names
        assert all(now.get(n) == kept.get(n) for n in new.keys() - names)
        assert now.keys() == kept.keys() | {s.name for s in MAP.shared() if s.name in names}
    if rule is None:
        for fragment in fragments:
            name = min(n for n in fragment if n in {s.name for s in MAP.shared()})
            delta = np.mean([contribution(s, 1)[1][name] for s in ("alder", "birch", "cedar")], axis=0)
            want = base[name] + 0.5 * delta + 0.5 * 1.9 * delta
            np.testing.assert_allclose(new[name], want, rtol=1e-5, atol=1e-6)


def test_a_lost_base_is_an_error_and_nothing_is_saved(store: StateStore) -> None:
    from commons.errors import StoreError

    one, _ = contribution("alder", 5)
    with pytest.raises(StoreError):
        combine(
            store, base=Digest("blake3:" + "0" * 64), momentum=None, exchange=exchange(MAP, outer=Outer()),
            contributions=[one],
        )  # fmt: skip
    assert not list((store.root / "drafts").iterdir())


def combined(store: StateStore, base: Digest, sent: Contribution, *, down: Codec, **more: Any) -> Combined:
    return combine(
        store,
        base=base,
        momentum=more.get("memory"),
        exchange=exchange(MAP, outer=more.get("outer", Outer()), codecs=Codecs(down=down)),
        contributions=[sent],
    )


def test_a_site_that_has_the_base_builds_the_new_state_from_its_steps(tmp_path: Path) -> None:
    store, site = StateStore(tmp_path / "coordinator"), StateStore(tmp_path / "site", durable=False)
    base = seed_state(charter())
    one, _ = contribution("alder", 5, 0.01, codec="int8")
    done = combined(store, store.save(base), one, down="int8")
    site.save(base)
    site.put(store.read(done.state))
    slices = store.manifest(done.state)
    wanted = site.lacking(slices.values())
    for digest in wanted:
        site.put(store.read(digest))
    assert all(np.array_equal(a, store.load(done.state)[n]) for n, a in site.load(done.state).items())
    whole = sum(blob.bytes for blob in slices.values())
    assert sum(wanted.values()) < whole / 3
    assert {s.name for s in MAP.slices if slices[s.name].step} == {
        s.name for s in MAP.uplink(SiteId("alder")) if s.kind in (Kind.TRUNK_MATRIX, Kind.EXPERT)
    }


def test_an_experts_step_is_what_its_owner_sent(store: StateStore) -> None:
    one, sent = contribution("alder", 5, codec="bf16")
    base = seed_state(charter())
    done = combined(store, store.save(base), one, down="int8")
    for part in MAP.owned_by(SiteId("alder")):
        step = store.manifest(done.state)[part.name].step
        assert step is not None and step.codec == "bf16"
        assert np.array_equal(store.load(done.state)[part.name], base[part.name] + sent[part.name])


def test_what_the_way_down_drops_comes_with_later_rounds(store: StateStore) -> None:
    base = seed_state(charter())
    one, sent = contribution("alder", 5, 0.01)
    nothing, _ = contribution("alder", 5, 0.0)
    name = "lm_head.weight"
    exact = base[name] + sent[name]
    first = combined(store, store.save(base), one, down="int8")
    off = np.abs(store.load(first.state)[name] - exact).max()
    second = combined(store, first.state, nothing, down="int8", memory=first.momentum)
    closer = np.abs(store.load(second.state)[name] - exact).max()
    third = combined(store, second.state, nothing, down="fp32", memory=second.momentum)
    assert off > 3 * closer > 0
    np.testing.assert_allclose(store.load(third.state)[name], exact, atol=1e-7)
    assert third.momentum is None


def test_in_a_runs_last_round_the_way_down_drops_no_more_than_the_closing_codec(store: StateStore) -> None:
    base, (one, sent) = seed_state(charter()), contribution("alder", 5, 0.01)
    codecs = Codecs(down="int4", closing="fp32")
    for rounds, whole in ((2, False), (1, True)):
        moves = exchange(MAP, rounds=rounds, codecs=codecs)
        done = combine(store, base=store.save(base), momentum=None, exchange=moves, contributions=[one])
        found = store.load(done.state)
        for part in MAP.uplink(SiteId("alder")):
            if part.kind in (Kind.TRUNK_MATRIX, Kind.EXPERT):
                arrived = np.array_equal(found[part.name], base[part.name] + sent[part.name])
                assert arrived is whole, part.name


def test_a_model_of_many_frames_is_the_same_on_any_number_of_threads(tmp_path: Path) -> None:
    wide = charter()
    config = {**wide.model.config, "hidden_size": 512, "moe_intermediate_size": 2100}
    model = wide.model.model_copy(update={"config": config})
    expert_map = ExpertMap.from_owners(model, {e: SiteId("alder") for e in wide.experts})
    assert max(s.size for s in expert_map.slices) > 4 * FRAME
    rng = np.random.default_rng(0)
    base = {s.name: rng.standard_normal(s.shape, np.float32) for s in expert_map.slices}
    found = set()
    for threads in (1, 2, 4):
        store = StateStore(tmp_path / str(threads))
        ones = []
        for number, site in enumerate(("alder", "birch", "cedar")):
            parts = [
                (s.name, "int8", s.shape, encode("int8", base[s.name] * np.float32(number + 1)))
                for s in expert_map.slices
                if s.expert is None or site == "alder"
            ]
            manifest, payload = lay_out(parts)
            ones.append(Contribution(SiteId(site), number + 1, UpdateInMemory(manifest, payload)))
        found.add(
            combine(
                store, base=store.save(base), momentum=None, contributions=ones, threads=threads,
                exchange=exchange(expert_map, outer=Outer(momentum=0.9), codecs=Codecs(down="int8")),
            )
        )  # fmt: skip
    assert len(found) == 1
