"""A state taken apart into its trunk and one part per expert, and put together again.

An expert's part is known by the expert's id alone: its weights over all layers and its row of every router, under names
without an index. So experts can leave, come back, or stand in another order, and none of their bytes change.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from commons.experts.map import ExpertMap
from commons.experts.slices import Kind, Slice
from commons.names import ExpertId

Array = NDArray[np.float32]
Part = Mapping[str, Array]


def take_apart(
    expert_map: ExpertMap, state: Mapping[str, Array]
) -> tuple[dict[str, Array], dict[ExpertId, dict[str, Array]]]:
    """(trunk by name, part by expert), as views of `state`. Raises KeyError for a missing slice."""
    trunk: dict[str, Array] = {}
    parts: dict[ExpertId, dict[str, Array]] = {expert: {} for expert in expert_map.experts}
    for piece in expert_map.slices:
        array = state[piece.name]
        if piece.expert is not None:
            parts[piece.expert][_role(expert_map, piece)] = array
        elif piece.kind is Kind.ROUTER:
            for index, expert in enumerate(expert_map.experts):
                parts[expert][piece.name] = array[index]
        else:
            trunk[piece.name] = array
    return trunk, parts


def put_together(
    expert_map: ExpertMap, trunk: Mapping[str, Array], parts: Mapping[ExpertId, Part]
) -> dict[str, Array]:
    """The state of `expert_map`'s experts. Raises KeyError for an expert without a part, or a part that lacks a slice."""
    state: dict[str, Array] = {}
    for piece in expert_map.slices:
        if piece.expert is not None:
            state[piece.name] = parts[piece.expert][_role(expert_map, piece)]
        elif piece.kind is Kind.ROUTER:
            state[piece.name] = np.stack([parts[expert][piece.name] for expert in expert_map.experts])
        else:
            state[piece.name] = trunk[piece.name]
    return state


def _role(expert_map: ExpertMap, piece: Slice) -> str:
    assert piece.expert is not None
    return piece.name.replace(f".experts.{expert_map.index(piece.expert)}.", ".experts.*.")
