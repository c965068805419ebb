"""What others made: their proofs, their logs, their witnesses, and the answers they give."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from commons import merkle
from commons.cosignature import Cosigner, cosigned
from commons.log import Checkpoint, open_proof, proof_text
from commons.merkle import ProofError
from commons.notes import NoteError, Signer, Verifier, base64_bytes, open_note
from commons.records import Record
from commons.witness import FileMemory, Witness
from commons.witness_policy import Policy

VECTORS = Path(__file__).parents[1] / "support" / "vectors"
C2SP = json.loads((VECTORS / "c2sp.json").read_text())
LOG = json.loads((VECTORS / "log.json").read_text())
"""Our own: sizes at the edges of what numbers hold, and every way in which a checkpoint, receipt or record is none."""


def cases(kind: str) -> list[Any]:
    found = json.loads((VECTORS / f"merkle-{kind}.json").read_text())["cases"]
    return [pytest.param(case, id=case["name"]) for case in found]


EMPTY_IS_A_PREFIX = "additional/size1-is-zero-and-size2-is-not-zero"
"""transparency-dev calls a proof from the empty tree meaningless; RFC 6962 and C2SP's witness take the empty proof."""


def unpacked(case: dict[str, Any], name: str) -> bytes:
    """Some cases say only "don't care" where a hash stands: then any hash, so that they fail for what they test."""
    data = base64.b64decode(case[name] or "")
    return data if len(data) in (0, 32) else hashlib.sha256(data).digest()


def path(case: dict[str, Any]) -> list[bytes]:
    return [base64.b64decode(value) for value in case["proof"] or []]


@pytest.mark.parametrize("case", cases("inclusion"))
def test_inclusion_is_judged_as_transparency_dev_judges_it(case: dict[str, Any]) -> None:
    def check() -> None:
        leaf, root = unpacked(case, "leafHash"), unpacked(case, "root")
        merkle.verify_inclusion(leaf, case["leafIdx"], case["treeSize"], path(case), root)

    if case["wantErr"]:
        with pytest.raises(ProofError):
            check()
    else:
        check()


@pytest.mark.parametrize("case", cases("consistency"))
def test_consistency_is_judged_as_transparency_dev_judges_it(case: dict[str, Any]) -> None:
    def check() -> None:
        before, after = unpacked(case, "root1"), unpacked(case, "root2")
        merkle.verify_consistency(case["size1"], before, case["size2"], after, path(case))

    if case["wantErr"] and case["name"] != EMPTY_IS_A_PREFIX:
        with pytest.raises(ProofError):
            check()
    else:
        check()


def judged(check: Callable[[], object]) -> bool:
    try:
        check()
    except (NoteError, ProofError):
        return False
    return True


@pytest.mark.parametrize("case", LOG["checkpoints"], ids=lambda case: case["name"])
def test_a_checkpoint_is_read_in_its_one_form(case: dict[str, Any]) -> None:
    data, log = base64.b64decode(case["note"]), Verifier.from_vkey(case["log"])
    assert judged(lambda: Checkpoint.open(data, log)) == (case["size"] is not None)
    if case["size"] is not None:
        found = Checkpoint.open(data, log)
        assert (str(found.size), found.root) == (case["size"], base64.b64decode(case["root"]))


@pytest.mark.parametrize("case", LOG["inclusion"], ids=lambda case: case["name"])
def test_inclusion_in_trees_of_any_size(case: dict[str, Any]) -> None:
    leaf, root = base64.b64decode(case["leaf"]), base64.b64decode(case["root"])
    given = (int(case["index"]), int(case["size"]), [base64.b64decode(hash) for hash in case["path"]])
    assert judged(lambda: merkle.verify_inclusion(leaf, *given, root)) == case["holds"]


@pytest.mark.parametrize("case", LOG["consistency"], ids=lambda case: case["name"])
def test_consistency_of_trees_of_any_size(case: dict[str, Any]) -> None:
    old, new = (
        (int(case["old"]), base64.b64decode(case["old_root"])),
        (int(case["size"]), base64.b64decode(case["root"])),
    )
    proof = [base64.b64decode(hash) for hash in case["path"]]
    assert judged(lambda: merkle.verify_consistency(*old, *new, proof)) == case["holds"]


