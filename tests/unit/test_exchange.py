"""Strategies without training: what each sends, how it is put together, and that whoever leaves leaves nothing behind."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from commons.charter import Charter
from commons.codec import encode
from commons.exchange import Exchange, round_gflop
from commons.experts.map import ExpertMap, Kind, Slice
from commons.features import carry_out
from commons.learning import Codec, Outer
from commons.names import ExpertId, SiteId
from commons.states import StateStore
from commons.updates import Routed, UpdateManifest, lay_out
from orchestrator.combine import Contribution, combine
from tests.support.consortium import SITES, charter, exchange, seed_state
from tests.support.parts import Array, put_together, take_apart
from tests.support.updates import UpdateInMemory

MAP = ExpertMap.from_charter(charter())
ALDER = SiteId("alder")
Deltas = Mapping[str, Array]


def sovereign(**changes: object) -> Charter:
    return charter(learning__strategy="sovereign", learning__routing="lean", **changes)


def sends(
    moves: Exchange, site: str, deltas: Deltas, *, tokens: int = 8, routed: Routed = ()
) -> Contribution:
    """The site's update: these deltas of what it may send."""
    parts = ((p.name, "fp32", p.shape, encode("fp32", deltas[p.name])) for p in moves.uplink(SiteId(site)))
    manifest, payload = lay_out(parts, routed=routed)  # type: ignore[arg-type]
    return Contribution(SiteId(site), tokens, UpdateInMemory(manifest, payload))


def draw(seed: str, parts: Sequence[Slice] = MAP.slices) -> dict[str, Array]:
    random = np.random.default_rng(list(seed.encode()))
    return {p.name: random.standard_normal(p.shape, np.float32) for p in parts}


def test_each_strategy_sends_what_it_lets_a_site_train() -> None:
    trunk = {s.name for s in MAP.shared() if s.kind is not Kind.ROUTER}
    router = {s.name for s in MAP.slices if s.kind is Kind.ROUTER}
    own = {s.name for s in MAP.owned_by(ALDER)}
    foreign = {s.name for s in MAP.slices} - trunk - router - own
    wanted = {
        "expert_diloco": trunk | router | own,
        "sovereign": router | own,
        "diloco": trunk | router | own | foreign,
    }
    for strategy, names in wanted.items():
        moves = exchange(MAP, strategy=strategy)
        assert {s.name for s in moves.uplink(ALDER)} == {s.name for s in moves.trained(ALDER)} == names
    assert {
        s.name for s in exchange(MAP, strategy="sovereign", routing="lean").held(ALDER)
    } == trunk | router | own


def test_branches_send_nothing_before_the_last_round_and_everything_in_it(tmp_path: Path) -> None:
    store, base = StateStore(tmp_path), seed_state(charter())
    state, momentum = store.save(base), None
    deltas = {site: draw(site) for site in SITES}
    for number in (1, 2):
        moves = exchange(MAP, strategy="branch_mix", merge="radial", number=number)
        done = combine(
            store, base=state, momentum=momentum, exchange=moves,
            contributions=[sends(moves, site, deltas[site]) for site in SITES],
        )  # fmt: skip
        if number == 1:
            assert moves.uplink(ALDER) == moves.shared == () and moves.trained(ALDER) == MAP.uplink(ALDER)
            assert all(np.array_equal(array, base[name]) for name, array in store.load(done.state).items())
        state, momentum = done.state, done.momentum
    expert = MAP.owned_by(ALDER)[0].name
    assert np.array_equal(store.load(state)[expert], base[expert] + deltas["alder"][expert])
    assert not np.array_equal(store.load(state)["model.norm.weight"], base["model.norm.weight"])


