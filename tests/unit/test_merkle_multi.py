"""One proof for many leaves: agrees with the tree, with single paths, and with nothing else."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from commons import merkle
from commons.merkle import ProofError
from commons.merkle_multi import multi_nodes, multi_proof, verify_multi


class Tree:
    def __init__(self, size: int) -> None:
        self.size = size
        self.leaves = [merkle.leaf_hash(str(i).encode()) for i in range(size)]
        self.nodes: dict[tuple[int, int], bytes] = {}
        frontier = merkle.Frontier()
        for leaf in self.leaves:
            self.nodes.update({(level, index): found for level, index, found in frontier.append(leaf)})
        self.root = frontier.root()

    def hash_at(self, level: int, index: int) -> bytes:
        return self.nodes[level, index]

    def prove(self, indices: list[int]) -> list[bytes]:
        return multi_proof(indices, self.size, self.hash_at)

    def of(self, indices: list[int]) -> list[tuple[int, bytes]]:
        return [(i, self.leaves[i]) for i in indices]


TREES = [Tree(size) for size in range(70)]
CHOICES = st.integers(0, 69).flatmap(
    lambda size: st.tuples(
        st.just(size), st.sets(st.integers(0, max(size - 1, 0)), max_size=size).map(sorted)
    )
)


@given(CHOICES)
def test_any_leaves_of_any_tree_are_proven(choice: tuple[int, list[int]]) -> None:
    size, indices = choice
    tree = TREES[size]
    verify_multi(tree.of(indices), size, tree.prove(indices), tree.root)


@given(CHOICES)
def test_one_leafs_proof_is_its_path_and_many_share_theirs(choice: tuple[int, list[int]]) -> None:
    size, indices = choice
    tree = TREES[size]
    paths = [merkle.inclusion_proof(i, size, tree.hash_at) for i in indices]
    assert set(tree.prove(indices)) <= {h for path in paths for h in path} | {tree.root}
    for index, path in zip(indices, paths, strict=True):
        assert sorted(tree.prove([index])) == sorted(path)
    assert len(tree.prove(indices)) <= max(sum(map(len, paths)), 1)


@given(CHOICES)
def test_the_nodes_named_beforehand_are_the_ones_that_are_read(choice: tuple[int, list[int]]) -> None:
    size, indices = choice
    read: list[tuple[int, int]] = []

    def hash_at(level: int, index: int) -> bytes:
        read.append((level, index))
        return TREES[size].hash_at(level, index)

    multi_proof(indices, size, hash_at)
    assert read == multi_nodes(indices, size)


@given(CHOICES.filter(lambda c: len(c[1]) > 0), st.data())
def test_nothing_else_is_proven(choice: tuple[int, list[int]], data: st.DataObject) -> None:
    size, indices = choice
    tree = TREES[size]
    leaves, proof, root, wrong_size = tree.of(indices), tree.prove(indices), tree.root, size
    other = hashlib.sha256(b"other").digest()
    at = data.draw(st.integers(0, len(leaves) - 1))
    match data.draw(st.sampled_from(["leaf", "hash", "root", "longer", "shorter", "without", "moved"])):
        case "leaf":
            leaves[at] = (leaves[at][0], other)
        case "hash" if proof:
            proof[data.draw(st.integers(0, len(proof) - 1))] = other
        case "longer":
            proof.append(other)
        case "shorter" if proof:
            proof.pop()
        case "without":
            del leaves[at]
        case "moved" if (after := leaves[at][0] + 1) < size and after not in indices:
            leaves[at] = (after, leaves[at][1])
        case _:
            root = other
    with pytest.raises(ProofError):
        verify_multi(leaves, wrong_size, proof, root)


@pytest.mark.parametrize("indices", [[-1], [5], [3, 3], [3, 2], [0, 1, 2, 3, 4, 5]])
def test_indices_outside_the_tree_or_out_of_order_are_refused(indices: list[int]) -> None:
    tree = TREES[5]
    with pytest.raises(ProofError, match="do not ascend"):
        tree.prove(indices)
    with pytest.raises(ProofError, match="do not ascend"):
        verify_multi([(i, tree.leaves[0]) for i in indices], 5, [], tree.root)


def test_a_hash_of_another_length_is_refused() -> None:
    tree = TREES[5]
    with pytest.raises(ProofError, match="32 bytes"):
        verify_multi(tree.of([1]), 5, [b"short", *tree.prove([1])[1:]], tree.root)


def test_every_third_of_many_leaves_takes_less_than_two_hashes_each() -> None:
    size = 3000
    tree = Tree(size)
    indices = list(range(0, size, 3))
    proof = tree.prove(indices)
    verify_multi(tree.of(indices), size, proof, tree.root)
    assert len(proof) < 2 * len(indices)
