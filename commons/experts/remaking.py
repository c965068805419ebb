"""A state re-made because experts came, went or changed hands: whatever stays is moved by expert id, bit for bit.

The new state is a pure function of the old one and of the charters from one expert map to the other, so that whoever
holds the old state recomputes it (`lineage`). An expert that stays keeps its weights, its row of every router and what
is remembered beside them, whatever its index becomes; one that goes leaves nothing behind; one that comes begins as a
copy of another or by the seed rule, with nothing remembered. An expert's weights are not read: they are blobs that
change names, but where a gain makes them others. Knows nothing of rounds.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from commons.charter import Charter
from commons.experts.families import FAMILIES
from commons.experts.initial import initial_blocks
from commons.experts.map import ExpertMap
from commons.experts.own import PREFIX
from commons.experts.slices import Kind, Slice
from commons.names import Digest, ExpertId
from commons.states import FP32, Blob, BlobReader, StateStore, StateWriter, state_digest
from commons.states.naming import named

Array = NDArray[np.float32]
_INDEX = re.compile(r"\.experts\.(\d+)\.")
_BLOCK = 1 << 17
"""Values read at a time."""
_RESIDUAL = "residual/"
"""What a memory's names of dropped values begin with (`orchestrator.combine`)."""


@dataclass(frozen=True)
class Origin:
    """What an expert of the new map begins as."""

    expert: ExpertId | None
    """An expert of the old map; None: it begins by the seed rule."""
    stays: bool
    """It is that expert, not a copy of it."""


def lineage(charters: Sequence[Charter]) -> dict[ExpertId, Origin]:
    """Where each expert of the last charter comes from among those of the first, in the last one's order.

    `charters`: every version from one to the other, so that an expert may be added as a copy of one that is retired in
    the same round.
    """
    found = {ExpertId(e): Origin(ExpertId(e), True) for e in charters[0].experts}
    for charter in charters[1:]:
        like = {a.expert: a.like for a in charter.added}
        found = {ExpertId(e): found.get(ExpertId(e)) or _began(found, like.get(e)) for e in charter.experts}
    return found


def _began(before: Mapping[ExpertId, Origin], like: str | None) -> Origin:
    return Origin(before[ExpertId(like)].expert if like else None, False)


@dataclass(frozen=True)
class Change:
    """From one expert map to another."""

    charter: Charter
    """The one that the new map is of."""
    before: ExpertMap
    after: ExpertMap
    origins: Mapping[ExpertId, Origin]
    gain: int = 1
    """What the output of a copied expert is multiplied by: by how much its share of the gates was divided
    (`commons.experts.whole`)."""

    @classmethod
    def through(cls, charters: Sequence[Charter]) -> Change:
        """`charters` as in `lineage`."""
        before, after = (ExpertMap.from_charter(c) for c in (charters[0], charters[-1]))
        return cls(charters[-1], before, after, lineage(charters))

    def rows(self, *, memory: bool) -> list[int | None]:
        """For each row of a new router the old row it is; None for one that is made, or of a memory begins at zero."""
        index = {expert: n for n, expert in enumerate(self.before.experts)}
        origins = (self.origins[expert] for expert in self.after.experts)
        return [None if o.expert is None or (memory and not o.stays) else index[o.expert] for o in origins]


def remake_state(store: StateStore, state: Digest, change: Change) -> Digest:
    """The state under the new map, saved durably; a repeat gives the same. One block of weights is in memory at a time.

    Raises StoreError when the old state is not here whole, or the disk is full.
    """
    with store.writer() as made:
        for part, content in _pieces(store, state, change):
            if isinstance(content, Blob):
                made.keep(part.name, content)
                continue
            new = made.slice(part.name, part.shape)
            for block in content:
                new.write(block)
            new.close()
        return made.finish()


def remade_digest(store: StateStore, state: Digest, change: Change) -> Digest:
    """What `remake_state` gives, for whoever holds the old state and only wants to know; nothing is written."""
    found: dict[str, Blob] = {}
    for part, content in _pieces(store, state, change):
        if not isinstance(content, Blob):
            total = blake3()
            for block in content:
                total.update(np.ascontiguousarray(block, FP32).tobytes())
            digest = named(total)
            content = Blob(digest, part.shape, part.size * FP32.itemsize)
        found[part.name] = content
    return state_digest(found)


def _pieces(
    store: StateStore, state: Digest, change: Change
) -> Iterator[tuple[Slice, Blob | Iterator[Array]]]:
    """Each slice of the new state: the blob it has in the old one, or its values, made block by block."""
    old = store.manifest(state)
    index = {expert: n for n, expert in enumerate(change.before.experts)}
    for part in change.after.slices:
        origin = change.origins[part.expert].expert if part.expert is not None else None
        if part.kind is Kind.ROUTER:
            yield part, _router(store, old[part.name], part, change)
        elif part.expert is None or (part.kind is not Kind.EXPERT and part.name in old):
            yield part, old[part.name]
        elif part.stands_for is not None:
            owner = change.before.owners[origin] if origin is not None else None
            yield part, old.get(f"{PREFIX}{owner}.{part.stands_for}", old[part.stands_for])
        elif part.kind is Kind.READER and len(part.shape) == 1:
            yield part, iter([np.zeros(part.shape, np.float32)])
        elif part.kind is Kind.READER:
            yield part, _initial(change.charter, part.expert, part.name, part.size)
        elif origin is not None:
            blob = old[_INDEX.sub(f".experts.{index[origin]}.", part.name)]
            louder = change.gain > 1 and _is_output(change.charter, part)
            yield part, _times(store, blob, part.size, change.gain) if louder else blob
        else:
            yield part, _initial(change.charter, part.expert, part.name, part.size)


