"""The Merkle tree of RFC 6962 (SHA-256): roots, proofs and their verification.

Pure: hashes in, hashes out. A tree's stored nodes are the roots of its complete subtrees, addressed by
(level, index): the node covers the leaves ``index * 2**level`` up to ``(index + 1) * 2**level``. The two
provers read them through `hash_at`; the verifiers need nothing but the proof.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence

HashAt = Callable[[int, int], bytes]
"""(level, index) -> hash of that complete subtree."""
Node = tuple[int, int, bytes]
"""(level, index, hash) of a complete subtree."""

EMPTY_ROOT = hashlib.sha256(b"").digest()
HASH_BYTES = 32
PROOF_HASHES_MAX = 128
"""Longer than any honest proof over fewer than 2**63 leaves."""


class ProofError(ValueError):
    """A proof does not prove what it is offered for; the text says what was compared."""


def leaf_hash(leaf: bytes) -> bytes:
    return hashlib.sha256(b"\x00" + leaf).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()


def root(hashes: Sequence[bytes]) -> bytes:
    """Root of a tree with these leaf hashes; SHA-256 of nothing when there are none."""
    frontier = Frontier()
    for leaf in hashes:
        frontier.append(leaf)
    return frontier.root()


class Frontier:
    """The right edge of a growing tree: all that appending needs, at most 64 hashes.

    Holds one root per set bit of `size`, largest subtree first.
    """

    def __init__(self, size: int = 0, hashes: Iterable[bytes] = ()) -> None:
        self.size = size
        self._hashes = list(hashes)
        assert len(self._hashes) == size.bit_count(), "a frontier has one hash per set bit of its size"

    @classmethod
    def load(cls, size: int, hash_at: HashAt) -> Frontier:
        """The frontier of a stored tree of `size` leaves."""
        return cls(size, [hash_at(level, index) for level, index in cover(0, size)])

    def append(self, leaf: bytes) -> list[Node]:
        """Add one leaf hash; the newly complete subtrees, the leaf itself (level 0) first."""
        nodes: list[Node] = [(0, self.size, leaf)]
        level, index = 0, self.size
        while index & 1:
            level, index = level + 1, index >> 1
            nodes.append((level, index, node_hash(self._hashes.pop(), nodes[-1][2])))
        self._hashes.append(nodes[-1][2])
        self.size += 1
        return nodes

    def root(self) -> bytes:
        return _fold(self._hashes)


def inclusion_proof(index: int, size: int, hash_at: HashAt) -> list[bytes]:
    """Path from leaf `index` to the root of the first `size` leaves, leaf's sibling first (RFC 6962 2.1.1).

    Raises ProofError when the tree has no such leaf.
    """
    if not 0 <= index < size:
        raise ProofError(f"no leaf {index} in a tree of {size}")
    path: list[bytes] = []
    low, high = 0, size
    while high - low > 1:
        middle = low + split(high - low)
        if index < middle:
            path.append(range_root(middle, high, hash_at))
            high = middle
        else:
            path.append(range_root(low, middle, hash_at))
            low = middle
    return path[::-1]


def consistency_proof(old: int, new: int, hash_at: HashAt) -> list[bytes]:
    """Proof that the first `old` leaves of the tree of `new` leaves are the old tree (RFC 6962 2.1.2).

    Empty when `old` is 0 or equals `new`. Raises ProofError unless 0 <= old <= new.
    """
    if not 0 <= old <= new:
        raise ProofError(f"a tree of {new} leaves does not extend one of {old}")
    if old in (0, new):
        return []
    path: list[bytes] = []
    low, high = 0, new
    known = True  # the old tree's root is this very subtree: the verifier has it already
    while high != old:
        middle = low + split(high - low)
        if old <= middle:
            path.append(range_root(middle, high, hash_at))
            high = middle
        else:
            path.append(range_root(low, middle, hash_at))
            low, known = middle, False
    if not known:
        path.append(range_root(low, high, hash_at))
    return path[::-1]


def verify_inclusion(leaf_hash: bytes, index: int, size: int, path: Sequence[bytes], root: bytes) -> None:
    """Raise ProofError unless `path` leads from `leaf_hash` at `index` to this root of `size` leaves."""
    _check_hashes("inclusion", [leaf_hash, root, *path])
    if not 0 <= index < size:
        raise ProofError(f"inclusion proof for leaf {index} of a tree of {size}")
    inner = (index ^ (size - 1)).bit_length()
    expected = inner + (index >> inner).bit_count()
    if len(path) != expected:
        raise ProofError(
            f"inclusion proof of {len(path)} hashes for leaf {index} of {size}, expected {expected}"
        )
    found = _chain_inner(leaf_hash, path[:inner], index)
    found = _chain_left(found, path[inner:])
    if found != root:
        raise ProofError(
            f"leaf {index} of {size} is not under root {root.hex()[:16]}: got {found.hex()[:16]}"
        )


def verify_consistency(old: int, old_root: bytes, new: int, new_root: bytes, path: Sequence[bytes]) -> None:
    """Raise ProofError unless `path` shows that the tree (new, new_root) extends the tree (old, old_root)."""
    _check_hashes("consistency", [old_root, new_root, *path])
    if not 0 <= old <= new:
        raise ProofError(f"a tree of {new} leaves does not extend one of {old}")
    if old in (0, new):
        if path:
            raise ProofError(
                f"consistency proof from {old} to {new} must be empty, it has {len(path)} hashes"
            )
        if old == 0 and old_root != EMPTY_ROOT:
            raise ProofError("the root of the empty tree is wrong")
        if old == new and old_root != new_root:
            raise ProofError(f"two roots for size {new}: {old_root.hex()[:16]} and {new_root.hex()[:16]}")
        return
    shift = (old & -old).bit_length() - 1  # the old tree's last complete subtree has this level
    seed, rest = (old_root, path) if old == 1 << shift else (path[0] if path else b"", path[1:])
    index = (old - 1) >> shift
    inner = (index ^ ((new - 1) >> shift)).bit_length()
    expected = inner + (index >> inner).bit_count()
    if not seed or len(rest) != expected:
        whole = expected + (old != 1 << shift)
        raise ProofError(f"consistency proof from {old} to {new} has {len(path)} hashes, expected {whole}")
    found = _chain_left(_chain_inner_right(seed, rest[:inner], index), rest[inner:])
    if found != old_root:
        raise ProofError(
            f"the tree of {old} was another: root {old_root.hex()[:16]}, proof {found.hex()[:16]}"
        )
    found = _chain_left(_chain_inner(seed, rest[:inner], index), rest[inner:])
    if found != new_root:
        raise ProofError(
            f"the proof leads to root {found.hex()[:16]}, not {new_root.hex()[:16]}, at size {new}"
        )


def split(size: int) -> int:
    """The largest power of two below `size`, which is at least 2."""
    return 1 << (size - 1).bit_length() - 1


def cover(low: int, high: int) -> list[tuple[int, int]]:
    """(level, index) of the complete subtrees over leaves low..high, largest first; `low` must be aligned."""
    found = []
    while low < high:
        level = (high - low).bit_length() - 1
        found.append((level, low >> level))
        low += 1 << level
    return found


def range_root(low: int, high: int, hash_at: HashAt) -> bytes:
    """Root of leaves low..high, which must be a subtree that RFC 6962 splits a tree into."""
    return _fold([hash_at(level, index) for level, index in cover(low, high)])


def _fold(hashes: Sequence[bytes]) -> bytes:
    if not hashes:
        return EMPTY_ROOT
    *rest, found = hashes
    for left in reversed(rest):
        found = node_hash(left, found)
    return found


def _chain_inner(seed: bytes, path: Sequence[bytes], index: int) -> bytes:
    for level, sibling in enumerate(path):
        right = index >> level & 1
        seed = node_hash(sibling, seed) if right else node_hash(seed, sibling)
    return seed


def _chain_inner_right(seed: bytes, path: Sequence[bytes], index: int) -> bytes:
    for level, sibling in enumerate(path):
        if index >> level & 1:
            seed = node_hash(sibling, seed)
    return seed


def _chain_left(seed: bytes, path: Sequence[bytes]) -> bytes:
    for sibling in path:
        seed = node_hash(sibling, seed)
    return seed


def _check_hashes(what: str, hashes: Sequence[bytes]) -> None:
    if len(hashes) > PROOF_HASHES_MAX:
        raise ProofError(f"{what} proof of {len(hashes)} hashes")
    if any(len(h) != HASH_BYTES for h in hashes):
        raise ProofError(f"{what} proof with a hash that is not {HASH_BYTES} bytes")
