"""Checkpoints and proof files: what a log says in public can be checked without it."""

from __future__ import annotations

import base64

import pytest

from commons import merkle
from commons.cosignature import Cosigner, with_cosignatures
from commons.log import Checkpoint, open_proof, open_proof_file, proof_text
from commons.merkle import Frontier, ProofError
from commons.notes import NoteError, Signer
from commons.witness_policy import Policy

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


def proof_file(index: int, checkpoint: bytes = SIGNED) -> str:
    path = merkle.inclusion_proof(index, len(LEAVES), lambda level, i: NODES[level, i])
    return proof_text(index, path, checkpoint, extra=LEAVES[index])


W1 = Cosigner(Signer("w1", b"\x01" * 32))
COSIGNED = with_cosignatures(SIGNED, [W1.cosign(CHECKPOINT.text, 1_700_000_000)])
ONE_OF_ONE = Policy.of(LOG.verifier, [W1.cosignatory], 1)


@pytest.mark.parametrize("index", range(len(LEAVES)))
def test_one_file_proves_the_record_it_carries(index: int) -> None:
    found, leaf = open_proof_file(proof_file(index), LOG.verifier)
    assert (found.index, found.checkpoint, found.note, leaf) == (index, CHECKPOINT, SIGNED, LEAVES[index])


def test_the_record_stands_in_the_extra_line() -> None:
    encoded = base64.b64encode(LEAVES[3]).decode()
    assert proof_file(3).split("\n")[:3] == ["c2sp.org/tlog-proof@v1", f"extra {encoded}", "index 3"]


def test_a_cosigned_checkpoint_is_checked_against_the_policy_given() -> None:
    text = proof_file(3, COSIGNED)
    assert open_proof_file(text, LOG.verifier)[0].checkpoint == CHECKPOINT
    assert open_proof_file(text, None, ONE_OF_ONE)[0].note == COSIGNED
    assert open_proof_file(text, LOG.verifier, ONE_OF_ONE)[1] == LEAVES[3]
    with pytest.raises(NoteError, match="too few for the quorum"):
        open_proof_file(proof_file(3), LOG.verifier, ONE_OF_ONE)
    with pytest.raises(NoteError, match="no trusted key"):
        open_proof_file(text, Signer("demo", b"\x06" * 32).verifier, ONE_OF_ONE)


@pytest.mark.parametrize(
    ("error", "old", "new"),
    [
        (ProofError, "index 3", "index 4"),
        (ProofError, base64.b64encode(LEAVES[3]).decode(), base64.b64encode(LEAVES[4]).decode()),
        (NoteError, "extra ", "extra"),
        (NoteError, "extra ", "extra  "),
        (NoteError, "extra ", "more "),
        (NoteError, f"extra {base64.b64encode(LEAVES[3]).decode()}\n", ""),
        (NoteError, base64.b64encode(LEAVES[3]).decode(), ""),
        (NoteError, base64.b64encode(LEAVES[3]).decode(), "A" * 90_000),
        (NoteError, "\n11\n", "\n12\n"),
        (NoteError, "\n", "\r\n"),
        (NoteError, "@v1", "@v2"),
        (NoteError, "— demo", "— memo"),
    ],
)
def test_a_file_that_was_touched_proves_nothing(error: type[Exception], old: str, new: str) -> None:
    text = proof_file(3)
    assert old in text
    with pytest.raises(error):
        open_proof_file(text.replace(old, new), LOG.verifier)


def test_a_file_cut_off_anywhere_proves_nothing() -> None:
    text = proof_file(3)
    for cut in range(len(text)):
        with pytest.raises((NoteError, ProofError)):
            open_proof_file(text[:cut], LOG.verifier)


def test_hashes_in_another_order_prove_nothing() -> None:
    lines = proof_file(3).split("\n")
    lines[3], lines[4] = lines[4], lines[3]
    with pytest.raises(ProofError):
        open_proof_file("\n".join(lines), LOG.verifier)


def test_the_largest_record_fits_into_a_proof_file() -> None:
    leaf = b"x" * 65_535
    checkpoint = Checkpoint("demo", 1, merkle.leaf_hash(leaf)).sign(LOG)
    assert open_proof_file(proof_text(0, [], checkpoint, extra=leaf), LOG.verifier)[1] == leaf
