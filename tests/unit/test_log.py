"""Checkpoints and proof files: what a log says in public can be checked without it."""

from __future__ import annotations

import pytest

from commons import merkle
from commons.log import Checkpoint, open_proof, proof_text
from commons.merkle import Frontier, ProofError
from commons.notes import NoteError, Signer

LOG = Signer("demo", b"\x05" * 32)
LEAVES = [f"charter {i}\n{{}}".encode() for i in range(11)]


def stored() -> tuple[dict[tuple[int, int], bytes], bytes]:
    frontier, nodes = Frontier(), {}
    for leaf in LEAVES:
        nodes.update({(level, i): value for level, i, value in frontier.append(merkle.leaf_hash(leaf))})
    return nodes, frontier.root()


NODES, ROOT = stored()
CHECKPOINT = Checkpoint("demo", len(LEAVES), ROOT)
SIGNED = CHECKPOINT.sign(LOG)


def proof(index: int) -> str:
    path = merkle.inclusion_proof(index, len(LEAVES), lambda level, i: NODES[level, i])
    return proof_text(index, path, SIGNED)


def test_a_checkpoint_is_three_lines_signed_by_the_log() -> None:
    assert CHECKPOINT.text.split("\n")[:2] == ["demo", "11"]
    assert SIGNED.decode().startswith(CHECKPOINT.text + "\n— demo ")
    assert Checkpoint.open(SIGNED, LOG.verifier) == CHECKPOINT
    assert CHECKPOINT.sign(LOG) == SIGNED


def test_the_empty_log_has_a_checkpoint() -> None:
    empty = Checkpoint("demo", 0, merkle.EMPTY_ROOT)
    assert empty.text == "demo\n0\n47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n"
    assert Checkpoint.open(empty.sign(LOG), LOG.verifier) == empty


@pytest.mark.parametrize(
    "text",
    [
        "demo\n11\n",
        "demo\n011\n47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n",
        "demo\n-1\n47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n",
        "demo\n१\n47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n",
        "demo\n11\n47DEQpj8\n",
        "demo\n11\n47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFV=\n",
        "demo\n11\n47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\nextension\n",
        "other\n11\n47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n",
    ],
)
def test_a_signed_text_that_is_no_checkpoint_of_this_log_is_refused(text: str) -> None:
    with pytest.raises(NoteError):
        Checkpoint.open(LOG.sign(text), LOG.verifier)


def test_a_checkpoint_by_another_key_of_the_same_name_is_refused() -> None:
    with pytest.raises(NoteError, match="no trusted key"):
        Checkpoint.open(CHECKPOINT.sign(Signer("demo", b"\x06" * 32)), LOG.verifier)


@pytest.mark.parametrize("index", range(len(LEAVES)))
def test_a_proof_file_proves_its_leaf(index: int) -> None:
    found = open_proof(proof(index), LEAVES[index], LOG.verifier)
    assert (found.index, found.checkpoint) == (index, CHECKPOINT)


def test_a_proof_file_has_the_form_others_read() -> None:
    lines = proof(10).split("\n")
    assert lines[:2] == ["c2sp.org/tlog-proof@v1", "index 10"]
    assert lines[lines.index("") + 1 :] == SIGNED.decode().split("\n")


def test_extra_data_is_read_over() -> None:
    text = proof(3).replace("index", "extra YWJj\nindex", 1)
    assert open_proof(text, LEAVES[3], LOG.verifier).index == 3


def test_a_proof_of_a_log_of_one_leaf_has_no_hashes() -> None:
    root = merkle.leaf_hash(b"only")
    text = proof_text(0, [], Checkpoint("demo", 1, root).sign(LOG))
    assert open_proof(text, b"only", LOG.verifier).path == ()


def test_another_leaf_or_another_place_is_not_proven() -> None:
    with pytest.raises(ProofError):
        open_proof(proof(3), LEAVES[4], LOG.verifier)
    with pytest.raises(ProofError):
        open_proof(proof(3).replace("index 3", "index 4"), LEAVES[3], LOG.verifier)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("@v1", "@v2"),
        ("index 3\n", ""),
        ("index 3", "index 03"),
        ("index 3", "index"),
        ("\n\n", "\n"),
        ("=\n", "\n"),
        ("\ndemo\n", "\nother\n"),
        ("\n11\n", "\n12\n"),
    ],
)
def test_a_text_that_is_no_proof_is_refused(old: str, new: str) -> None:
    with pytest.raises(NoteError):
        open_proof(proof(3).replace(old, new, 1), LEAVES[3], LOG.verifier)


@pytest.mark.parametrize("text", ["", "c2sp.org/tlog-proof@v1", "c2sp.org/tlog-proof@v1\n\n", "x" * 100_000])
def test_rubbish_is_refused(text: str) -> None:
    with pytest.raises(NoteError):
        open_proof(text, b"leaf", LOG.verifier)
