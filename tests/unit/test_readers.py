"""Readers: what they learn, whose experts they choose, and that they come and go with their sites."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import nn

from commons.charter import Charter, Model
from commons.charter_file import canonical
from commons.experts.fragments import deal
from commons.experts.map import ExpertMap, Kind
from commons.experts.readers import SPAN
from commons.learning import Learning
from commons.names import ExpertId, SiteId
from commons.updates import encoding_of
from tests.support.consortium import charter
from tests.support.families import CONFIGS
from tests.unit.test_trainer import MODEL, ignore
from workers.data import Corpus
from workers.experts import Experts
from workers.objectives import held_out_loss
from workers.readers import LEAST_DOUBT, SWITCH
from workers.shard import build_shard, initial_state, read_state
from workers.trainer import RoundResult, Trainer

State = dict[str, NDArray[np.float32]]
SITES = ("digits", "letters", "marks")
SIGNS = {"digits": "0123456789", "letters": "abcdefghij", "marks": "+-*/=<>()&"}
READING = MODEL.model_copy(update={"reader": 12})
LEARNING = Learning(
    routing="lean",
    rounds=1,
    inner_steps=40,
    batch_size=8,
    sequence_length=24,
    learning_rate=0.02,
    warmup_steps=4,
)


def map_of(sites: tuple[str, ...], model: Model = READING) -> ExpertMap:
    return ExpertMap.from_owners(model, {ExpertId(f"{s}.{n}"): SiteId(s) for s in sites for n in range(2)})


MAP = map_of(SITES)


def corpus(site: str, folder: Path) -> Corpus:
    draw, path = np.random.default_rng(len(site)), folder / f"{site}.txt"
    texts = ("".join(draw.choice(list(SIGNS[site]), 40)) for _ in range(120))
    path.write_text("\n\n".join(texts))
    return Corpus.load(path, sequence_length=LEARNING.sequence_length)


def trained(site: str, model: Model, home: Path) -> RoundResult:
    expert_map = map_of(SITES, model)
    trainer = Trainer(
        model=model, expert_map=expert_map, site=SiteId(site), learning=LEARNING, corpus=corpus(site, home),
        public=None, home=home / f"{site}-{model.reader}",
    )  # fmt: skip
    base = initial_state(model, expert_map, seed=1)
    return trainer.train_round(round_number=1, base=base, learning=LEARNING, on_step=ignore)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RoundResult]:
    return {site: trained(site, READING, tmp_path_factory.mktemp(site)) for site in SITES}


@pytest.fixture(scope="module")
def state(results: dict[str, RoundResult]) -> State:
    after = initial_state(READING, MAP, seed=1)
    for name in next(iter(results.values())).trunk_delta:
        after[name] = after[name] + np.mean([r.trunk_delta[name] for r in results.values()], 0, np.float32)
    for result in results.values():
        after |= result.experts
    return after


def whole(state: State, expert_map: ExpertMap = MAP, model: Model = READING) -> nn.Module:
    return build_shard(model, expert_map, own=expert_map.experts, guests=False, state=state).eval()


def log_probabilities(shard: nn.Module, tokens: NDArray[np.int64]) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = shard(input_ids=torch.from_numpy(tokens), use_cache=False).logits
    return found


def test_training_a_reader_leaves_trunk_and_experts_as_they_would_be_without(
    results: dict[str, RoundResult], tmp_path: Path
) -> None:
    unread = trained("letters", MODEL, tmp_path)
    found = results["letters"]
    for name, array in {**unread.trunk_delta, **unread.experts}.items():
        assert np.array_equal(array, {**found.trunk_delta, **found.experts}[name]), name
    assert found.loss == unread.loss
    assert {n for n in found.experts if n not in unread.experts} == {
        f"readers.letters.{role}" for role in ("up.weight", "out.weight", "out.bias")
    }


def test_the_readers_find_a_texts_site_and_learn_from_no_others_text(state: State, tmp_path: Path) -> None:
    shard = whole(state)
    unread = whole(state, map_of(SITES, MODEL), MODEL)
    for site in SITES:
        rows = corpus(site, tmp_path).held_out_rows(length=24, limit=16)
        own = build_shard(READING, MAP, own=MAP.experts_of(SiteId(site)), guests=False, state=state)
        routed, oracle, learned = (held_out_loss(s, rows) for s in (shard, own, unread))
        assert routed < oracle * 1.02, site
        assert routed < learned, site


def test_shares_are_the_posterior_of_what_the_readers_gave_the_tokens(state: State) -> None:
    shard, tokens = whole(state), np.array([[48, 49, 98, 99, 100, 48]])
    log_probabilities(shard, tokens)
    hidden = shard.readers._hidden[0].numpy()  # type: ignore[union-attr, index]
    now = np.full(3, 1 / 3)
    for t in range(6):
        seen = [hidden[t - 1 - n] if t > n else np.zeros(32) for n in range(SPAN)]
        given = []
        for site in SITES:
            up, out, bias = (state[f"readers.{site}.{r}"] for r in ("up.weight", "out.weight", "out.bias"))
            inner = up @ np.concatenate(seen)
            logits = out @ (inner / (1 + np.exp(-inner))) + bias
            given.append(np.exp(logits[tokens[0, t]]) / np.exp(logits).sum())
        now = ((1 - SWITCH) * now + SWITCH / 3) * np.array(given)
        now /= now.sum()
        held = np.where(now < 1e-3, 0, now)
        assert shard.readers._shares[t].numpy() == pytest.approx(held / held.sum(), abs=1e-4)  # type: ignore[union-attr, index]


@pytest.mark.parametrize("case", CONFIGS)
def test_every_family_is_read_in_one_causal_pass_to_a_distribution(case: str) -> None:
    family, config = CONFIGS[case]
    model = Model(family=family, config=config, reader=8)  # type: ignore[arg-type]
    expert_map = map_of(SITES, model)
    shard = whole(initial_state(model, expert_map, seed=2), expert_map, model)
    tokens = np.random.default_rng(0).integers(1, 255, (2, 12))
    found = log_probabilities(shard, tokens)
    assert found.exp().sum(-1).numpy() == pytest.approx(1, abs=1e-4)
    tokens[:, 7:] = 9
    assert torch.allclose(found[:, :7], log_probabilities(shard, tokens)[:, :7], atol=1e-5)
    assert {s.name for s in expert_map.slices} == set(read_state(shard))


def test_with_a_cache_a_text_is_read_as_at_once_and_what_filled_the_cache_is_noticed(state: State) -> None:
    shard = whole(state)
    tokens = torch.from_numpy(np.random.default_rng(4).integers(48, 106, (2, 12)))
    with torch.inference_mode():
        at_once = shard(input_ids=tokens, use_cache=False).logits
        cache, found = None, []
        for piece in tokens.split([5, 1, 2, 4], 1):
            out = shard(input_ids=piece, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            found.append(out.logits)
        torch.testing.assert_close(torch.cat(found, 1), at_once, atol=2e-5, rtol=0)
        made = shard.generate(tokens, max_new_tokens=6, do_sample=False)  # type: ignore[operator]
        slowly = tokens
        for _ in range(6):
            likeliest = shard(input_ids=slowly, use_cache=False).logits[:, -1].argmax(-1, keepdim=True)
            slowly = torch.cat([slowly, likeliest], 1)
        assert torch.equal(made, slowly)
        cache.crop(-5)
        with pytest.raises(ValueError, match="reordered or cut"):
            shard(input_ids=tokens[:, 7:], past_key_values=cache, use_cache=True)
        with pytest.raises(ValueError, match="without padding"):
            shard(input_ids=tokens, attention_mask=(tokens > 80).long(), use_cache=False)


def test_a_site_without_a_share_computes_nothing(state: State, tmp_path: Path) -> None:
    shard = whole(state)
    tokens = corpus("digits", tmp_path).held_out_rows(length=24, limit=4)
    log_probabilities(shard, tokens)
    for layer in (m for m in shard.modules() if isinstance(m, Experts)):
        assert min(layer.tokens[:2]) > 0
        assert sum(layer.tokens[2:]) < sum(layer.tokens) / 4


def test_sure_of_a_site_the_model_is_its_shard_and_a_part_of_its_reader(state: State, tmp_path: Path) -> None:
    shard, rows = whole(state), corpus("marks", tmp_path).held_out_rows(length=24, limit=2)
    own = build_shard(READING, MAP, own=MAP.experts_of(SiteId("marks")), guests=False, state=state).eval()
    both, alone = (log_probabilities(s, rows[:, :-1])[:, -1] for s in (shard, own))
    rest = (both.exp() - (1 - LEAST_DOUBT) * alone.softmax(-1)) / LEAST_DOUBT
    assert rest.sum(-1).numpy() == pytest.approx(1, abs=1e-3)
    assert rest.min() > -1e-3


@pytest.mark.parametrize("size", [1e4, 1e30])
def test_a_reader_of_absurd_numbers_takes_no_text_from_the_others(
    state: State, tmp_path: Path, size: float
) -> None:
    lying = {n: a * np.float32(size) if n.startswith("readers.marks.") else a for n, a in state.items()}
    for site in ("digits", "letters"):
        rows = corpus(site, tmp_path).held_out_rows(length=24, limit=8)
        honest, now = (held_out_loss(whole(s), rows) for s in (state, lying))
        assert now == pytest.approx(honest, rel=0.05), site


@pytest.mark.parametrize("leaver", SITES)
def test_a_site_that_leaves_takes_its_reader_and_the_others_stay_to_the_byte(
    state: State, leaver: str
) -> None:
    """And one that joins brings its own: the same, read backwards."""
    left = map_of(tuple(s for s in SITES if s != leaver))
    readers = {s.name for s in left.slices if s.kind is Kind.READER}
    assert readers == {n for n in state if n.startswith("readers.")} - {
        n for n in state if f".{leaver}." in n
    }
    after = {s.name: state[s.name] for s in MAP.slices if s.name in readers or s.expert is None}
    rows = np.random.default_rng(1).integers(48, 58, (2, 9))
    heard = []
    for expert_map, of in ((MAP, state), (left, _without(leaver, left, state, after))):
        shard = whole(of, expert_map)
        log_probabilities(shard, rows)
        found = dict(zip(expert_map.readers, shard.readers._shares.T, strict=True))  # type: ignore[union-attr]
        heard.append({s: found[s] for s in left.readers})
    before, now = (torch.stack(list(h.values())) for h in heard)
    both = before.sum(0) > 0.5
    assert torch.allclose((before / before.sum(0))[:, both], now[:, both], atol=1e-2)


def _without(leaver: str, left: ExpertMap, state: State, after: State) -> State:
    kept = [n for n, e in enumerate(MAP.experts) if MAP.owners[e] != leaver]
    for part in left.slices:
        if part.kind is Kind.ROUTER:
            after[part.name] = state[part.name][kept]
        elif part.kind is Kind.EXPERT:
            assert part.expert is not None
            now, was = (f".experts.{m.index(part.expert)}." for m in (left, MAP))
            after[part.name] = state[part.name.replace(now, was)]
    return after


def test_a_reader_is_its_sites_own_and_travels_as_experts_do() -> None:
    of = charter().model_copy(update={"model": READING})
    readers = [s for s in MAP.slices if s.kind is Kind.READER]
    assert len(readers) == 3 * len(SITES)
    for part in readers:
        site = SiteId(part.name.split(".")[1])
        assert part in MAP.owned_by(site) and part not in MAP.shared()
        assert encoding_of(of, Kind.READER, 1) == of.learning.codecs.expert
    plain = map_of(SITES, MODEL)
    assert MAP.parameters().active == plain.parameters().active
    assert MAP.parameters().total == plain.parameters().total + sum(s.size for s in readers)


def test_readers_need_lean_shards_and_older_charters_keep_their_bytes() -> None:
    of = charter()
    assert b"reader" not in canonical(of)
    document = of.model_dump()
    document["model"]["reader"] = 8
    document["learning"]["routing"] = "joint"
    with pytest.raises(ValidationError, match=r"model\.reader is 8 but learning\.routing is 'joint'"):
        Charter.model_validate(document)
    document["learning"]["routing"] = "lean"
    assert Charter.model_validate(document).model.reader == 8


def test_readers_are_dealt_into_fragments_alike() -> None:
    dealt = deal(MAP, 2)
    assert sorted(name for fragment in dealt for name in fragment) == [s.name for s in MAP.slices]
    for fragment in dealt:
        roles = [{n.split(".", 2)[2] for n in fragment if n.startswith(f"readers.{s}.")} for s in SITES]
        assert roles[0] == roles[1] == roles[2]
