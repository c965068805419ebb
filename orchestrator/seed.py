"""The model a run starts from: a Hugging Face folder, made here or published, read into a model state of fp32."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from commons.charter import Charter
from commons.errors import Code, HansaError, Refusal
from commons.experts.map import ExpertMap
from commons.experts.published import differences
from commons.experts.remaking import remake_state
from commons.experts.slices import Kind
from commons.experts.stored import READERS
from commons.experts.tokenizer import FILE, read_named
from commons.experts.whole import copies, seed_map
from commons.names import Digest
from commons.states import StateStore
from orchestrator.safetensors_file import FLOATS, Entry, as_fp32, blocks, by_slice, read_header

NAMED_MAX = 3
CONFIG, INDEX = "config.json", "model.safetensors.index.json"


def begin(folder: Path, charter: Charter, expert_map: ExpertMap, store: StateStore) -> Digest | Refusal:
    """Save the state that a run from the seed in `folder` begins with; its digest.

    Refused as by `described_otherwise` and `load_seed`. Of a seed with as many experts as every site owns, each site gets
    copies of all (`commons.experts.whole`). Raises StoreError when the disk is full.
    """
    whole = seed_map(charter)
    fitting = {len(one.experts): one for one in (whole, expert_map) if one is not None}
    count = experts_in(folder, expert_map) or len(expert_map.experts)
    begun = fitting.get(count)
    if begun is None:
        each = f" together and {len(whole.experts)} each" if whole is not None else ""
        return _wrong(folder, f"has {count} experts, the charter's sites own {len(expert_map.experts)}{each}")
    if refusal := described_otherwise(folder, charter, count):
        return refusal
    state = load_seed(folder, begun, store)
    if isinstance(state, Refusal) or begun is not whole:
        return state
    return remake_state(store, state, copies(charter, begun))


def load_seed(folder: Path, expert_map: ExpertMap, store: StateStore) -> Digest | Refusal:
    """Save the folder's tensors as one state; its digest. One block is in memory at a time.

    Read are the files that ``model.safetensors.index.json`` names, or else every ``*.safetensors``; bf16 and fp16 become the
    fp32 that is equal. Refused when the tensors are not exactly those of the charter's model. Layers behind the model's own
    predict further tokens (DeepSeek-V3, GLM-4.5) and are left out, where a config.json says how many are the model's. Sites' own
    layers that are not there begin as the trunk they are in place of.
    """
    try:
        files = _files(folder)
        if not files:
            return _wrong(folder, "holds no model.safetensors")
        where = {
            name: (file, entry)
            for file in files
            for name, entry in by_slice(read_header(file), expert_map).items()
        }
        if (folder / CONFIG).exists():
            where = {name: at for name, at in where.items() if not _beyond(name, expert_map)}
        begun = ((s.name, s.stands_for) for s in expert_map.slices if s.stands_for in where)
        where = {name: where[plain] for name, plain in begun if plain} | where
        problems = list(_problems({name: entry for name, (_, entry) in where.items()}, expert_map))
        if problems:
            return _wrong(folder, f"does not fit the charter's model: {'; '.join(problems[:NAMED_MAX])}")
        return _save(where, store)
    except (ValueError, OSError) as error:
        return _wrong(folder, f"cannot be read: {error}")


def described_otherwise(folder: Path, charter: Charter, experts: int) -> Refusal | None:
    """Why what `folder` says of its model is not the charter's with so many experts: by its config.json and its tokenizer,
    where it has them."""
    named = charter.model.tokenizer
    try:
        if named.file and (folder / FILE).exists():
            read_named(folder / FILE, named, "a seed of other tokens is another model")
        if not (folder / CONFIG).exists():
            return None
        published = json.loads((folder / CONFIG).read_bytes())
        found = list(differences(charter.model, experts, published))
    except HansaError as error:
        return Refusal(Code.REQUEST_INVALID, str(error))
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        return _wrong(folder, f"has a {CONFIG} that cannot be read: {error}")
    if not found:
        return None
    return _wrong(folder, f"is of another model than the charter's: {'; '.join(found[:NAMED_MAX])}")


def experts_in(folder: Path, expert_map: ExpertMap) -> int | None:
    """Rows of the first router that the folder holds; None where there is none that can be read."""
    routers = {part.name for part in expert_map.slices if part.kind is Kind.ROUTER}
    try:
        headers = [read_header(file) for file in _files(folder)]
    except (ValueError, OSError):
        return None
    rows = (
        entry.shape[0]
        for header in headers
        for name, entry in header.items()
        if name in routers and entry.shape
    )
    return next(rows, None)


def _files(folder: Path) -> list[Path]:
    """Raises ValueError, OSError."""
    index = folder / INDEX
    if not index.exists():
        return sorted(folder.glob("*.safetensors"))
    try:
        names = {str(name) for name in json.loads(index.read_bytes())["weight_map"].values()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"{INDEX} is no index: {error}") from error
    if odd := sorted(name for name in names if Path(name).name != name):
        raise ValueError(f"{INDEX} names {odd[0]!r}, which is no file of the folder")
    readers = [READERS] if (folder / READERS).exists() else []
    return [folder / name for name in sorted(names | set(readers))]


def _beyond(name: str, expert_map: ExpertMap) -> bool:
    last = max(part.layer for part in expert_map.slices if part.layer is not None)
    layer = re.match(r"model\.layers\.(\d+)\.", name)
    return layer is not None and int(layer[1]) > last


def _problems(found: dict[str, Entry], expert_map: ExpertMap) -> Iterator[str]:
    wanted = {s.name: s for s in expert_map.slices}
    lacking, odd = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
    if lacking:
        yield f"{len(lacking)} tensors are missing, first {lacking[0]}"
    if odd:
        yield f"{len(odd)} tensors are unknown, first {odd[0]}"
    for name in sorted(set(wanted) & set(found)):
        dtype, shape = found[name].dtype, found[name].shape
        if dtype not in FLOATS or shape != wanted[name].shape:
            alike = wanted[name].expert is not None and dtype in FLOATS
            why = f" (all experts of {expert_map.family} are of one size)" if alike else ""
            yield f"{name} is {dtype} {list(shape)}, not F32 {list(wanted[name].shape)}{why}"


def _save(where: dict[str, tuple[Path, Entry]], store: StateStore) -> Digest:
    with store.writer() as state:
        for name, (path, entry) in sorted(where.items()):
            tensor = state.slice(name, entry.shape)
            with path.open("rb") as file:
                for block in blocks(file, entry):
                    tensor.write(as_fp32(block, entry.dtype))
            tensor.close()
        return state.finish()


def _wrong(folder: Path, what: str) -> Refusal:
    return Refusal(Code.REQUEST_INVALID, f"{folder} {what}; the operator makes a seed with `hansa seed make`")
