"""Own layers: each site trains its own, a model of all reads with each site's, and they come and go with their sites."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from safetensors.numpy import load_file, save_file
from torch import nn

from commons.charter import Charter, Model
from commons.charter_file import canonical
from commons.errors import Refusal
from commons.experts.fragments import deal
from commons.experts.map import ExpertMap, Kind, model_problems
from commons.experts.remaking import carried_over
from commons.experts.stored import unstacked
from commons.features import apply
from commons.learning import Learning, Strategy
from commons.names import SiteId
from commons.states import StateStore
from commons.updates import encoding_of
from governance.fsck import judge
from orchestrator.release import Made, make, verify
from orchestrator.seed import load_seed
from tests.support.consortium import charter, seed_state, signer
from tests.support.families import CONFIGS
from tests.support.rounds import Stage
from tests.unit.test_readers import LEARNING, READING, SITES, corpus, log_probabilities, map_of, whole
from tests.unit.test_release import desk_of, run_of
from tests.unit.test_remaking import (
    hand_in,
    parts,
    remakes,
    stage_of,  # noqa: F401 (a fixture)
)
from tests.unit.test_trainer import ignore
from workers.objectives import held_out_loss
from workers.rounds import RoundResult
from workers.shard import build_shard, initial_state, read_state, resident_bytes
from workers.trainer import Trainer

State = dict[str, NDArray[np.float32]]
OWNING = READING.model_copy(update={"own_from": 0})
MAP = map_of(SITES, OWNING)


def trainer_of(site: str, learning: Learning, home: Path, model: Model = OWNING) -> Trainer:
    return Trainer(
        model=model, expert_map=map_of(SITES, model), site=SiteId(site), learning=learning, corpus=corpus(site, home),
        public=None, home=home / f"{site}-{model.own_from}-{learning.strategy}",
    )  # fmt: skip


def trained(site: str, strategy: Strategy, home: Path, model: Model = OWNING) -> RoundResult:
    learning = LEARNING.model_copy(update={"inner_steps": 3, "strategy": strategy})
    base = initial_state(model, map_of(SITES, model), seed=1)
    trainer = trainer_of(site, learning, home, model)
    return trainer.train_round(round_number=1, base=base, learning=learning, on_step=ignore)


def test_a_site_measures_the_model_of_all_as_it_is_released(tmp_path: Path) -> None:
    state, text = apart(OWNING, MAP), corpus("marks", tmp_path)
    joint = LEARNING.model_copy(update={"routing": "joint"})
    measured = trainer_of("letters", joint, tmp_path).evaluate(state, text, limit=8)
    rows = text.held_out_rows(length=LEARNING.sequence_length, limit=8)
    assert measured == pytest.approx(held_out_loss(whole(state, MAP, OWNING), rows), abs=1e-6)


def apart(model: Model, expert_map: ExpertMap) -> State:
    """A state in which no two sites' own layers are alike."""
    draw, state = np.random.default_rng(5), initial_state(model, expert_map, seed=2)
    own = [s.name for s in expert_map.slices if s.kind is Kind.OWN]
    return state | {
        n: state[n] + np.float32(0.1) * draw.standard_normal(state[n].shape, np.float32) for n in own
    }


def alone(site: str, state: State, model: Model, expert_map: ExpertMap) -> nn.Module:
    own = expert_map.experts_of(SiteId(site))
    return build_shard(model, expert_map, own=own, guests=False, state=state).eval()


def test_a_site_trains_its_own_layers_as_it_would_the_trunks_and_sends_them_with_its_experts(
    tmp_path: Path,
) -> None:
    ours, shared = (
        trained("letters", "expert_diloco", tmp_path),
        trained("letters", "expert_diloco", tmp_path, READING),
    )
    assert MAP.late and not MAP.late & ours.trunk_delta.keys()
    assert ours.loss == shared.loss
    seed = initial_state(READING, map_of(SITES), seed=1)
    for name in MAP.late:
        as_trunk = seed[name] + shared.trunk_delta[name]
        assert np.allclose(ours.experts[f"own.letters.{name}"], as_trunk, atol=1e-6), name
    assert {n for n in ours.experts if n.startswith("own.")} == {f"own.letters.{n}" for n in MAP.late}


