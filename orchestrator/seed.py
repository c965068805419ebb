"""The model a run starts from: a Hugging Face folder read into a model state."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from commons.errors import Code, Refusal
from commons.experts.map import ExpertMap
from commons.names import Digest
from commons.states import FP32, StateStore
from orchestrator.safetensors_file import Entry, blocks, by_slice, read_header

NAMED_MAX = 3


def load_seed(folder: Path, expert_map: ExpertMap, store: StateStore) -> Digest | Refusal:
    """Save every ``*.safetensors`` of `folder` as one state; its digest. One block is in memory at a time.

    Own layers that are not there begin as the trunk they are in place of. Refused when the tensors are not exactly those of
    the charter's model, in fp32.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        return _wrong(folder, "holds no model.safetensors")
    try:
        where = {
            name: (file, entry)
            for file in files
            for name, entry in by_slice(read_header(file), expert_map).items()
        }
        begun = ((s.name, s.stands_for) for s in expert_map.slices if s.stands_for in where)
        where = {name: where[plain] for name, plain in begun if plain} | where
        problems = list(_problems({name: entry for name, (_, entry) in where.items()}, expert_map))
        if problems:
            return _wrong(folder, f"does not fit the charter's model: {'; '.join(problems[:NAMED_MAX])}")
        return _save(where, store)
    except (ValueError, OSError) as error:
        return _wrong(folder, f"cannot be read: {error}")


def _problems(found: dict[str, Entry], expert_map: ExpertMap) -> Iterator[str]:
    wanted = {s.name: s for s in expert_map.slices}
    lacking, odd = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
    if lacking:
        yield f"{len(lacking)} tensors are missing, first {lacking[0]}"
    if odd:
        yield f"{len(odd)} tensors are unknown, first {odd[0]}"
    for name in sorted(set(wanted) & set(found)):
        dtype, shape = found[name].dtype, found[name].shape
        if dtype != "F32" or shape != wanted[name].shape:
            alike = wanted[name].expert is not None and dtype == "F32"
            why = f" (all experts of {expert_map.family} are of one size)" if alike else ""
            yield f"{name} is {dtype} {list(shape)}, not F32 {list(wanted[name].shape)}{why}"


def _save(where: dict[str, tuple[Path, Entry]], store: StateStore) -> Digest:
    with store.writer() as state:
        for name, (path, entry) in sorted(where.items()):
            tensor = state.slice(name, entry.shape)
            with path.open("rb") as file:
                for block in blocks(file, entry):
                    tensor.write(np.frombuffer(block, FP32))
            tensor.close()
        return state.finish()


def _wrong(folder: Path, what: str) -> Refusal:
    return Refusal(Code.REQUEST_INVALID, f"{folder} {what}; the operator makes a seed with `hansa seed make`")
