"""Reading many scattered rows of the journal at once: leaves by index, hashes by place in the tree."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from sqlalchemy import Connection, select

from commons import merkle
from governance.journal.schema import nodes, records

_AT_ONCE = 500
"""Values in one IN list; SQLite takes 32,766, short ones are planned once and cached."""


def read_leaves(connection: Connection, indices: Sequence[int]) -> dict[int, bytes]:
    """index -> leaf of every record that is there and agrees with its hash."""
    return {
        idx: bytes(leaf)
        for some in _batches(indices)
        for idx, leaf, leaf_hash in connection.execute(select(records).where(records.c.idx.in_(some)))
        if merkle.leaf_hash(leaf) == leaf_hash
    }


def read_hashes(connection: Connection, wanted: Iterable[tuple[int, int]]) -> dict[tuple[int, int], bytes]:
    """(level, index) -> hash of that complete subtree; what is not stored is left out."""
    levels: dict[int, list[int]] = {}
    for level, index in wanted:
        levels.setdefault(level, []).append(index)
    found: dict[tuple[int, int], bytes] = {}
    for level, indices in levels.items():
        for some in _batches(indices):
            if level == 0:
                query = select(records.c.idx, records.c.leaf_hash).where(records.c.idx.in_(some))
            else:
                query = select(nodes.c.idx, nodes.c.hash).where(nodes.c.level == level, nodes.c.idx.in_(some))
            found.update({(level, idx): bytes(value) for idx, value in connection.execute(query)})
    return found


def _batches(values: Sequence[int]) -> Iterator[Sequence[int]]:
    for at in range(0, len(values), _AT_ONCE):
        yield values[at : at + _AT_ONCE]
