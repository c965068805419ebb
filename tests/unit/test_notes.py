"""Signed notes: other people's notes open, changed notes do not, and a note has one writing."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from commons.notes import (
    NoteError,
    Signer,
    Verifier,
    compose,
    digest,
    open_note,
    parse,
    read,
)

SPEC_KEY = "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k"
SPEC_NOTE = (
    "This is an example message.\n\n— example.com/foo "
    "Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1ERYNZXsYjOBH3mFXmRKuwHjG1Yu72IneyaQM=\n"
).encode()
GO_KEY = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
GO_NOTE = (
    "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n\n"
    "— PeterNeumann "
    "x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
).encode()

ALICE = Signer("alice", b"\x01" * 32)
BOB = Signer("bob", b"\x02" * 32)
TEXT = "hansa-test/v1\nconsortium demo\n"
NOTE = ALICE.sign(TEXT)
VECTORS = json.loads((Path(__file__).parents[1] / "support" / "vectors" / "notes.json").read_text())


@pytest.mark.parametrize(("key", "note"), [(SPEC_KEY, SPEC_NOTE), (GO_KEY, GO_NOTE)], ids=["c2sp", "go"])
def test_notes_of_other_implementations_open(key: str, note: bytes) -> None:
    verifier = Verifier.from_vkey(key)
    assert open_note(note, [verifier]).data == note
    assert verifier.vkey == key


def test_a_changed_text_is_refused_by_the_key_that_signed() -> None:
    changed = SPEC_NOTE.replace(b"example message", b"exemple message")
    with pytest.raises(NoteError, match="changed or is forged"):
        open_note(changed, [Verifier.from_vkey(SPEC_KEY)])


def test_signing_twice_gives_the_same_bytes() -> None:
    assert ALICE.sign(TEXT) == NOTE
    assert open_note(NOTE, [ALICE.verifier]).text == TEXT


def cases(subject: str) -> list[Any]:
    return [pytest.param(case, id=str(n)) for n, case in enumerate(VECTORS[subject])]


@pytest.mark.parametrize("case", [pytest.param(case, id=case["name"]) for case in VECTORS["notes"]])
def test_a_note_opens_for_whom_it_should_or_is_refused_with_its_reason(case: dict[str, Any]) -> None:
    data, keys = base64.b64decode(case["note"]), [Verifier.from_vkey(vkey) for vkey in case["keys"]]
    if "why" in case:
        with pytest.raises(NoteError, match=case["why"]):
            open_note(data, keys)
    else:
        assert open_note(data, keys).text == case["text"]


@pytest.mark.parametrize("case", cases("keys"))
def test_a_verifier_key_hangs_together_or_is_refused(case: dict[str, Any]) -> None:
    if case["holds"]:
        assert Verifier.from_vkey(case["vkey"]).vkey == case["vkey"]
    else:
        with pytest.raises(NoteError):
            Verifier.from_vkey(case["vkey"])


@pytest.mark.parametrize("case", cases("values"))
def test_a_value_that_could_mislead_a_reader_is_not_composed(case: dict[str, Any]) -> None:
    if case["stands"]:
        compose("hansa-test/v1", [("title", case["value"])])
    else:
        with pytest.raises(NoteError, match="field 'title'"):
            compose("hansa-test/v1", [("title", case["value"])])


@pytest.mark.parametrize("case", cases("fields"))
def test_fields_are_read_in_their_order_or_refused(case: dict[str, Any]) -> None:
    note = parse(ALICE.sign(case["text"]))
    if case["fields"]:
        assert read(note, "hansa-test/v1", ["a", "b"]) == case["fields"]
    else:
        with pytest.raises(NoteError):
            read(note, "hansa-test/v1", ["a", "b"])


@pytest.mark.parametrize("case", cases("signed"))
def test_a_text_has_one_note_by_one_key_or_is_not_signed(case: dict[str, Any]) -> None:
    signer = Signer(case["name"], bytes.fromhex(case["seed"]))
    if case["note"]:
        assert signer.sign(case["text"]) == base64.b64decode(case["note"])
    else:
        with pytest.raises(NoteError):
            signer.sign(case["text"])


def test_half_a_surrogate_pair_cannot_stand_in_a_note() -> None:
    with pytest.raises(NoteError, match="field 'title'"):
        compose("hansa-test/v1", [("title", "a\ud800")])


@given(st.binary(max_size=200))
def test_random_bytes_are_refused_or_come_back_whole(data: bytes) -> None:
    try:
        note = parse(data)
    except NoteError:
        return
    assert note.text.encode() + b"\n" + "".join(s.line for s in note.signatures).encode() == data


@given(st.integers(min_value=0, max_value=len(NOTE) - 1), st.integers(min_value=1, max_value=255))
def test_no_single_changed_byte_leaves_a_note_valid(position: int, flip: int) -> None:
    changed = bytearray(NOTE)
    changed[position] ^= flip
    with pytest.raises(NoteError):
        open_note(bytes(changed), [ALICE.verifier])


@pytest.mark.parametrize("text", ["", "no newline", "a\r\n", "a\x1b[2J\n"])
def test_a_text_that_cannot_be_read_back_is_not_signed(text: str) -> None:
    with pytest.raises(NoteError):
        ALICE.sign(text)


def test_a_private_key_comes_back_from_its_text() -> None:
    signer = Signer.generate("acme/berlin")
    text = signer.to_text()
    assert text.startswith("PRIVATE+KEY+acme/berlin+")
    assert Signer.from_text(text).sign(TEXT) == signer.sign(TEXT)


def test_a_private_key_shows_itself_neither_in_repr_nor_in_errors() -> None:
    secret = ALICE.to_text().strip().rpartition("+")[2]
    assert secret not in repr(ALICE)
    for broken in (ALICE.to_text().replace("alice", "malice"), ALICE.to_text()[:-3]):
        with pytest.raises(NoteError) as caught:
            Signer.from_text(broken)
        assert secret[:12] not in str(caught.value)


@pytest.mark.parametrize("name", ["", "a b", "a+b", "a\n", "a\u00a0b", "a\u202eb"])
def test_a_name_that_breaks_the_signature_line_names_no_key(name: str) -> None:
    with pytest.raises(NoteError):
        Signer.generate(name)


def test_fields_come_back_in_order() -> None:
    text = compose("hansa-test/v1", [("consortium", "demo"), ("title", "Größere Schritte: 2 × 2")])
    assert text == "hansa-test/v1\nconsortium demo\ntitle Größere Schritte: 2 × 2\n"
    found = read(parse(ALICE.sign(text)), "hansa-test/v1", ["consortium", "title"])
    assert found == {"consortium": "demo", "title": "Größere Schritte: 2 × 2"}


def test_a_digest_names_its_algorithm() -> None:
    assert digest(b"") == "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
