"""The model a run starts from: a Hugging Face folder read into a model state."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from commons.errors import Code, Refusal
from commons.experts.map import ExpertMap
from commons.names import Digest
from commons.states import StateStore, Tensor

NAMED_MAX = 3


def load_seed(folder: Path, expert_map: ExpertMap, store: StateStore) -> Digest | Refusal:
    """Save every ``*.safetensors`` of `folder` as one state; its digest. One tensor is in memory at a time.

    Refused when the tensors are not exactly those of the charter's model, in fp32.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        return _wrong(folder, "holds no model.safetensors")
    try:
        with ExitStack() as stack:
            opened = [stack.enter_context(safe_open(file, framework="numpy")) for file in files]
            where = {name: file for file in opened for name in file.keys()}  # noqa: SIM118 (not a mapping)
            problems = list(_problems(where, expert_map))
            if problems:
                return _wrong(folder, f"does not fit the charter's model: {'; '.join(problems[:NAMED_MAX])}")
            return store.save(_tensors(where))
    except (SafetensorError, OSError) as error:
        return _wrong(folder, f"cannot be read: {error}")


def _problems(where: dict[str, Any], expert_map: ExpertMap) -> Iterator[str]:
    wanted = {s.name: s for s in expert_map.slices}
    lacking, odd = sorted(set(wanted) - set(where)), sorted(set(where) - set(wanted))
    if lacking:
        yield f"{len(lacking)} tensors are missing, first {lacking[0]}"
    if odd:
        yield f"{len(odd)} tensors are unknown, first {odd[0]}"
    for name in sorted(set(wanted) & set(where)):
        found = where[name].get_slice(name)
        if found.get_dtype() != "F32" or tuple(found.get_shape()) != wanted[name].shape:
            shape = f"{found.get_dtype()} {list(found.get_shape())}"
            yield f"{name} is {shape}, not F32 {list(wanted[name].shape)}"


def _tensors(where: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    for name in sorted(where):
        yield name, where[name].get_tensor(name)


def _wrong(folder: Path, what: str) -> Refusal:
    return Refusal(Code.REQUEST_INVALID, f"{folder} {what}; the operator makes a seed with `hansa seed make`")
