"""How slices lie in a model's safetensors files: each as a tensor of its own, or an expert's as one entry of a stack.

A stack's entries lie one after the other at the experts' indices, so a slice's bytes, and its digest, are the same in
the stack and alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from commons.experts.map import ExpertMap
from commons.experts.slices import Kind, Slice

Array = NDArray[np.float32]
MODEL, READERS, OWN = "model.safetensors", "readers.safetensors", "own.safetensors"
"""What transformers loads, and the sites' readers and own layers where the model has them (`commons.experts.readers`, `.own`)."""


@dataclass(frozen=True)
class Stored:
    """One tensor of a released model."""

    name: str
    shape: tuple[int, ...]
    slices: tuple[Slice, ...]
    """Whose bytes it is made of, in order."""

    @property
    def file(self) -> str:
        """The file that has it."""
        return {Kind.READER: READERS, Kind.OWN: OWN}.get(self.slices[0].kind, MODEL)


def stored(expert_map: ExpertMap) -> tuple[Stored, ...]:
    """Every tensor of the released model, in name order."""
    stacks: dict[str, list[Slice]] = {}
    for part in expert_map.slices:
        stacks.setdefault(part.stack or part.name, []).append(part)
    index = {expert: n for n, expert in enumerate(expert_map.experts)}
    found = []
    for name, parts in sorted(stacks.items()):
        if parts[0].stack is None:
            found.append(Stored(name, parts[0].shape, tuple(parts)))
        else:
            ordered = sorted(parts, key=lambda part: index[part.expert] if part.expert else 0)
            found.append(Stored(name, (len(parts), *parts[0].shape), tuple(ordered)))
    return tuple(found)


def weights_files(expert_map: ExpertMap) -> dict[str, tuple[Stored, ...]]:
    """The safetensors files of a released model, and the tensors in each."""
    found: dict[str, list[Stored]] = {MODEL: []}
    for tensor in stored(expert_map):
        found.setdefault(tensor.file, []).append(tensor)
    return {name: tuple(tensors) for name, tensors in found.items()}


def stacked(expert_map: ExpertMap, state: Mapping[str, Array]) -> dict[str, Array]:
    """A state under the names, and in the shapes, that its family has on disk. Raises KeyError for a missing slice."""
    return {
        tensor.name: np.stack([state[part.name] for part in tensor.slices])
        if tensor.slices[0].stack
        else state[tensor.name]
        for tensor in stored(expert_map)
    }


def unstacked(expert_map: ExpertMap, tensors: Mapping[str, Array]) -> dict[str, Array]:
    """The inverse of `stacked`, as views. Raises KeyError for a missing tensor.

    Own layers that are not there begin: they are the trunk's in whose place they are.
    """
    state = {}
    for tensor in stored(expert_map):
        began = tensor.slices[0].stands_for
        whole = tensors[began] if began and tensor.name not in tensors else tensors[tensor.name]
        for n, part in enumerate(tensor.slices):
            state[part.name] = whole[n] if part.stack else whole
    return state