def test_owners_experts_take_an_outer_step_of_their_own_and_rest_while_their_owner_is_away(
    tmp_path: Path,
) -> None:
    store, base = StateStore(tmp_path), seed_state(charter())
    moves = exchange(MAP, expert_outer=Outer(learning_rate=0.5, momentum=0.5))
    delta, expert = draw("alder"), MAP.owned_by(ALDER)[0].name
    alder, birch = sends(moves, "alder", delta), sends(moves, "birch", draw("birch"))
    state, momentum, at = store.save(base), None, []
    for ones in ([alder, birch], [birch], [alder]):
        done = combine(store, base=state, momentum=momentum, exchange=moves, contributions=ones)
        state, momentum = done.state, done.momentum
        at.append(store.load(state)[expert])
    np.testing.assert_allclose(at[0], base[expert] + 0.5 * delta[expert], rtol=1e-5)
    assert np.array_equal(at[1], at[0])
    np.testing.assert_allclose(at[2], at[0] + 0.5 * 1.5 * delta[expert], rtol=1e-5, atol=1e-6)
    assert not moves.owners_keep and exchange(MAP).owners_keep


def test_what_belongs_to_an_expert_moves_by_those_who_routed_to_it(tmp_path: Path) -> None:
    store, base = StateStore(tmp_path), seed_state(charter())
    moves = exchange(MAP, strategy="diloco", expert_weights="routed")
    deltas = {site: draw(site) for site in ("alder", "birch")}
    ones = [
        sends(moves, "alder", deltas["alder"], routed=((12, 4, 0),)),
        sends(moves, "birch", deltas["birch"], routed=((4, 12, 0),)),
    ]
    new = store.load(
        combine(store, base=store.save(base), momentum=None, exchange=moves, contributions=ones).state
    )
    gate = next(s.name for s in MAP.slices if s.kind is Kind.ROUTER and len(s.shape) == 2)
    for index, (mine, other) in enumerate(((0.75, 0.25), (0.25, 0.75), (0.0, 0.0))):
        expert = next(s.name for s in MAP.slices if s.expert == MAP.experts[index])
        for name, row in ((expert, ...), (gate, index)):
            wanted = mine * deltas["alder"][name][row] + other * deltas["birch"][name][row]
            np.testing.assert_allclose(new[name][row] - base[name][row], wanted, rtol=1e-4, atol=1e-5)
    mean = (deltas["alder"]["lm_head.weight"] + deltas["birch"]["lm_head.weight"]) / 2
    np.testing.assert_allclose(new["lm_head.weight"] - base["lm_head.weight"], mean, rtol=1e-4, atol=1e-5)


def test_selection_biases_move_towards_an_even_load_of_all_sites_together(tmp_path: Path) -> None:
    store, base, moves = StateStore(tmp_path), seed_state(charter()), exchange(MAP, balance_rate=0.5)
    still = {name: np.zeros_like(array) for name, array in base.items()}
    ones = [
        sends(moves, "alder", still, routed=((16, 0, 0),)),  # each is uneven, together two of three are even
        sends(moves, "birch", still, routed=((0, 8, 8),)),
    ]
    done = combine(store, base=store.save(base), momentum=None, exchange=moves, contributions=ones)
    bias = next(s.name for s in MAP.slices if s.kind is Kind.ROUTER and len(s.shape) == 1)
    for name, array in store.load(done.state).items():
        moved = np.array([-0.5, 0.5, 0.5], np.float32) if name == bias else np.float32(0)
        assert np.array_equal(array, base[name] + moved), name


def test_a_frozen_trunk_costs_no_gradients_of_its_weights() -> None:
    counts = MAP.parameters()
    trained = sum(s.size for s in MAP.slices if s.kind is Kind.ROUTER) + counts.expert * MAP.experts_per_token
    tokens = 10**9
    assert MAP.training_gflop(tokens) == 6 * counts.active
    assert MAP.training_gflop(tokens, frozen_trunk=True) == 4 * counts.active + 2 * trained
    assert round_gflop(sovereign(learning__batch_size=4096)) < round_gflop(charter(learning__batch_size=4096))


def test_under_diloco_every_slice_moves_by_the_mean_of_all_sites(tmp_path: Path) -> None:
    store, base, moves = StateStore(tmp_path), seed_state(charter()), exchange(MAP, strategy="diloco")
    deltas = {site: draw(site) for site in SITES}
    done = combine(
        store, base=store.save(base), momentum=None, exchange=moves,
        contributions=[sends(moves, site, deltas[site]) for site in SITES],
    )  # fmt: skip
    for name, array in store.load(done.state).items():
        mean = np.mean([deltas[site][name] for site in SITES], axis=0)
        np.testing.assert_allclose(array, base[name] + mean, rtol=1e-5, atol=1e-6)


