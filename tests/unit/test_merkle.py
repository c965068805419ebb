"""The Merkle tree: RFC 6962's vectors, a naive tree to agree with, and proofs of falsehoods."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from commons import merkle
from commons.merkle import Frontier, ProofError

VECTOR_LEAVES = [
    bytes.fromhex(leaf)
    for leaf in (
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]
VECTOR_ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
"""The reference tree of Certificate Transparency's tests: root after each leaf, the empty tree first."""


def naive_root(hashes: Sequence[bytes]) -> bytes:
    """RFC 6962 section 2.1, word for word."""
    if not hashes:
        return hashlib.sha256(b"").digest()
    if len(hashes) == 1:
        return hashes[0]
    k = naive_split(len(hashes))
    return hashlib.sha256(b"\x01" + naive_root(hashes[:k]) + naive_root(hashes[k:])).digest()


def naive_path(index: int, hashes: Sequence[bytes]) -> list[bytes]:
    """RFC 6962 section 2.1.1."""
    if len(hashes) == 1:
        return []
    k = naive_split(len(hashes))
    if index < k:
        return [*naive_path(index, hashes[:k]), naive_root(hashes[k:])]
    return [*naive_path(index - k, hashes[k:]), naive_root(hashes[:k])]


def naive_consistency(old: int, hashes: Sequence[bytes], whole: bool = True) -> list[bytes]:
    """RFC 6962 section 2.1.2."""
    if old == len(hashes):
        return [] if whole else [naive_root(hashes)]
    k = naive_split(len(hashes))
    if old <= k:
        return [*naive_consistency(old, hashes[:k], whole), naive_root(hashes[k:])]
    return [*naive_consistency(old - k, hashes[k:], False), naive_root(hashes[:k])]


def naive_split(size: int) -> int:
    k = 1
    while k * 2 < size:
        k *= 2
    return k


@dataclass
class Tree:
    hashes: list[bytes]
    nodes: dict[tuple[int, int], bytes] = field(default_factory=dict)
    roots: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        frontier = Frontier()
        self.roots.append(frontier.root())
        for leaf in self.hashes:
            for level, index, value in frontier.append(leaf):
                assert (level, index) not in self.nodes, "a complete subtree is written once"
                self.nodes[level, index] = value
            self.roots.append(frontier.root())

    def hash_at(self, level: int, index: int) -> bytes:
        return self.nodes[level, index]


LARGEST = 300
TREE = Tree([merkle.leaf_hash(str(i).encode()) for i in range(LARGEST)])
SIZES = st.integers(min_value=0, max_value=LARGEST)


def test_the_known_roots_come_out() -> None:
    tree = Tree([merkle.leaf_hash(leaf) for leaf in VECTOR_LEAVES])
    assert [root.hex() for root in tree.roots] == VECTOR_ROOTS
    assert merkle.EMPTY_ROOT.hex() == VECTOR_ROOTS[0]
    assert merkle.root(tree.hashes).hex() == VECTOR_ROOTS[-1]