def _is_output(charter: Charter, part: Slice) -> bool:
    """Whether it is the matrix that an expert's output is a product of."""
    mixture = FAMILIES[charter.model.family].mixture
    return part.name.endswith(f".{mixture.matrices[2]}.weight")


def _times(store: StateStore, blob: Blob, size: int, gain: int) -> Iterator[Array]:
    with store.open(blob) as reader:
        for first in range(0, size, _BLOCK):
            values = np.empty(min(_BLOCK, size - first), np.float32)
            reader.read_into(first, values)
            yield values * np.float32(gain)


def remake_memory(store: StateStore, memory: Digest, change: Change) -> Digest:
    """What is kept beside slices (outer momentum, what the way down dropped), under the new map; as `remake_state`."""
    parts = {part.name: part for part in change.after.slices}
    staying = {expert for expert, origin in change.origins.items() if origin.stays}
    with store.writer() as made:
        for name, blob in store.manifest(memory).items():
            plain = name.removeprefix(_RESIDUAL)
            index = _INDEX.search(plain)
            if index and change.before.experts[int(index[1])] not in staying:
                continue
            now = name_now(name, change.before.experts, change.after)
            part = parts.get(plain)
            if part is not None and part.kind is Kind.SEED:
                continue
            if part is not None and part.kind is Kind.ROUTER:
                _remember_rows(store, name, blob, part, change, made)
            elif now is not None and now.removeprefix(_RESIDUAL) in parts:
                made.keep(now, blob)
        return made.finish()


def _remember_rows(
    store: StateStore, name: str, blob: Blob, part: Slice, change: Change, made: StateWriter
) -> None:
    width = part.size // part.shape[0]
    zero, new = np.zeros(width, np.float32), made.slice(name, part.shape)
    with store.open(blob) as reader:
        for row in change.rows(memory=True):
            new.write(zero if row is None else _row(reader, row, width))
    new.close()


def _router(store: StateStore, old: Blob, part: Slice, change: Change) -> Iterator[Array]:
    """A router's slice of the new state, row by row: rows that stay or are copied are the old ones.

    THE PLACE where rows would be calibrated for a model whose experts changed: a rule that does it replaces these, from
    what everybody can recompute, and nothing else in this file.
    """
    width = part.size // part.shape[0]
    with store.open(old) as reader:
        for expert, row in zip(change.after.experts, change.rows(memory=False), strict=True):
            if row is not None:
                yield _row(reader, row, width)
            elif len(part.shape) == 1:
                yield np.zeros(1, np.float32)
            else:
                yield from _initial(change.charter, expert, part.name, width)


def _row(reader: BlobReader, row: int, width: int) -> Array:
    values = np.empty(width, np.float32)
    reader.read_into(row * width, values)
    return values


def _initial(charter: Charter, expert: ExpertId, name: str, size: int) -> Iterator[Array]:
    role = _INDEX.sub(".experts.*.", name)
    return initial_blocks(charter.model, seed=charter.learning.seed, expert=expert, role=role, size=size)


def name_now(name: str, before: Sequence[str], after: ExpertMap) -> str | None:
    """Today's name of what a site kept by slice name when the experts were `before`, in that order; None: it is gone."""
    if not (index := _INDEX.search(name)):
        return name
    expert = ExpertId(before[int(index[1])])
    if expert not in after.owners:
        return None
    return _INDEX.sub(f".experts.{after.index(expert)}.", name)


def name_before(name: str, before: Sequence[str], after: ExpertMap) -> str | None:
    """The inverse of `name_now`; None for what there was not."""
    if not (index := _INDEX.search(name)):
        return name
    expert = after.experts[int(index[1])]
    if expert not in before:
        return None
    return _INDEX.sub(f".experts.{list(before).index(expert)}.", name)


def carried_over(arrays: Mapping[str, Array], before: Sequence[str], after: ExpertMap) -> dict[str, Array]:
    """What a site kept by slice name, under today's names; a name may have a prefix up to its last slash.

    An expert that is gone goes; the rows of experts that came are zero.
    """
    if tuple(before) == after.experts:
        return dict(arrays)
    routers = {part.name: part for part in after.slices if part.kind is Kind.ROUTER}
    kept: dict[str, Array] = {}
    for name, array in arrays.items():
        if part := routers.get(name.rpartition("/")[2]):
            at = elements_before(part, before, after, 0, part.size)
            kept[name] = np.where(at < 0, np.float32(0), array.reshape(-1)[at]).reshape(part.shape)
        elif now := name_now(name, before, after):
            kept[now] = array
    return kept


def elements_before(
    part: Slice, before: Sequence[str], after: ExpertMap, first: int, count: int
) -> NDArray[np.int64]:
    """Where `count` elements of a router's slice, from `first` on, stood among the experts `before`; -1: nowhere."""
    width, row_of = prod(part.shape[1:]), {expert: n for n, expert in enumerate(before)}
    row, column = np.divmod(np.arange(first, first + count), width)
    old = np.array([row_of.get(expert, -1) for expert in after.experts])[row]
    return np.where(old < 0, -1, old * width + column)