def test_under_diloco_experts_take_the_outer_step_and_keep_its_momentum(tmp_path: Path) -> None:
    store, base = StateStore(tmp_path), seed_state(charter())
    moves = exchange(MAP, strategy="diloco", outer=Outer(momentum=0.5))
    expert = MAP.owned_by(SiteId("cedar"))[0].name
    one, delta = sends(moves, "alder", draw("alder")), draw("alder")[expert]
    first = combine(store, base=store.save(base), momentum=None, exchange=moves, contributions=[one])
    second = combine(store, base=first.state, momentum=first.momentum, exchange=moves, contributions=[one])
    np.testing.assert_allclose(store.load(second.state)[expert], base[expert] + 2.5 * delta, rtol=1e-5)


def test_under_sovereign_the_trunk_stays_and_a_row_moves_by_its_owner_alone(tmp_path: Path) -> None:
    store, base = StateStore(tmp_path), seed_state(charter())
    moves = exchange(MAP, strategy="sovereign", routing="lean", outer=Outer(learning_rate=0.5, momentum=0.9))
    deltas = {site: draw(site) for site in ("alder", "birch")}
    done = combine(
        store, base=store.save(base), momentum=None, exchange=moves,
        contributions=[sends(moves, site, deltas[site]) for site in ("birch", "alder")],
    )  # fmt: skip
    for part, array in ((s, store.load(done.state)[s.name]) for s in MAP.slices):
        was = base[part.name]
        if part.kind is Kind.ROUTER:
            for row, site in enumerate(SITES):
                step = deltas[site][part.name][row] if site in deltas else np.float32(0)
                assert np.array_equal(array[row], was[row] + step)
        elif (owner := MAP.owners.get(part.expert or ExpertId(""))) in deltas:
            assert np.array_equal(array, was + deltas[str(owner)][part.name])
        else:
            assert np.array_equal(array, was), "nobody moves it"


def test_counts_travel_in_the_manifest_and_one_without_them_is_as_it_was() -> None:
    moves = exchange(MAP)
    bare, counted = (
        sends(moves, "alder", seed_state(charter()), routed=routed).update.manifest
        for routed in ((), ((3, 0, 1), (2, 2, 0)))
    )
    assert b"routed" not in bare.to_bytes()
    for manifest in (bare, counted):
        assert UpdateManifest.from_bytes(manifest.to_bytes()) == manifest
    wrong = counted.to_bytes()
    for old, new in (
        (b"[3,0,1]", b"[3,-1,1]"),
        (b"[3,0,1]", b"[]"),
        (b"],[2", b"][2"),
        (b"[3,0,1]", b"[3,0.5,1]"),
    ):
        assert old in wrong
        with pytest.raises(ValueError, match="not an update manifest"):
            UpdateManifest.from_bytes(wrong.replace(old, new))


@pytest.mark.parametrize("strategy", ["expert_diloco", "sovereign", "diloco"])
def test_a_round_is_the_same_in_whichever_order_updates_come(tmp_path: Path, strategy: str) -> None:
    store = StateStore(tmp_path)
    moves = exchange(
        MAP, strategy=strategy, outer=Outer(momentum=0.5), expert_outer=Outer(momentum=0.3), merge="radial",
        expert_weights="routed", balance_rate=0.01,
    )  # fmt: skip
    base = store.save(seed_state(charter()))
    ones = [
        sends(moves, site, draw(site), tokens=n, routed=((n, 2 * n, 5),))
        for site, n in zip(SITES, (3, 5, 7), strict=True)
    ]
    found = {
        combine(store, base=base, momentum=None, exchange=moves, contributions=order, threads=threads)
        for order in itertools.permutations(ones)
        for threads in (1, 3)
    }
    assert len(found) == 1