def test_the_known_proofs_come_out() -> None:
    tree = Tree([merkle.leaf_hash(leaf) for leaf in VECTOR_LEAVES])
    path = merkle.inclusion_proof(5, 8, tree.hash_at)
    assert [value.hex() for value in path] == [
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ]
    path = merkle.consistency_proof(6, 8, tree.hash_at)
    assert [value.hex() for value in path] == [
        "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ]


@given(SIZES)
def test_roots_agree_with_the_definition(size: int) -> None:
    assert TREE.roots[size] == naive_root(TREE.hashes[:size])
    assert Frontier.load(size, TREE.hash_at).root() == TREE.roots[size]


@given(st.data())
def test_inclusion_proofs_agree_with_the_definition_and_verify(data: st.DataObject) -> None:
    size = data.draw(st.integers(min_value=1, max_value=LARGEST))
    index = data.draw(st.integers(min_value=0, max_value=size - 1))
    path = merkle.inclusion_proof(index, size, TREE.hash_at)
    assert path == naive_path(index, TREE.hashes[:size])
    merkle.verify_inclusion(TREE.hashes[index], index, size, path, TREE.roots[size])


@given(st.data())
def test_consistency_proofs_agree_with_the_definition_and_verify(data: st.DataObject) -> None:
    new = data.draw(SIZES)
    old = data.draw(st.integers(min_value=0, max_value=new))
    path = merkle.consistency_proof(old, new, TREE.hash_at)
    assert path == (naive_consistency(old, TREE.hashes[:new]) if old else [])
    merkle.verify_consistency(old, TREE.roots[old], new, TREE.roots[new], path)


OTHER = hashlib.sha256(b"other").digest()


@given(st.data())
def test_no_altered_inclusion_proof_verifies(data: st.DataObject) -> None:
    size = data.draw(st.integers(min_value=2, max_value=LARGEST))
    index = data.draw(st.integers(min_value=0, max_value=size - 1))
    leaf, root = TREE.hashes[index], TREE.roots[size]
    path = merkle.inclusion_proof(index, size, TREE.hash_at)
    at = data.draw(st.integers(min_value=0, max_value=len(path) - 1))
    elsewhere = data.draw(st.integers(min_value=-1, max_value=size + 1).filter(lambda i: i != index))
    for wrong in (
        (OTHER, index, size, path, root),
        (leaf, elsewhere, size, path, root),
        (leaf, index, size, path, OTHER),
        (leaf, index, size, path, TREE.roots[size - 1]),
        (leaf, index, size, [*path[:at], OTHER, *path[at + 1 :]], root),
        (leaf, index, size, [*path[:at], *path[at + 1 :]], root),
        (leaf, index, size, [*path, OTHER], root),
        (leaf, index, size, [OTHER, *path], root),
        (leaf, index, size, [*path[:at], path[at][:-1], *path[at + 1 :]], root),
        (leaf, size, size, path, root),
        (leaf, index, 0, path, root),
        (root, 0, 1, [root], root),
    ):
        with pytest.raises(ProofError):
            merkle.verify_inclusion(*wrong)


@given(st.data())
def test_no_altered_consistency_proof_verifies(data: st.DataObject) -> None:
    new = data.draw(st.integers(min_value=2, max_value=LARGEST))
    old = data.draw(st.integers(min_value=1, max_value=new - 1))
    before, after = TREE.roots[old], TREE.roots[new]
    path = merkle.consistency_proof(old, new, TREE.hash_at)
    at = data.draw(st.integers(min_value=0, max_value=len(path) - 1))
    for wrong in (
        (old, OTHER, new, after, path),
        (old, before, new, OTHER, path),
        (old, after, new, after, path),
        (old, before, new, before, []),
        (new, after, old, before, path),
        (-1, before, new, after, path),
        (old, before, new, after, []),
        (old, before, new, after, [*path[:at], OTHER, *path[at + 1 :]]),
        (old, before, new, after, [*path[:at], *path[at + 1 :]]),
        (old, before, new, after, [*path, OTHER]),
        (old, before, new, after, [OTHER, *path]),
        (old, before, new, after, [*path[:at], b"", *path[at + 1 :]]),
    ):
        with pytest.raises(ProofError):
            merkle.verify_consistency(*wrong)


@pytest.mark.parametrize(
    ("old", "old_root", "new", "new_root", "path"),
    [
        (0, OTHER, 3, TREE.roots[3], []),
        (0, TREE.roots[0], 3, TREE.roots[3], [OTHER]),
        (3, TREE.roots[3], 3, OTHER, []),
        (3, TREE.roots[3], 3, TREE.roots[3], [OTHER]),
        (3, TREE.roots[3], 4, TREE.roots[4], [OTHER] * 200),
    ],
)
def test_the_edges_of_consistency_are_refused(
    old: int, old_root: bytes, new: int, new_root: bytes, path: list[bytes]
) -> None:
    with pytest.raises(ProofError):
        merkle.verify_consistency(old, old_root, new, new_root, path)


def test_a_leaf_cannot_pass_for_a_node() -> None:
    left, right = TREE.hashes[:2]
    assert merkle.leaf_hash(left + right) != merkle.node_hash(left, right)


@pytest.mark.parametrize(("index", "size"), [(0, 0), (3, 3), (-1, 3)])
def test_there_is_no_path_to_a_leaf_outside_the_tree(index: int, size: int) -> None:
    with pytest.raises(ProofError):
        merkle.inclusion_proof(index, size, TREE.hash_at)


def test_there_is_no_proof_that_a_tree_shrank() -> None:
    with pytest.raises(ProofError):
        merkle.consistency_proof(4, 3, TREE.hash_at)


def test_a_frontier_goes_on_where_a_stored_tree_ended() -> None:
    for size in (0, 1, 7, 8, 100):
        frontier = Frontier.load(size, TREE.hash_at)
        for leaf in TREE.hashes[size : size + 20]:
            frontier.append(leaf)
        assert (frontier.size, frontier.root()) == (size + 20, TREE.roots[size + 20])