def test_on_a_frozen_trunk_a_site_still_trains_its_own_layers(tmp_path: Path) -> None:
    found, seed = trained("digits", "sovereign", tmp_path), initial_state(OWNING, MAP, seed=1)
    assert all(".gate." in name for name in found.trunk_delta)
    moved = [n for n in MAP.late if not np.array_equal(found.experts[f"own.digits.{n}"], seed[n])]
    assert sorted(moved) == sorted(MAP.late)
    frozen, shared = (
        of.training_gflop(10**9, frozen_trunk=True) / of.training_gflop(10**9) for of in (MAP, map_of(SITES))
    )
    assert shared < frozen < 1


@pytest.mark.parametrize("begin", [0, 1])
@pytest.mark.parametrize("case", CONFIGS)
def test_every_family_is_read_by_each_sites_own_shard_and_their_predictions_are_mixed(
    case: str, begin: int
) -> None:
    family, config = CONFIGS[case]
    model = Model(family=family, config=config, reader=8, own_from=begin)  # type: ignore[arg-type]
    expert_map = map_of(SITES, model)
    state = apart(model, expert_map)
    shard, tokens = whole(state, expert_map, model), np.random.default_rng(0).integers(1, 255, (2, 12))
    found = log_probabilities(shard, tokens)
    shares = shard.readers.shares_by_row()  # type: ignore[union-attr, operator]
    each = [log_probabilities(alone(s, state, model, expert_map), tokens).softmax(-1) for s in SITES]
    by_sites = (shares.unsqueeze(-1) * torch.stack(each, -2)).sum(-2)
    mixed = shard.readers.mixed(by_sites.log())  # type: ignore[union-attr, operator]
    torch.testing.assert_close(found, mixed, atol=1e-5, rtol=0)
    assert {s.name for s in expert_map.slices if s.kind is not Kind.SEED} == set(read_state(shard))
    assert resident_bytes(shard) < 4 * expert_map.parameters().total * 1.1
    cache, pieces = None, []
    with torch.inference_mode():
        for piece in torch.from_numpy(tokens).split([5, 1, 2, 4], 1):
            out = shard(input_ids=piece, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            pieces.append(out.logits)
    torch.testing.assert_close(torch.cat(pieces, 1), found, atol=2e-5, rtol=0)


def test_a_site_that_is_ruled_out_reads_no_further_and_catches_up_when_it_has_a_share_again() -> None:
    """By readers that find one sign likely, whatever came before it."""
    state = apart(OWNING, MAP)
    for site, sign in zip(SITES, "0a+", strict=True):
        state[f"readers.{site}.out.weight"] = np.zeros_like(state[f"readers.{site}.out.weight"])
        bias = np.zeros_like(state[f"readers.{site}.out.bias"])
        bias[ord(sign)] = 9.0
        state[f"readers.{site}.out.bias"] = bias
    shard, text = whole(state, MAP, OWNING), torch.tensor([list(b"aa000000aaaaaaaa")])
    read: dict[str, list[int]] = {}
    for site in SITES:
        tail = shard.get_submodule(f"tails.of_{site}")
        tail.register_forward_pre_hook(_noting(read, site), with_kwargs=True)
    with torch.inference_mode():
        at_once = shard(input_ids=text, use_cache=False).logits
        assert "marks" not in read and 8 <= read["digits"][0] < 12 and read["letters"] == [16]
        read.clear()
        first = shard(input_ids=text[:, :8], use_cache=True)
        second = shard(input_ids=text[:, 8:], past_key_values=first.past_key_values, use_cache=True)
    assert len(read["letters"]) == 2 and read["letters"][0] < 8 and sum(read["letters"]) == 16
    found = torch.cat([first.logits, second.logits], 1)
    torch.testing.assert_close(found, at_once, atol=2e-5, rtol=0)
    own = log_probabilities(alone("letters", state, OWNING, MAP), text.numpy())[:, -1].softmax(-1)
    rest = (at_once[:, -1].exp() - 0.9 * own) / 0.1
    assert rest.sum() == pytest.approx(1, abs=1e-3) and rest.min() > -1e-3, (
        "sure of it, the model is its shard"
    )


def _noting(read: dict[str, list[int]], site: str) -> Callable[..., None]:
    return lambda _, given, named: read.setdefault(site, []).append(named["inputs_embeds"].shape[1])


def test_a_site_whose_layers_overflow_takes_no_text_from_the_others() -> None:
    state, tokens = apart(OWNING, MAP), np.random.default_rng(3).integers(48, 106, (2, 12))
    state["own.marks.model.norm.weight"] = np.full_like(state["own.marks.model.norm.weight"], np.inf)
    shard = whole(state, MAP, OWNING)
    found = log_probabilities(shard, tokens)
    assert torch.isfinite(found).all()
    shares = shard.readers.shares_by_row()  # type: ignore[union-attr, operator]
    heard = found.exp().sum(-1)
    assert torch.all(heard > 0.9 * (1 - shares[..., 2]) - 1e-3)


@pytest.mark.parametrize("leaver", SITES)
def test_a_site_that_leaves_takes_its_layers_and_the_others_stay_to_the_byte(leaver: str) -> None:
    state = apart(OWNING, MAP)
    left = map_of(tuple(s for s in SITES if s != leaver), OWNING)
    kept = carried_over(state, MAP.experts, left)
    names = {s.name for s in left.slices}
    assert {n for n in MAP.late | {s.name for s in MAP.slices if s.kind is Kind.OWN} if n not in names} == {
        f"own.{leaver}.{n}" for n in MAP.late
    }
    assert all(kept[n] is state[n] for n in names if n.startswith("own.") or n in MAP.late)


def test_own_layers_are_their_sites_and_travel_as_experts_do() -> None:
    of = charter().model_copy(update={"model": OWNING})
    own = [s for s in MAP.slices if s.kind is Kind.OWN]
    assert len(own) == len(SITES) * len(MAP.late) > 0
    assert encoding_of(of, Kind.OWN, 1) == of.learning.codecs.expert
    for part in own:
        site = SiteId(part.name.split(".")[1])
        assert part in MAP.owned_by(site) and part in MAP.uplink(site) and part not in MAP.shared()
    assert not {s.name for site in SITES for s in MAP.uplink(SiteId(site))} & MAP.late
    plain, counts = map_of(SITES).parameters(), MAP.parameters()
    assert counts.active == plain.active and counts.trunk + counts.own == plain.trunk
    assert counts.total == plain.total + 2 * counts.own
    dealt = deal(MAP, 2)
    assert sorted(n for names in dealt for n in names) == [
        s.name for s in MAP.slices if s.kind is not Kind.SEED
    ]
    for names in dealt:
        roles = [{n.split(".", 2)[2] for n in names if n.startswith(f"own.{s}.")} for s in SITES]
        assert roles[0] == roles[1] == roles[2]


def test_own_layers_need_readers_and_a_place_behind_them_and_older_charters_keep_their_bytes() -> None:
    document: dict[str, Any] = charter(learning__routing="lean").model_dump()
    assert b"own_from" not in canonical(charter())
    document["model"]["own_from"] = 0
    with pytest.raises(ValidationError, match=r"model\.own_from is 0 but model\.reader is 0"):
        Charter.model_validate(document)
    document["model"]["reader"] = 4
    assert list(model_problems(Charter.model_validate(document))) == []
    document["model"]["own_from"] = 1
    (problem,) = model_problems(Charter.model_validate(document))
    assert problem.path == ("model", "own_from") and "the last layer is 0" in problem.what
    document["model"]["own_from"] = None
    far = apply(Charter.model_validate(document), "own-layers", {"begin": 1})
    assert isinstance(far, Refusal) and "the last layer is 0" in far.message


@pytest.mark.parametrize("copies", [True, False])
def test_own_layers_that_a_vote_brings_begin_as_the_trunk_and_a_new_sites_as_those_of_the_expert_it_copies(
    stage_of: Callable[..., Stage],  # noqa: F811
    copies: bool,
) -> None:
    stage = stage_of(learning__routing="lean")
    stage.decides("readers", by="alder", width=4)
    assert stage.play(*hand_in(stage))
    trunk, _ = parts(stage)
    stage.decides("own-layers", by="alder", begin=0)
    remakes(stage)
    late = ExpertMap.from_charter(stage.charter).late
    began, _ = parts(stage)
    assert late and all(np.array_equal(began[n], trunk[n]) for n in late)
    for site in ("alder", "birch", "cedar"):
        assert all(np.array_equal(stage.state[f"own.{site}.{n}"], trunk[n]) for n in late)
    assert stage.play(*hand_in(stage)) and judge(stage.records()) == ()
    after, _ = parts(stage)
    assert all(np.array_equal(after[n], trunk[n]) for n in late), "nobody trains the seed's"
    assert not any(np.array_equal(stage.state[f"own.birch.{n}"], trunk[n]) for n in late)
    stage.decides("member-admit", name="dune", key=signer("dune").vkey, budget_micro=1_000_000)
    assert stage.play(*hand_in(stage))
    site = stage.charter.sites[0].model_dump(mode="json") | {
        "name": "dune", "partner": "dune", "payer": "dune", "domain": "dune-text", "experts": ["dune-0", "dune-1"],
    }  # fmt: skip
    like = {"like": ["birch-0", "birch-1"]} if copies else {}
    stage.decides("site-add", by="dune", **site, **like, quorum=3)
    before = dict(stage.state)
    remakes(stage)
    for name in late:
        began_as = f"own.birch.{name}" if copies else name
        assert np.array_equal(stage.state[f"own.dune.{name}"], before[began_as])
        assert np.array_equal(stage.state[f"own.cedar.{name}"], before[f"own.cedar.{name}"])
    assert judge(stage.records()) == ()


def test_a_seed_without_them_gives_every_site_the_trunks(tmp_path: Path) -> None:
    of = charter(learning__routing="lean")
    of = of.model_copy(update={"model": of.model.model_copy(update={"reader": 4, "own_from": 0})})
    expert_map, store = ExpertMap.from_charter(of), StateStore(tmp_path / "states")
    tensors = {n: a for n, a in seed_state(of).items() if not n.startswith("own.")}
    save_file(tensors, tmp_path / "model.safetensors")
    digest = load_seed(tmp_path, expert_map, store)
    assert not isinstance(digest, Refusal), digest
    state = store.load(digest)
    assert expert_map.late
    for name in expert_map.late:
        assert all(np.array_equal(state[f"own.{s.name}.{name}"], tensors[name]) for s in of.sites)
    assert unstacked(expert_map, tensors).keys() == state.keys()


def test_own_layers_lie_beside_the_model_and_are_checked_with_it(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    from hansa.released import load

    of = charter(release={"licence": "Apache-2.0", "seed_beside": True}, learning__routing="lean")
    of = of.model_copy(update={"model": of.model.model_copy(update={"reader": 4, "own_from": 0})})
    desk = desk_of(of, tmp_path)
    made = make(desk, run_of(desk), tmp_path / "release")
    assert isinstance(made, Made), made
    assert verify(made.folder) == []
    state = desk.store.load(run_of(desk).state)
    files = {f: load_file(made.folder / f"{f}.safetensors") for f in ("model", "readers", "own")}
    assert {n for n in state if n.startswith("own.")} == files["own"].keys()
    assert all(np.array_equal(a, state[n]) for tensors in files.values() for n, a in tensors.items())
    assert "own.safetensors" in (made.folder / "README.md").read_text()
    assert {p.name for p in (made.folder / "seed").glob("*.safetensors")} == {"model.safetensors"}
    model, report = AutoModelForCausalLM.from_pretrained(made.folder, output_loading_info=True)
    assert model and not report["missing_keys"] and not report["unexpected_keys"]
    assert len(list(load(made.folder).get_submodule("tails").children())) == len(of.sites)
    with (made.folder / "own.safetensors").open("r+b") as file:
        file.seek(-4, 2)
        file.write(b"\0\0\x80\x3f")
    said = "; ".join(verify(made.folder))
    assert "own.safetensors does not hold" in said and "1 tensors differ, first own." in said