def test_a_radial_merge_has_the_mean_direction_and_the_mean_length(tmp_path: Path) -> None:
    store, base = StateStore(tmp_path), seed_state(charter())
    moves = exchange(MAP, merge="radial", strategy="diloco")
    tokens, deltas = dict(zip(SITES, (1, 2, 5), strict=True)), {site: draw(site) for site in SITES}
    deltas["cedar"] = {name: 9 * array for name, array in deltas["cedar"].items()}
    ones = [sends(moves, site, deltas[site], tokens=tokens[site]) for site in SITES]
    found = {
        combine(
            store, base=store.save(base), momentum=None, exchange=moves, contributions=order, threads=threads
        )
        for order in itertools.permutations(ones)
        for threads in (1, 3)
    }
    (done,) = found
    for part, array in ((s, store.load(done.state)[s.name]) for s in MAP.slices):
        given, weights = [deltas[site][part.name].astype(np.float64) for site in SITES], [1 / 8, 2 / 8, 5 / 8]
        wanted = sum(w * d for w, d in zip(weights, given, strict=True))
        if part.kind in (Kind.TRUNK_MATRIX, Kind.EXPERT) and "embed" not in part.name:
            lengths = [np.linalg.norm(d) for d in given]
            way = sum(w * d / n for w, d, n in zip(weights, given, lengths, strict=True))
            wanted = way / np.linalg.norm(way) * np.dot(weights, lengths)
        np.testing.assert_allclose(array - base[part.name], wanted, rtol=1e-3, atol=1e-4)


def test_a_radial_merge_without_a_direction_is_the_mean(tmp_path: Path) -> None:
    store, base, moves = StateStore(tmp_path), seed_state(charter()), exchange(MAP, merge="radial")
    there = draw("alder")
    for other in ({n: -a for n, a in there.items()}, {n: np.zeros_like(a) for n, a in there.items()}):
        ones = [sends(moves, "alder", there), sends(moves, "birch", other)]
        done = combine(store, base=store.save(base), momentum=None, exchange=moves, contributions=ones)
        new = store.load(done.state)["lm_head.weight"]
        wanted = base["lm_head.weight"] + (there["lm_head.weight"] + other["lm_head.weight"]) / 2
        np.testing.assert_allclose(new, wanted, atol=1e-6)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    leaves=st.sampled_from(SITES),
    rounds=st.integers(1, 3),
    seed=st.integers(0, 99),
    codec=st.sampled_from(["fp32", "int8"]),
)
def test_under_sovereign_who_leaves_leaves_nothing_behind(
    tmp_path: Path, leaves: str, rounds: int, seed: int, codec: Codec
) -> None:
    """The state without a site's slices is, bit for bit, that of a consortium it never was in."""
    store, of = StateStore(tmp_path, durable=False), sovereign()
    stays = tuple(site for site in SITES if site != leaves)
    smaller = ExpertMap.from_owners(of.model, {e: s for e, s in MAP.owners.items() if s != leaves})
    trunk, parts = take_apart(MAP, seed_state(of))
    states = {}
    for expert_map, sites in ((MAP, SITES), (smaller, stays)):
        state = store.save(put_together(expert_map, trunk, parts))
        for number in range(1, rounds + 1):
            moves, ones = Exchange(expert_map, of.learning, number), []
            for site in sites:
                mine = {e: p for e, p in parts.items() if MAP.owners[e] == site}
                deltas = _trained(expert_map, trunk, mine, f"{seed}/{site}/{number}")
                encoded = (
                    (
                        p.name,
                        codec if p.expert else "fp32",
                        p.shape,
                        encode(codec if p.expert else "fp32", deltas[p.name]),
                    )
                    for p in moves.uplink(SiteId(site))
                )
                manifest, payload = lay_out(encoded)  # type: ignore[arg-type]
                ones.append(Contribution(SiteId(site), 8, UpdateInMemory(manifest, payload)))
            state = combine(store, base=state, momentum=None, exchange=moves, contributions=ones).state
        states[sites] = store.load(state)
    without = put_together(smaller, *take_apart(MAP, states[SITES]))
    assert {n: a.tobytes() for n, a in without.items()} == {n: a.tobytes() for n, a in states[stays].items()}