@pytest.mark.parametrize("case", LOG["receipts"], ids=lambda case: case["name"])
def test_a_receipt_proves_its_record(case: dict[str, Any]) -> None:
    receipt = case["receipt"]

    def check() -> None:
        leaf = base64_bytes(receipt["leaf"], "the leaf")
        text = proof_text(
            receipt["index"], [base64.b64decode(p) for p in receipt["path"]], receipt["checkpoint"].encode()
        )
        open_proof(text, leaf, Verifier.from_vkey(case["log"]))
        assert Record.parse(leaf).kind == case["kind"]

    assert judged(check) == (case["kind"] is not None)


@pytest.mark.parametrize("case", LOG["leaves"], ids=lambda case: case["name"])
def test_a_leaf_is_a_record_in_its_one_form(case: dict[str, Any]) -> None:
    leaf = (
        base64.b64decode(case["leaf"])
        if "leaf" in case
        else case["head"].encode().ljust(case["length"], b"x")
    )
    if case["record"] is None:
        with pytest.raises(ValueError):
            Record.parse(leaf)
    else:
        found = Record.parse(leaf)
        assert {"kind": found.kind, "at_ms": found.at_ms, "body_bytes": len(found.body)} == case["record"]


def test_none_of_the_public_vectors_was_lost() -> None:
    assert len(cases("inclusion")) == len(cases("consistency")) == 98


def test_the_example_of_the_signed_note_specification_opens() -> None:
    example = C2SP["note"]
    note = open_note(example["note"].encode(), [Verifier.from_vkey(example["vkey"])])
    assert note.text == "This is an example message.\n"


def test_a_tree_head_of_gos_checksum_database_opens() -> None:
    head = C2SP["sumdb"]
    note = open_note(head["note"].encode(), [Verifier.from_vkey(head["vkey"])])
    assert Checkpoint.read(note).size == 35_225_469


def test_the_cosignatures_of_eight_public_witnesses_hold() -> None:
    real = C2SP["cosigned"]
    policy = Policy.parse(real["policy"].encode())
    log = policy.logs[0].verifier
    checkpoint, times = cosigned(real["checkpoint"].encode(), log, [w.cosignatory for w in policy.witnesses])
    assert checkpoint.size == real["size"]
    assert times == dict.fromkeys(real["witnesses"], real["time_s"])
    assert policy.witnessed(real["checkpoint"].encode()) == (checkpoint, times)


@pytest.mark.parametrize(
    ("old", "new"),
    [("\n17157\n", "\n17158\n"), ("hsB6OVmnWoZA3QHDOmLPQiLviKzkf3BqBpBdkV5wWj0=", "hsB6OVmnWoZA3QHDOmLPQiLviKzkf3BqBpBdkV5wWjw=")],
)  # fmt: skip
def test_no_public_witness_cosigned_another_tree(old: str, new: str) -> None:
    real = C2SP["cosigned"]
    assert old in real["checkpoint"]
    changed = real["checkpoint"].replace(old, new)
    with pytest.raises(NoteError):
        Policy.parse(real["policy"].encode()).open(changed.encode())


def test_a_witness_answers_as_the_public_one_does(tmp_path: Path) -> None:
    exchange = C2SP["exchange"]
    witness = Witness(
        Cosigner(Signer.generate("example.com/witness")),
        [Verifier.from_vkey(exchange["log"])],
        FileMemory(tmp_path),
    )
    ours = {1: 400, 2: 404}
    """Its base64 has stray bits, so it is no note here; a log unknown to the witness was 403 before 404 was specified."""
    for n, step in enumerate(exchange["requests"]):
        status, kind, body = witness.add_request(step["request"].encode(), 1_700_000_000)
        assert status == ours.get(n, step["status"]), (step, body)
        if status == 200:
            assert body.decode().startswith("— example.com/witness ")
        if status == 409:
            assert (kind, body) == ("text/x.tlog.size", f"{step['answer']}\n".encode())
