"""Signed notes: other people's notes open, changed notes do not, and a note has one writing."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from commons.notes import (
    NOTE_BYTES_MAX,
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
LINE = NOTE.decode().removeprefix(TEXT + "\n")


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


def test_text_may_hold_blank_lines_and_any_language() -> None:
    text = "trafitto da un raggio di sole:\n\ned è subito sera.\n\n"
    assert open_note(ALICE.sign(text), [ALICE.verifier]).text == text


def test_a_note_signed_by_nobody_trusted_is_refused_naming_both_sides() -> None:
    with pytest.raises(NoteError, match=r"signed by 'alice', trusted here bob\+"):
        open_note(NOTE, [BOB.verifier])


def test_a_key_of_the_same_name_is_another_key() -> None:
    with pytest.raises(NoteError, match="no trusted key has signed"):
        open_note(NOTE, [Signer("alice", b"\x03" * 32).verifier])


def test_unknown_signatures_are_ignored_beside_a_known_good_one() -> None:
    both = NOTE + BOB.sign(TEXT).decode().removeprefix(TEXT + "\n").encode()
    assert len(open_note(both, [ALICE.verifier]).signatures) == 2


def test_one_wrong_signature_of_a_known_key_spoils_the_note() -> None:
    wrong = BOB.sign("another text\n").decode().removeprefix("another text\n\n").encode()
    open_note(NOTE + wrong, [ALICE.verifier])
    with pytest.raises(NoteError, match="'bob' is wrong"):
        open_note(NOTE + wrong, [ALICE.verifier, BOB.verifier])


def encoded(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


UNPADDED = LINE.rstrip("=\n") + "\n"
MALFORMED = {
    "empty": (b"", "no blank line"),
    "no blank line": ((TEXT + LINE).encode(), "no blank line"),
    "no signature": ((TEXT + "\n").encode(), "no signature"),
    "carriage returns": (NOTE.replace(b"\n", b"\r\n"), "no blank line"),
    "one carriage return": (NOTE.replace(b"demo\n", b"demo\r\n"), r"U\+000D"),
    "tab": (NOTE.replace(b"demo", b"de\tmo"), r"U\+0009"),
    "NUL": (NOTE.replace(b"demo", b"de\x00mo"), r"U\+0000"),
    "DEL": (NOTE.replace(b"demo", b"de\x7fmo"), r"U\+007F"),
    "not UTF-8": (NOTE.replace(b"demo", b"de\xffmo"), "not UTF-8"),
    "byte after the end": (NOTE + b"x", "no newline"),
    "text after the end": (NOTE + b"x\n", "em dash"),
    "blank line after the end": (NOTE + b"\n", "no signature"),
    "blank line before the signatures": ((TEXT + "\n\n" + LINE).encode(), None),
    "cut off": (NOTE[:-1], "no newline"),
    "hyphen for the dash": (NOTE.replace("—".encode(), b"-"), "em dash"),
    "two spaces after the name": (NOTE.replace(b"alice ", b"alice  "), "base64"),
    "signature without a name": ((TEXT + "\n— " + LINE.split(" ")[2]).encode(), "without a signature"),
    "plus in the name": (NOTE.replace(b"alice ", b"al+ce "), "cannot be a key's name"),
    "wide space in the name": (NOTE.replace(b"alice ", "al\u3000ce ".encode()), "cannot be a key's name"),
    "invisible mark in the name": (NOTE.replace(b"alice ", "al\u200ece ".encode()), "cannot be a key's name"),
    "no padding": ((TEXT + "\n" + UNPADDED).encode(), "base64"),
    "URL-safe base64": (f"{TEXT}\n— alice {'_' * 90}8=\n".encode(), "base64"),
    "white space in the base64": (f"{TEXT}\n— alice {'/' * 45}\n{'/' * 45}8=\n".encode(), "base64"),
    "only a key id": ((TEXT + "\n— alice " + encoded(b"abcd") + "\n").encode(), "too short"),
    "a signature of one byte": (
        f"{TEXT}\n— alice {encoded(ALICE.verifier.key_id + b'x')}\n".encode(),
        "changed or is forged",
    ),
    "17 signatures": ((TEXT + "\n" + LINE * 17).encode(), "17 signatures"),
    "too large": (ALICE.sign("x" * NOTE_BYTES_MAX + "\n"), "the limit is"),
}


@pytest.mark.parametrize(("data", "reason"), MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_note_is_refused_with_its_reason(data: bytes, reason: str | None) -> None:
    if reason is None:  # well formed, but then the text is another one
        assert parse(data).text != TEXT
        reason = "changed or is forged"
    with pytest.raises(NoteError, match=reason):
        open_note(data, [ALICE.verifier])


def test_stray_bits_in_the_last_base64_digit_are_refused() -> None:
    body = LINE.rstrip("\n")
    last = body.rstrip("=")[-1]
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    other = alphabet[alphabet.index(last) ^ 1]
    padding = len(body) - len(body.rstrip("="))
    assert padding, "68 bytes leave bits over"
    forged = body.rstrip("=")[:-1] + other + "=" * padding
    with pytest.raises(NoteError, match="canonical"):
        parse((TEXT + "\n" + forged + "\n").encode())


def test_16_signatures_are_read() -> None:
    assert len(parse((TEXT + "\n" + LINE * 16).encode()).signatures) == 16


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


@pytest.mark.parametrize(
    "vkey",
    [
        "",
        "example.com/foo",
        SPEC_KEY.replace("530d903a", "530d903b"),
        SPEC_KEY.replace("530d903a", "530D903A"),
        SPEC_KEY.replace("example.com/foo", "example.com/fou"),
        SPEC_KEY[:-4],
        SPEC_KEY + "\n",
        f"example.com/foo+530d903a+{encoded(bytes([4]) + bytes(32))}",
    ],
)
def test_a_verifier_key_that_does_not_hang_together_is_refused(vkey: str) -> None:
    with pytest.raises(NoteError):
        Verifier.from_vkey(vkey)


def test_fields_come_back_in_order() -> None:
    text = compose("hansa-test/v1", [("consortium", "demo"), ("title", "Größere Schritte: 2 × 2")])
    assert text == "hansa-test/v1\nconsortium demo\ntitle Größere Schritte: 2 × 2\n"
    found = read(parse(ALICE.sign(text)), "hansa-test/v1", ["consortium", "title"])
    assert found == {"consortium": "demo", "title": "Größere Schritte: 2 × 2"}


@pytest.mark.parametrize(
    "value",
    ["", " a", "a ", "a\nchoice against", "a\rb", "a\u202eb", "a\u2028b", "a\u0085b", "a\ud800", "x" * 1001],
)
def test_a_value_that_could_mislead_a_reader_is_not_composed(value: str) -> None:
    with pytest.raises(NoteError, match="field 'title'"):
        compose("hansa-test/v1", [("title", value)])


@pytest.mark.parametrize(
    "text",
    [
        "hansa-other/v1\na 1\nb 2\n",
        "hansa-test/v1\nb 2\na 1\n",
        "hansa-test/v1\na 1\n",
        "hansa-test/v1\na 1\nb 2\nc 3\n",
        "hansa-test/v1\na 1\na 1\nb 2\n",
        "hansa-test/v1\na 1\nb\n",
        "hansa-test/v1\na 1\nb \n",
        "hansa-test/v1\na 1\nb  2\n",
        "hansa-test/v1\n\na 1\nb 2\n",
    ],
)
def test_fields_that_differ_from_the_kind_are_refused(text: str) -> None:
    with pytest.raises(NoteError):
        read(parse(ALICE.sign(text)), "hansa-test/v1", ["a", "b"])


def test_a_digest_names_its_algorithm() -> None:
    assert digest(b"") == "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
