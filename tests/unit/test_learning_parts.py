"""The learning benchmark: exchanges are the product's, runs resume bit for bit, sides of a text never meet."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from benchmarks.learning_parts import combining, run, scores
from benchmarks.learning_parts.bad import spoilt
from benchmarks.learning_parts.curves import svg
from benchmarks.learning_parts.plan import HALF, SIZES, VARIANTS, Size
from benchmarks.learning_parts.sites import Consortium
from benchmarks.learning_parts.texts import SITES, Texts, _corpus, _dealt, _sides
from commons.codec import encode
from commons.errors import Refusal
from commons.experts.map import ExpertMap, Kind
from commons.learning import Outer
from commons.names import SiteId
from commons.states import StateStore
from commons.updates import lay_out
from orchestrator.combine import Contribution, combine
from orchestrator.seed import begin
from tests.support.consortium import charter, exchange, seed_state
from tests.support.updates import UpdateInMemory
from workers.durable import read_arrays
from workers.shard import initial_state

MAP = ExpertMap.from_charter(charter())
TINY = Size(
    "tiny",
    SIZES["t1"].config | {"hidden_size": 16, "moe_intermediate_size": 8, "num_attention_heads": 2},
    steps=6,
    batch=1,
    length=16,
    seed_steps=1,
)


@pytest.fixture(scope="module")
def texts() -> Texts:
    def documents(name: str) -> list[bytes]:
        rng = np.random.default_rng(len(name))
        return [bytes(rng.integers(32, 127, 4000, dtype=np.uint8)) for _ in range(60)]

    sides = {d: _sides(documents(d)) for d in SITES}
    train = {
        d: replace(_corpus(d, s[0], s[0]), held_out=_corpus(d, s[0], s[0]).train) for d, s in sides.items()
    }
    public = _corpus("public", _dealt([s[0] for s in sides.values()]), sides["code"][0])
    return Texts(train, train, public, public)


@pytest.mark.parametrize("outer", [Outer(), HALF, Outer(learning_rate=0.7, momentum=0.9, nesterov=True)])
def test_a_plain_exchange_gives_the_coordinators_bytes(tmp_path: Path, outer: Outer) -> None:
    store, base = StateStore(tmp_path), seed_state(charter())
    rng = np.random.default_rng(0)
    shapes = {s.name: s.shape for s in MAP.slices}
    theirs, mine, momentum = store.save(base), dict(base), {}  # type: ignore[var-annotated]
    kept = None
    for _ in range(2):
        deltas, sent = [], []
        for site in sorted(set(MAP.owners.values())):
            delta = {s.name: rng.standard_normal(s.shape, np.float32) for s in MAP.uplink(SiteId(site))}
            manifest, payload = lay_out((n, "fp32", shapes[n], encode("fp32", d)) for n, d in delta.items())
            sent.append(Contribution(site, 100, UpdateInMemory(manifest, payload)))
            deltas.append(delta)
        done = combine(
            store, base=theirs, momentum=kept, exchange=exchange(MAP, outer=outer), contributions=sent
        )
        theirs, kept = done.state, done.momentum
        for parts, how in (
            (MAP.shared(), outer),
            ([s for s in MAP.slices if s.kind is Kind.EXPERT], Outer()),
        ):
            mine |= combining.exchanged(
                list(parts),
                mine,
                deltas,
                routed=None,
                expert_map=MAP,
                momentum=momentum,
                outer=how,
            )
    for name, array in store.load(theirs).items():
        assert np.array_equal(mine[name], array), name


def test_an_expert_moves_by_those_who_routed_to_it_and_stays_when_nobody_did() -> None:
    part = next(s for s in MAP.slices if s.kind is Kind.EXPERT)
    at, layer = MAP.index(part.expert), part.layer  # type: ignore[arg-type]
    one, other = np.ones(part.shape, np.float32), 3 * np.ones(part.shape, np.float32)

    def moved(first: int, second: int) -> float:
        rows = [[5] * len(MAP.experts) for _ in range(2)]
        rows[0][at], rows[1][at] = first, second
        new = combining.exchanged(
            [part], {part.name: 0 * one}, [{part.name: one}, {part.name: other}],
            routed=[{layer: rows[0]}, {layer: rows[1]}], expert_map=MAP, momentum={}, outer=Outer(),
        )  # fmt: skip
        return float(new[part.name].flat[0])

    assert (moved(10, 0), moved(0, 10), moved(30, 10), moved(0, 0)) == (1.0, 3.0, 1.5, 0.0)


def test_the_radial_mean_of_orthogonal_deltas_keeps_their_length() -> None:
    deltas = [np.eye(4, dtype=np.float32)[n] for n in range(4)]
    assert np.linalg.norm(combining.radial(deltas, None, 1.0)) == pytest.approx(1.0)
    assert np.linalg.norm(combining.radial(deltas, None, 0.5)) == pytest.approx(0.5**0.5)
    assert np.linalg.norm(combining.mean(deltas, None)) == pytest.approx(0.5)


def test_in_two_bits_what_is_dropped_is_sent_later_and_zeros_stay_zeros() -> None:
    draw, left, sent = np.random.default_rng(0), None, np.zeros(130, np.float32)
    deltas = draw.standard_normal((9, 130)).astype(np.float32)
    deltas[:, 64:128] = 0
    for delta in deltas:
        decoded, left = combining.arrives("int2", delta, left)
        assert all(len(np.unique(block)) <= 4 for block in (decoded[:64], decoded[128:]))
        sent += decoded
    assert left is not None
    np.testing.assert_allclose(sent + left, deltas.sum(0), atol=1e-5)
    assert not sent[64:128].any() and np.abs(left).max() < np.abs(sent).max()
    part = next(s for s in TINY.experts(list(SITES)).slices if len(s.shape) == 2)
    assert 3 < part.size / combining.sent_bytes("int2", part) < 4


@pytest.mark.parametrize("name", ["routed-radial", "guests", "diloco"])
def test_a_killed_run_ends_at_the_same_bytes(tmp_path: Path, texts: Texts, name: str) -> None:
    variant = replace(VARIANTS[name], inner_steps=2, trunk_codec="int4", experts_every=2)
    start = run.start_state(variant, TINY, 0, texts=texts, work=tmp_path)

    def consortium(folder: str) -> Consortium:
        return Consortium(variant, TINY, texts, seed=0, start=start, home=tmp_path / folder)

    whole = consortium("whole")
    for _ in range(3):
        whole.step()
    killed = consortium("killed")
    killed.step()
    before = (tmp_path / "killed" / "consortium.safetensors").read_bytes()
    killed.step()
    (tmp_path / "killed" / "consortium.safetensors").write_bytes(
        before
    )  # sites had finished, the exchange was lost
    again = consortium("killed")
    assert again.round == 1
    again.step()
    again.step()
    assert again.moved == whole.moved and again.tokens == whole.tokens
    for part in whole.map.slices:
        assert np.array_equal(again.state[part.name], whole.state[part.name]), part.name


def test_a_judged_run_leaves_the_bad_site_out_and_goes_on_after_a_kill_as_it_was(
    tmp_path: Path, texts: Texts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.learning_parts.bad.HUGE", 3000.0)
    variant = replace(VARIANTS["bad-huge-rollback"], inner_steps=2)
    texts = replace(texts, probe={domain: text.train[:400] for domain, text in texts.train.items()})
    start = run.start_state(variant, TINY, 0, texts=texts, work=tmp_path)
    made = []
    for folder, restarted in (("whole", False), ("killed", True)):
        for number in range(3):
            if number == 0 or restarted:
                consortium = Consortium(variant, TINY, texts, seed=0, start=start, home=tmp_path / folder)
            consortium.step()
        made.append(consortium)
    for one in made:
        assert one.judge is not None
        assert one.judge.log[0]["left_out"] == "dialogue" == one.bad
        assert one.judge.out_until["dialogue"] >= 6
    assert made[0].judge and made[1].judge
    assert made[0].judge.remembered() == made[1].judge.remembered()
    for part in made[0].map.slices:
        assert np.array_equal(made[0].state[part.name], made[1].state[part.name]), part.name


def test_bad_texts_are_as_bad_as_they_say_and_always_the_same(texts: Texts) -> None:
    text, given = texts.train["code"], {"rows": 4, "length": 16, "seed": 0}
    assert len(spoilt("little", text).train) == len(text.train) // 100  # type: ignore[attr-defined]
    assert np.array_equal(spoilt("flipped", text).batch(3, **given), text.batch(3, **given))
    shuffled, plain = spoilt("shuffled", text).batch(3, **given), text.batch(3, **given)
    assert np.array_equal(np.sort(shuffled, axis=1), np.sort(plain, axis=1)) and not np.array_equal(
        shuffled, plain
    )
    for kind in ("random", "shuffled"):
        bad = spoilt(kind, text)  # type: ignore[arg-type]
        assert np.array_equal(bad.batch(3, **given), bad.batch(3, **given))
        assert not np.array_equal(bad.batch(3, **given), bad.batch(4, **given))


def test_a_run_leaves_one_result_that_is_not_measured_twice(tmp_path: Path, texts: Texts) -> None:
    given: dict[str, Any] = {"texts": texts, "work": tmp_path, "kept": tmp_path / "kept"}
    variant = replace(VARIANTS["alone"], inner_steps=3)
    found = run.run(variant, TINY, 0, **given)
    assert json.loads((tmp_path / "kept" / "tiny-alone-0.json").read_text()) == run.run(
        variant, TINY, 0, **given
    )
    assert set(found["test"]["own"]) == set(SITES) and found["tokens"] == 4 * 6 * 16
    assert not (tmp_path / "tiny-alone-0").exists()


def test_the_sides_of_a_text_never_meet_and_follow_from_it_alone() -> None:
    documents = [hashlib.sha256(bytes([n])).digest() * 9 for n in range(200)]
    sides = _sides(documents)
    assert sorted(d for side in sides for d in side) == sorted(documents)
    assert [len(side) for side in sides] == [160, 10, 10, 20]
    assert _sides(documents) == sides


def test_the_share_of_the_gap_that_is_closed() -> None:
    assert scores.gap_closed(1.2, 2.0, 1.0) == pytest.approx(0.8)
    assert scores.gap_percent(1.05, 1.0) == pytest.approx(5.0)


def test_curves_are_drawn_with_their_last_values() -> None:
    drawn = svg("t", {"a<b": [(0, 2.0), (1, 1.5)]}, across="tokens", up="nats")
    assert "a&lt;b 1.500" in drawn and drawn.count("<polyline") == 1


def test_a_sovereign_site_leaves_the_trunk_as_the_seed_had_it(tmp_path: Path, texts: Texts) -> None:
    variant = replace(VARIANTS["flexolmo"], inner_steps=3)
    start = run.start_state(variant, TINY, 0, texts=texts, work=tmp_path)
    consortium = Consortium(variant, TINY, texts, seed=0, start=start, home=tmp_path / "home")
    for _ in range(consortium.rounds):
        consortium.step()
    moved = {
        s.kind for s in consortium.map.slices if not np.array_equal(consortium.state[s.name], start[s.name])
    }
    assert moved == {Kind.ROUTER, Kind.EXPERT}


def test_sites_that_begin_with_all_of_a_seeds_experts_begin_as_the_products_do(
    tmp_path: Path, texts: Texts
) -> None:
    variant, size = VARIANTS["lean-read-whole-1"], replace(TINY, reader=8, own_from=1)
    start = run.start_state(variant, size, 0, texts=texts, work=tmp_path)
    of = charter(
        sites=tuple(
            charter().sites[0].model_dump()
            | {"name": site, "experts": tuple(f"{site}-{n}" for n in range(8))}
            for site in texts.sites(4)
        ),
        model=size.model.model_dump(),
        learning__routing="lean",
    )
    (tmp_path / "seed").mkdir()
    seed = run.seed_file(variant, "tiny", 0, tmp_path)
    save_file(read_arrays(seed), tmp_path / "seed" / "model.safetensors")
    store, expert_map = StateStore(tmp_path / "states"), ExpertMap.from_charter(of)
    digest = begin(tmp_path / "seed", of, expert_map, store)
    assert not isinstance(digest, Refusal), digest
    begun = {n: a for n, a in store.load(digest).items() if not n.startswith("readers.")}
    assert begun.keys() == {n for n in start if not n.startswith("readers.")}
    assert all(np.array_equal(a, start[n]) for n, a in begun.items())


@pytest.mark.parametrize("name", ["lean-late", "flexolmo-late"])
def test_what_a_site_keeps_of_the_trunk_nobody_else_moves(tmp_path: Path, texts: Texts, name: str) -> None:
    variant = replace(VARIANTS[name], inner_steps=6)
    start = run.start_state(variant, TINY, 0, texts=texts, work=tmp_path)
    consortium = Consortium(variant, TINY, texts, seed=0, start=start, home=tmp_path / "home")
    consortium.step()
    (one, other), trunk = list(consortium.states().values())[:2], {}
    for part in consortium.map.shared():
        trunk[part.name] = not np.array_equal(one[part.name], other[part.name])
    kept = {n for n, differs in trunk.items() if differs}
    assert kept and all(".layers." in n or n == "model.norm.weight" for n in kept)
    assert not any(n.startswith(("model.embed_tokens", "model.layers.0.self_attn")) for n in kept)
    assert "model.layers.0.mlp.shared_experts.up_proj.weight" in kept
    still = all(np.array_equal(one[n], start[n]) for n in ("model.embed_tokens.weight",))
    assert still is (name == "flexolmo-late")


def test_a_fitted_router_moves_alone(tmp_path: Path, texts: Texts) -> None:
    variant = replace(VARIANTS["lean-fit"], inner_steps=6, fit_steps=3)
    start = run.start_state(variant, TINY, 0, texts=texts, work=tmp_path)
    consortium = Consortium(variant, TINY, texts, seed=0, start=start, home=tmp_path / "home")
    consortium.step()
    before = dict(consortium.state)
    consortium.fit()
    moved = {
        s.kind for s in consortium.map.slices if not np.array_equal(consortium.state[s.name], before[s.name])
    }
    assert moved == {Kind.ROUTER}


def test_experts_chosen_by_posterior_lose_at_most_what_telling_them_apart_costs(texts: Texts) -> None:
    expert_map = TINY.experts(list(SITES))
    state = initial_state(TINY.model, expert_map, seed=0)
    state = {n: a * 8 if "experts." in n else a for n, a in state.items()}
    rows = {d: t.held_out_rows(length=32, limit=6) for d, t in texts.train.items()}
    given = (TINY.model, expert_map, dict.fromkeys(SITES, state), rows)
    mixed, own = (
        scores.posterior_losses(*given),
        [scores.oracle_losses(*given, {d: [site] for d in rows}) for site in SITES],
    )
    committed = scores.committed_losses(*given)
    for domain in rows:
        best = min(losses[domain] for losses in own)
        assert mixed[domain] <= best + np.log(len(SITES)) / 32 + 1e-6
        assert best < max(losses[domain] for losses in own), "the sites' experts differ"
        assert committed[domain] != mixed[domain] and np.isfinite(committed[domain])
    one = scores.posterior_losses(TINY.model, expert_map, {"code": state}, rows)
    assert one == pytest.approx(own[0])
