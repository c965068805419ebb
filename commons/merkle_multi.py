"""One inclusion proof for many leaves of an RFC 6962 tree.

The proof is the roots of the largest subtrees that hold none of the leaves, from left to right: what a reader needs
besides the leaves to compute the root. For one leaf it is its inclusion path in another order; for all of them it
is empty.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence

from commons.merkle import EMPTY_ROOT, HASH_BYTES, HashAt, ProofError, cover, node_hash, range_root, split


def multi_proof(indices: Sequence[int], size: int, hash_at: HashAt) -> list[bytes]:
    """Proof that these leaves, by ascending index, are under the root of the first `size`.

    Raises ProofError when an index is not in the tree or they do not ascend.
    """
    return [range_root(low, high, hash_at) for low, high in _gaps(indices, size)]


def multi_nodes(indices: Sequence[int], size: int) -> list[tuple[int, int]]:
    """(level, index) of every stored node that `multi_proof` reads, so that a store can read them at once."""
    return [node for low, high in _gaps(indices, size) for node in cover(low, high)]


def verify_multi(leaves: Sequence[tuple[int, bytes]], size: int, proof: Sequence[bytes], root: bytes) -> None:
    """Raise ProofError unless these (index, leaf hash), ascending, are under this root of `size` leaves."""
    indices = [index for index, _ in leaves]
    _check(indices, size)
    if any(len(h) != HASH_BYTES for h in (root, *proof, *(leaf for _, leaf in leaves))):
        raise ProofError(f"a proof of many leaves with a hash that is not {HASH_BYTES} bytes")
    rest = iter(proof)

    def subtree(low: int, high: int, first: int, last: int) -> bytes:
        if first == last:
            if (given := next(rest, None)) is None:
                raise ProofError(
                    f"the proof of {len(leaves)} leaves ends too early, after {len(proof)} hashes"
                )
            return given
        if high - low == 1:
            return leaves[first][1]
        middle = low + split(high - low)
        cut = bisect_left(indices, middle, first, last)
        return node_hash(subtree(low, middle, first, cut), subtree(middle, high, cut, last))

    found = subtree(0, size, 0, len(indices)) if size else EMPTY_ROOT
    if next(rest, None) is not None:
        raise ProofError(f"the proof of {len(leaves)} leaves of {size} has hashes left over")
    if found != root:
        raise ProofError(
            f"{len(leaves)} leaves of {size} are not under root {root.hex()[:16]}: got {found.hex()[:16]}"
        )


def gather(paths: Sequence[tuple[int, Sequence[bytes]]], size: int) -> list[bytes]:
    """`multi_proof` of leaves whose inclusion paths (RFC 6962, from the leaf up) are known, as (index, path), ascending.

    Nothing is verified. Raises ProofError when the paths are of another tree.
    """
    known: dict[tuple[int, int], bytes] = {}
    for index, path in paths:
        low, high = 0, size
        for sibling in reversed(path):
            if high - low < 2:
                break
            middle = low + split(high - low)
            left = index < middle
            known[(middle, high) if left else (low, middle)] = sibling
            low, high = (low, middle) if left else (middle, high)
    gaps = list(_gaps([index for index, _ in paths], size))
    if not set(gaps) <= known.keys():
        raise ProofError(f"the paths of {len(paths)} leaves are not of a tree of {size}")
    return [known[gap] for gap in gaps]


def _gaps(indices: Sequence[int], size: int) -> Iterator[tuple[int, int]]:
    """The largest subtrees without any of the leaves, as ranges low..high, from left to right."""
    _check(indices, size)
    stack = [(0, size, 0, len(indices))] if size else []
    while stack:
        low, high, first, last = stack.pop()
        if first == last:
            yield low, high
        elif high - low > 1:
            middle = low + split(high - low)
            cut = bisect_left(indices, middle, first, last)
            stack += [(middle, high, cut, last), (low, middle, first, cut)]


def _check(indices: Sequence[int], size: int) -> None:
    last = -1
    for index in indices:
        if not last < index < size:
            raise ProofError(f"{len(indices)} leaves that do not ascend inside a tree of {size}")
        last = index