def _trained(
    expert_map: ExpertMap, trunk: Deltas, mine: Mapping[ExpertId, Deltas], seed: str
) -> dict[str, Array]:
    """Deltas of one site that trained its own experts and rows: the same whoever else is there."""
    random = np.random.default_rng(list(seed.encode()))
    zeros = {name: np.zeros_like(array) for name, array in trunk.items()}
    moved = {
        e: {n: random.standard_normal(np.shape(a)).astype(np.float32) for n, a in p.items()}
        for e, p in mine.items()
    }
    some = next(iter(mine.values()))
    still = {e: {n: np.zeros_like(a) for n, a in some.items()} for e in expert_map.experts}
    return put_together(expert_map, zeros, still | moved)


@given(
    warm=st.tuples(st.integers(0, 6), st.integers(1, 4)),
    votes=st.lists(st.tuples(st.integers(1, 12), st.integers(1, 9)), max_size=4),
    stale=st.booleans(),
)
def test_no_vote_on_the_length_of_rounds_makes_a_run_repeat_or_skip_a_step(
    warm: tuple[int, int], votes: list[tuple[int, int]], stale: bool
) -> None:
    of = charter(learning__rounds=12, learning__warm={"rounds": warm[0], "inner_steps": warm[1]})
    if stale:  # another run of the same charter stood elsewhere
        longer = carry_out([of], "inner-steps", {"steps": 7}, run="run-0", round_number=5)
        assert isinstance(longer, Charter)
        of = longer
    step = 0
    for number in range(1, of.learning.rounds + 1):
        for at, steps in votes:
            if at == number and steps != of.learning.inner_steps:
                changed = carry_out([of], "inner-steps", {"steps": steps}, run="run-1", round_number=number)
                assert isinstance(changed, Charter), changed
                of = changed
        learning = of.learning.in_run("run-1")
        assert learning.first_step(number) == step
        assert learning.steps_in(number) == (warm[1] if number <= warm[0] else learning.inner_steps)
        step += learning.steps_in(number)
    assert of.learning.in_run("run-1").total_steps == step


def test_a_charter_that_says_where_a_run_stood_has_been_voted_on() -> None:
    with pytest.raises(ValueError, match=r"learning\.since is set"):
        charter(learning__since={"run": "run-1", "round": 2, "step": 4})


def test_a_charter_refuses_what_its_strategy_cannot_keep() -> None:
    secret = {"mode": "secagg", "secagg": {"clip": 0.125}}
    wrong = {
        "routing must be 'lean'": {"learning__strategy": "sovereign"},
        "routing must be 'joint'": {"learning__strategy": "diloco", "learning__routing": "lean"},
        "several sites": {"privacy": {"mode": "robust"}},
        "no slice is combined": {"privacy": secret, "rounds__quorum": 3},
        "it must be 'all'": {"privacy": {"mode": "dp"}},
        "they take 'fp32' here": {"learning__codecs": {"trunk": "int8"}},
        "leave its mark": {"learning__balance_rate": 0.1},
        "no round comes after": {"learning__strategy": "branch_mix", "rounds__late_rounds": 1},
        "nothing is sent": {"learning__strategy": "branch_mix", "privacy": {"mode": "dp"}},
        "nothing to damp": {"learning__strategy": "branch_mix", "learning__expert_outer": {"momentum": 0.5}},
    }
    for said, changes in wrong.items():
        base = (
            {}
            if "learning__strategy" in changes
            else {"learning__strategy": "sovereign", "learning__routing": "lean"}
        )
        with pytest.raises(ValueError, match=said):
            charter(**base, **changes)
    for privacy in ({"mode": "robust"}, secret, {"mode": "dp"}):
        with pytest.raises(ValueError, match=r"learning\.merge is 'radial' but"):
            charter(learning__merge="radial", privacy=privacy, rounds__quorum=3)
        with pytest.raises(ValueError, match=r"learning\.expert_weights is 'routed' but"):
            charter(learning__expert_weights="routed", privacy=privacy, rounds__quorum=3)
    with pytest.raises(ValueError, match="experts are shared too"):
        charter(learning__strategy="diloco", privacy={"mode": "dp"})
    masked = charter(learning__strategy="diloco", privacy=secret, rounds__quorum=3)
    assert {p.name for p in Exchange(MAP, masked.learning, 1).shared} == {s.name for s in MAP.slices}
