"""Fragments: every slice has its turn, turns are of one size, and both sides name the same slices."""

from __future__ import annotations

from typing import Any

import pytest

from commons.charter import Charter, Model
from commons.errors import Code, Refusal
from commons.exchange import Exchange
from commons.experts.fragments import deal, due
from commons.experts.map import ExpertMap, Kind, Slice
from commons.features import apply
from commons.learning import Learning
from commons.names import ExpertId, SiteId
from tests.support.consortium import charter
from tests.support.families import CONFIGS

OWNERS = {ExpertId(f"e{n}"): SiteId("one" if n < 3 else "two") for n in range(4)}
LEARNING = Learning(rounds=9, inner_steps=2, batch_size=1, sequence_length=8, learning_rate=0.1, fragments=4)
DEEP: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "moe_intermediate_size": 96,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "vocab_size": 16,
    "tie_word_embeddings": True,
}


def map_of(family: str, config: dict[str, Any]) -> ExpertMap:
    return ExpertMap.from_owners(Model(family=family, config=config), OWNERS)  # type: ignore[arg-type]


def size(parts: list[Slice]) -> int:
    return sum(part.size for part in parts)


@pytest.mark.parametrize("fragments", [1, 2, 4, 7])
@pytest.mark.parametrize("name", CONFIGS)
def test_every_slice_is_in_one_fragment_and_fragments_are_of_one_size(name: str, fragments: int) -> None:
    expert_map = map_of(*CONFIGS[name])
    dealt = deal(expert_map, fragments)
    assert len(dealt) == fragments
    assert sorted(n for names in dealt for n in names) == [s.name for s in expert_map.slices]
    for kinds in (set(Kind) - {Kind.EXPERT}, {Kind.EXPERT}):
        parts = [s for s in expert_map.slices if s.kind in kinds]
        largest = max(part.size for part in parts) * (len(OWNERS) if Kind.EXPERT in kinds else 1)
        for names in dealt:
            assert size([s for s in parts if s.name in names]) <= size(parts) / fragments + largest


def test_alike_layers_are_dealt_in_turn_but_for_what_makes_room_for_the_embedding() -> None:
    expert_map = map_of("glm4_moe", DEEP)
    dealt = deal(expert_map, 4)
    layers = [part for part in expert_map.slices if ".layers." in part.name]
    in_turn = [part for part in layers if part.name in dealt[int(part.name.split(".")[2]) % 4]]
    assert size(in_turn) > 0.99 * size(layers)
    assert {part for part in layers if part.expert} <= set(in_turn)


def test_a_model_of_few_slices_has_few_fragments_and_none_is_empty() -> None:
    tiny = map_of(*CONFIGS["mixtral"])
    dealt = deal(tiny, 64)
    shared = {s.name for s in tiny.shared()}
    assert len(dealt) <= len(shared) and all(names & shared for names in dealt)


@pytest.mark.parametrize("site", ["one", "two"])
def test_rounds_take_turns_and_the_last_exchanges_everything(site: str) -> None:
    expert_map = map_of("glm4_moe", DEEP)
    turns = [Exchange(expert_map, LEARNING, number).uplink(SiteId(site)) for number in range(1, 10)]
    everything = expert_map.uplink(SiteId(site))
    assert turns[-1] == everything
    assert turns[0] == turns[4] and turns[3] == turns[7]
    for first in range(5):
        four = [part for turn in turns[first : first + 4] for part in turn]
        assert sorted(part.name for part in four) == [part.name for part in everything]
    for turn in turns[:-1]:
        assert size(list(turn)) < 1.1 * size(list(everything)) / 4


def test_without_fragments_every_round_exchanges_everything() -> None:
    expert_map = map_of("glm4_moe", DEEP)
    plain = LEARNING.model_copy(update={"fragments": 1})
    assert all(due(expert_map, plain, n) == {s.name for s in expert_map.slices} for n in range(1, 10))


@pytest.mark.parametrize("site", ["one", "two"])
def test_what_sites_own_has_its_turn_and_is_in_the_last_round(site: str) -> None:
    expert_map = map_of("glm4_moe", DEEP)
    of = LEARNING.model_copy(update={"fragments": 1, "owned_every": 4})
    turns = [Exchange(expert_map, of, number).uplink(SiteId(site)) for number in range(1, of.rounds + 1)]
    whole = [number for number, turn in enumerate(turns, 1) if turn == expert_map.uplink(SiteId(site))]
    assert whole == [4, 8, 9] and of.rounds == 9
    assert all(turn == expert_map.shared() for number, turn in enumerate(turns, 1) if number not in whole)


@pytest.mark.parametrize(
    ("of", "params", "why"),
    [
        (charter(rounds__late_rounds=1), {"fragments": 2}, "rounds.late_rounds is 1: a late update holds another"),
        (charter(rounds__late_rounds=1), {"owned_every": 2}, "a late update may hold experts that the round"),
        (charter(), {"owned_every": 2, "fragments": 2}, "learning.fragments is 2: of a fragment's experts"),
        (charter(learning__routing="lean"), {"overlap_steps": 4}, "a round has 4 inner_steps"),
        (charter(), {"overlap_steps": 1}, "learning.routing is 'joint'"),
    ],
)  # fmt: skip
def test_rounds_that_cannot_be_are_refused_before_anybody_votes(
    of: Charter, params: dict[str, Any], why: str
) -> None:
    refusal = apply(of, "fragments", params)
    assert isinstance(refusal, Refusal) and refusal.code is Code.CHARTER_INVALID and why in refusal.message


def test_a_vote_on_fragments_leaves_overlap_as_it_is() -> None:
    of = charter(learning__routing="lean", learning__overlap_steps=1)
    after = apply(of, "fragments", {"fragments": 3})
    assert isinstance(after, Charter)
    assert (after.learning.fragments, after.learning.overlap_steps) == (3, 1)
