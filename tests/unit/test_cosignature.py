"""Cosignatures: whose they are, what they say, and every way in which they are not."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from commons import merkle
from commons.cosignature import (
    TIME_S_MAX,
    WITNESSES_MAX,
    Cosignatory,
    Cosigner,
    cosignature,
    cosigned,
    with_cosignatures,
)
from commons.log import Checkpoint
from commons.notes import NoteError, Signer, Verifier, compose

VECTORS = json.loads((Path(__file__).parents[1] / "support" / "vectors" / "cosignatures.json").read_text())
LOG = Signer("demo", b"\x05" * 32)
WITNESSES = [Cosigner(Signer(f"w{n}", bytes([n] * 32))) for n in range(1, 20)]
W1, W2 = WITNESSES[:2]
CHECKPOINT = Checkpoint("demo", 7, merkle.leaf_hash(b"seven"))
SIGNED = CHECKPOINT.sign(LOG)
KNOWN = [witness.cosignatory for witness in WITNESSES]


def signed_by(*witnesses: Cosigner, time_s: int = 1_700_000_000) -> bytes:
    return with_cosignatures(SIGNED, [w.cosign(CHECKPOINT.text, time_s) for w in witnesses])


def test_a_cosignature_is_the_line_that_c2sp_describes() -> None:
    line = W1.cosign(CHECKPOINT.text, 1_679_315_147)
    dash, name, encoded = line.split(" ")
    raw = base64.b64decode(encoded)
    public = W1.cosignatory.public
    assert (dash, name, line[-1], len(raw)) == ("—", "w1", "\n", 4 + 8 + 64)
    assert raw[:4] == hashlib.sha256(b"w1\n\x04" + public).digest()[:4]
    assert int.from_bytes(raw[4:12], "big") == 1_679_315_147
    message = "cosignature/v1\ntime 1679315147\n" + CHECKPOINT.text
    assert Verifier("w1", public).verifies(message, raw[12:])


def test_a_witness_key_has_type_four_and_its_own_id() -> None:
    name, key_id, key = W1.vkey.split("+", 2)
    assert (name, base64.b64decode(key)[:1]) == ("w1", b"\x04")
    assert key_id != Signer("w1", b"\x01" * 32).vkey.split("+")[1]
    assert Cosignatory.from_vkey(W1.vkey) == W1.cosignatory
    assert Cosignatory.of(Signer("w1", b"\x01" * 32).verifier) == W1.cosignatory
    assert len({W1.cosignatory, W2.cosignatory, Cosignatory.from_vkey(W1.vkey)}) == 2


@pytest.mark.parametrize("case", VECTORS["keys"], ids=lambda case: case["vkey"][:20] or "nothing")
def test_a_text_is_a_witness_key_or_is_refused(case: dict[str, Any]) -> None:
    if case["holds"]:
        assert Cosignatory.from_vkey(case["vkey"]).vkey == case["vkey"]
    else:
        with pytest.raises(NoteError):
            Cosignatory.from_vkey(case["vkey"])


@pytest.mark.parametrize("case", VECTORS["notes"], ids=lambda case: case["name"])
def test_a_cosigned_note_tells_who_signed_when_or_is_refused(case: dict[str, Any]) -> None:
    witnesses = [Cosignatory.from_vkey(vkey) for vkey in case["witnesses"]]
    data, log = base64.b64decode(case["note"]), Verifier.from_vkey(VECTORS["log"])
    if case["times"] is None:
        with pytest.raises(NoteError):
            cosigned(data, log, witnesses)
    else:
        assert {name: str(time_s) for name, time_s in cosigned(data, log, witnesses)[1].items()} == case[
            "times"
        ]


def test_a_cosigned_checkpoint_tells_who_signed_when() -> None:
    data = signed_by(W1, W2)
    assert cosigned(data, LOG.verifier, KNOWN) == (CHECKPOINT, {"w1": 1_700_000_000, "w2": 1_700_000_000})
    assert cosigned(SIGNED, LOG.verifier, KNOWN) == (CHECKPOINT, {})
    assert Checkpoint.open(data, LOG.verifier) == CHECKPOINT


def test_unknown_witnesses_are_read_over() -> None:
    assert cosigned(signed_by(W1, W2), LOG.verifier, [W2.cosignatory])[1].keys() == {"w2"}
    other = Cosigner(Signer("w2", b"\x77" * 32))
    assert cosigned(signed_by(W1, other), LOG.verifier, [W2.cosignatory])[1] == {}


def test_of_two_lines_by_one_witness_the_later_counts() -> None:
    lines = [W1.cosign(CHECKPOINT.text, time_s) for time_s in (300, 200)]
    data = SIGNED + "".join(lines).encode()
    assert cosigned(data, LOG.verifier, KNOWN)[1] == {"w1": 300}
    with pytest.raises(NoteError, match="twice"):
        with_cosignatures(SIGNED, lines)
    with pytest.raises(NoteError, match="twice"):
        with_cosignatures(signed_by(W1), [W1.cosign(CHECKPOINT.text, 5)])


def test_fifteen_witnesses_fit_and_a_sixteenth_does_not() -> None:
    assert len(cosigned(signed_by(*WITNESSES[:WITNESSES_MAX]), LOG.verifier, KNOWN)[1]) == 15
    with pytest.raises(NoteError, match="17 signatures"):
        signed_by(*WITNESSES[: WITNESSES_MAX + 1])


def test_a_note_with_seventeen_signatures_is_not_read() -> None:
    data = SIGNED + "".join(w.cosign(CHECKPOINT.text, 1) for w in WITNESSES[:16]).encode()
    with pytest.raises(NoteError, match="17 signatures"):
        cosigned(data, LOG.verifier, KNOWN)


def forged(line: str, at: int) -> str:
    name, encoded = line[2:-1].split(" ")
    raw = bytearray(base64.b64decode(encoded))
    raw[at] ^= 1
    return f"— {name} {base64.b64encode(raw).decode()}\n"


LINE = W1.cosign(CHECKPOINT.text, 1_700_000_000)
RAW = base64.b64decode(LINE.split(" ")[2])


@pytest.mark.parametrize(
    ("what", "line"),
    [
        ("another time", forged(LINE, 11)),
        ("another signature", forged(LINE, 40)),
        ("ages later", forged(LINE, 5)),
        ("cut short", f"— w1 {base64.b64encode(RAW[:-1]).decode()}\n"),
        ("too long", f"— w1 {base64.b64encode(RAW + RAW[:1]).decode()}\n"),
        ("only the key id and a byte", f"— w1 {base64.b64encode(RAW[:5]).decode()}\n"),
        ("over another checkpoint", W1.cosign(Checkpoint("demo", 8, CHECKPOINT.root).text, 1_700_000_000)),
    ],
)
def test_a_line_that_claims_a_known_witness_must_hold(what: str, line: str) -> None:
    data = with_cosignatures(SIGNED, [line])
    with pytest.raises(NoteError, match="w1"):
        cosigned(data, LOG.verifier, [W1.cosignatory])
    with pytest.raises(NoteError, match="w1"):
        cosignature(line, CHECKPOINT.text, W1.cosignatory)
    assert cosigned(data, LOG.verifier, [W2.cosignatory]) == (CHECKPOINT, {}), (
        f"nobody asked about w1: {what}"
    )


def test_a_time_beyond_63_bits_is_refused() -> None:
    raw = RAW[:4] + (TIME_S_MAX + 1).to_bytes(8, "big") + RAW[12:]
    with pytest.raises(NoteError, match="end of time"):
        cosignature(f"— w1 {base64.b64encode(raw).decode()}\n", CHECKPOINT.text, W1.cosignatory)


def test_a_cosignature_by_the_log_counts_for_nothing_but_the_log() -> None:
    same_key = Cosigner(LOG)
    with pytest.raises(NoteError, match="no trusted key"):
        cosigned(
            f"{CHECKPOINT.text}\n{same_key.cosign(CHECKPOINT.text, 9)}".encode(),
            LOG.verifier,
            [same_key.cosignatory],
        )


def test_the_order_of_signature_lines_says_nothing() -> None:
    lines = [
        *SIGNED.decode().splitlines(True)[4:],
        W2.cosign(CHECKPOINT.text, 2),
        W1.cosign(CHECKPOINT.text, 1),
    ]
    data = f"{CHECKPOINT.text}\n{''.join(reversed(lines))}".encode()
    assert cosigned(data, LOG.verifier, KNOWN) == (CHECKPOINT, {"w1": 1, "w2": 2})


@pytest.mark.parametrize(
    "line",
    [
        "",
        "\n",
        LINE[:-1],
        LINE.replace("\n", "\r\n"),
        LINE + LINE,
        "\n" + LINE,
        "demo\n\n" + LINE,
        LINE.replace("— ", "- "),
        LINE.replace("w1", "w1 "),
        LINE.replace("w1", "w2"),
        W2.cosign(CHECKPOINT.text, 5),
        LINE + W2.cosign(CHECKPOINT.text, 5),
    ],
)
def test_what_is_not_exactly_one_line_by_the_witness_is_not_its_cosignature(line: str) -> None:
    with pytest.raises(NoteError):
        cosignature(line, CHECKPOINT.text, W1.cosignatory)


@pytest.mark.parametrize(
    "line", ["", "\n", LINE[:-1], "\n" + LINE, LINE + W2.cosign("x\n", 1), "x" * 20_000 + "\n"]
)
def test_only_whole_lines_are_put_under_a_checkpoint(line: str) -> None:
    with pytest.raises(NoteError):
        with_cosignatures(SIGNED, [line])


def test_the_line_given_out_is_the_line_taken() -> None:
    assert cosignature(LINE, CHECKPOINT.text, W1.cosignatory) == 1_700_000_000


def test_no_note_can_pass_for_a_cosignature() -> None:
    signer = Signer("w1", b"\x01" * 32)
    text = compose("cosignature/v1", [("time", "1700000000"), ("demo", "x")])
    with pytest.raises(NoteError, match="would pass for a cosignature"):
        signer.sign(text)
