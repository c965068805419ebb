"""Signed notes: text that somebody has put a key to, kept and checked byte for byte.

The format is C2SP signed-note (c2sp.org/signed-note) with Ed25519 signatures, type 0x01, and nothing else:
any C2SP tool can verify what a consortium signed. Knows nothing of who may sign what; a caller opens a
note with the keys it trusts for that kind of note, and with no others.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from commons.names import Digest

NOTE_BYTES_MAX = 16_384
SIGNATURES_MAX = 16
VALUE_CHARS_MAX = 1000

_ED25519 = b"\x01"
_COSIGNATURE = "cosignature/v1\n"
"""Begins what a witness signs with the same key (`commons.cosignature`): no note may begin so."""
_DASH = "— "
_KIND = re.compile(r"[a-z][a-z0-9-]*/v[1-9][0-9]*")
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_CONTROL_BUT_NEWLINE = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_KEY = re.compile(r"[a-z][a-z0-9-]*")
_REORDERING = re.compile("[\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
"""Changes what a person sees without changing what is signed (Unicode TR 36, CVE-2021-42574)."""


class NoteError(ValueError):
    """A note, a field or a key text that is not what it must be; the text says why."""


@dataclass(frozen=True)
class Signature:
    """One signature line, as it stands in the note. Nothing is known about its worth before `open_note`."""

    name: str
    key_id: bytes
    """4 bytes."""
    value: bytes

    @property
    def line(self) -> str:
        return f"{_DASH}{self.name} {base64_text(self.key_id + self.value)}\n"


@dataclass(frozen=True)
class Note:
    text: str
    """What is signed; ends with a newline."""
    signatures: tuple[Signature, ...]
    data: bytes
    """The whole note, exactly as parsed."""


class Verifier:
    """A public key and the name it goes by. Equal when name and key are."""

    def __init__(self, name: str, public: bytes) -> None:
        _check_name(name)
        self.name = name
        self.public = public
        self.key_id = hashlib.sha256(name.encode() + b"\n" + _ED25519 + public).digest()[:4]
        try:
            self._key = Ed25519PublicKey.from_public_bytes(public)
        except ValueError as wrong:
            raise NoteError(f"the key of {name!r} is no Ed25519 public key") from wrong

    @classmethod
    def from_vkey(cls, vkey: str) -> Verifier:
        """Read ``<name>+<key id, 8 hex digits>+<base64>``; the id must be the key's. Raises NoteError."""
        name, key_id, key = split_key(vkey, "verifier key")
        if len(key) != 33 or key[:1] != _ED25519:
            raise NoteError(f"verifier key of {name!r} is not Ed25519 (type 0x01, 32 bytes)")
        verifier = cls(name, key[1:])
        if verifier.key_id.hex() != key_id:
            raise NoteError(f"verifier key of {name!r} says id {key_id}, its key has {verifier.key_id.hex()}")
        return verifier

    @property
    def vkey(self) -> str:
        return f"{self.name}+{self.key_id.hex()}+{base64_text(_ED25519 + self.public)}"

    def verifies(self, text: str, signature: bytes) -> bool:
        try:
            self._key.verify(signature, text.encode())
        except InvalidSignature:
            return False
        return True

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Verifier) and (self.name, self.public) == (other.name, other.public)

    def __hash__(self) -> int:
        return hash((self.name, self.public))

    def __repr__(self) -> str:
        return f"Verifier({self.vkey!r})"


class Signer:
    """A private key and the name it signs by."""

    def __init__(self, name: str, seed: bytes) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        self.verifier = Verifier(name, self._key.public_key().public_bytes_raw())
        self.name = name

    @classmethod
    def generate(cls, name: str) -> Signer:
        """A new key from the operating system's randomness. Raises NoteError when the name is not one."""
        return cls(name, Ed25519PrivateKey.generate().private_bytes_raw())

    @classmethod
    def from_text(cls, text: str) -> Signer:
        """Read what `to_text` wrote. Raises NoteError, which never quotes the key."""
        prefix = "PRIVATE+KEY+"
        line = text.strip("\n")
        if not line.startswith(prefix):
            raise NoteError("no private key: the text does not begin with PRIVATE+KEY+")
        name, key_id, key = split_key(line[len(prefix) :], "private key")
        if len(key) != 33 or key[:1] != _ED25519:
            raise NoteError(f"private key of {name!r} is not Ed25519 (type 0x01, 32 bytes)")
        signer = cls(name, key[1:])
        if signer.verifier.key_id.hex() != key_id:
            raise NoteError(f"private key of {name!r} does not have the id {key_id} it names")
        return signer

    def to_text(self) -> str:
        """One line ``PRIVATE+KEY+<name>+<key id>+<base64>``, as Go's sumdb/note writes it. Keep it secret."""
        secret = base64_text(_ED25519 + self._key.private_bytes_raw())
        return f"PRIVATE+KEY+{self.name}+{self.verifier.key_id.hex()}+{secret}\n"

    @property
    def vkey(self) -> str:
        return self.verifier.vkey

    def sign(self, text: str) -> bytes:
        """The whole note: `text`, a blank line, this key's signature. The same text gives the same bytes.

        `text` must end with a newline and hold no control characters; else NoteError.
        """
        _check_text(text)
        if text.startswith(_COSIGNATURE):
            raise NoteError(
                f"a note must not begin {_COSIGNATURE.strip()!r}: it would pass for a cosignature"
            )
        signature = Signature(self.name, self.verifier.key_id, self.raw_signature(text.encode()))
        return f"{text}\n{signature.line}".encode()

    def raw_signature(self, message: bytes) -> bytes:
        """64 bytes over exactly this message, for formats that keep their messages apart from notes' texts."""
        return self._key.sign(message)

    def __repr__(self) -> str:
        return f"Signer({self.vkey!r})"


def parse(data: bytes, *, limit: int = NOTE_BYTES_MAX) -> Note:
    """Take a note of at most `limit` bytes apart, without believing it. Raises NoteError with the reason.

    Only one writing of a note is taken: text and signatures put together again give `data`.
    """
    if len(data) > limit:
        raise NoteError(f"note of {len(data)} bytes, the limit is {limit}")
    try:
        whole = data.decode("utf-8")
    except UnicodeDecodeError as wrong:
        raise NoteError(f"note is not UTF-8 at byte {wrong.start}") from wrong
    split = whole.rfind("\n\n")
    if split < 0:
        raise NoteError("note has no blank line between text and signatures")
    text, block = whole[: split + 1], whole[split + 2 :]
    _check_text(text)
    if not block:
        raise NoteError("note has no signature")
    if not block.endswith("\n"):
        raise NoteError("the last signature line has no newline")
    lines = block[:-1].split("\n")
    if len(lines) > SIGNATURES_MAX:
        raise NoteError(f"note has {len(lines)} signatures, at most {SIGNATURES_MAX} are read")
    signatures = tuple(_signature(line) for line in lines)
    if text + "\n" + "".join(s.line for s in signatures) != whole:
        raise NoteError("note is not in canonical form")
    return Note(text, signatures, data)


def open_note(data: bytes, verifiers: Iterable[Verifier]) -> Note:
    """Parse and check a note against the keys trusted for it.

    At least one of `verifiers` must have signed, and every signature that claims one of them must hold;
    signatures of other keys are ignored, as C2SP asks. Raises NoteError.
    """
    note = parse(data)
    known = {(v.name, v.key_id): v for v in verifiers}
    found = [(known[key], s) for s in note.signatures if (key := (s.name, s.key_id)) in known]
    for verifier, signature in found:
        if not verifier.verifies(note.text, signature.value):
            raise NoteError(f"the signature by {verifier.name!r} is wrong: the note was changed or is forged")
    if not found:
        signed = ", ".join(repr(s.name) for s in note.signatures)
        wanted = ", ".join(sorted(v.vkey.rpartition("+")[0] for v in known.values())) or "nobody"
        raise NoteError(f"no trusted key has signed: signed by {signed}, trusted here {wanted}")
    return note


def compose(kind: str, fields: Sequence[tuple[str, str]]) -> str:
    """The text of a note of this kind: the kind, then one ``key value`` per line, in the order given.

    Values hold 1 to 1000 characters of one line, no control characters, nothing that reorders text on a
    screen, no space at either end. Raises NoteError naming the field.
    """
    if not _KIND.fullmatch(kind):
        raise NoteError(f"{kind!r} is no kind of note")
    for key, value in fields:
        if not _KEY.fullmatch(key):
            raise NoteError(f"{key!r} is no name of a field")
        _check_value(key, value)
    return "".join(f"{line}\n" for line in (kind, *(f"{key} {value}" for key, value in fields)))


def read(note: Note, kind: str, keys: Sequence[str]) -> dict[str, str]:
    """The fields of a note of this kind: exactly these keys, in this order; else NoteError."""
    first, *lines = note.text[:-1].split("\n")
    if first != kind:
        raise NoteError(f"the note begins {first[:60]!r}, expected {kind!r}")
    found = [line.partition(" ") for line in lines]
    if [key for key, _, _ in found] != list(keys):
        named = " ".join(key[:40] for key, _, _ in found)
        raise NoteError(
            f"a {kind} note has the fields {' '.join(keys)!r} in this order, this one {named[:400]!r}"
        )
    for key, _, value in found:
        _check_value(key, value)
    return {key: value for key, _, value in found}


def digest(data: bytes) -> Digest:
    """SHA-256 of exactly these bytes."""
    return Digest("sha256:" + hashlib.sha256(data).hexdigest())


def digest_file(path: Path) -> Digest:
    """SHA-256 of a file's bytes, read in pieces of 1 MiB. Raises OSError."""
    hashed = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            hashed.update(piece)
    return Digest("sha256:" + hashed.hexdigest())


def base64_text(data: bytes) -> str:
    """Standard base64 with padding."""
    return base64.b64encode(data).decode("ascii")


def base64_bytes(text: str, what: str) -> bytes:
    """What `base64_text` wrote so; `what` names it in the NoteError.

    Stray bits and missing padding are refused, so that bytes have one writing.
    """
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as wrong:
        raise NoteError(f"{what} is not base64") from wrong
    if base64_text(data) != text:
        raise NoteError(f"{what} is not canonical base64")
    return data


def _signature(line: str) -> Signature:
    if not line.startswith(_DASH):
        raise NoteError(f"signature line does not begin with an em dash and a space: {line[:40]!r}")
    name, space, encoded = line[len(_DASH) :].partition(" ")
    if not space:
        raise NoteError(f"signature line without a signature: {line[:40]!r}")
    _check_name(name)
    raw = base64_bytes(encoded, f"signature by {name!r}")
    if len(raw) < 5:
        raise NoteError(f"signature by {name!r} is too short")
    return Signature(name, raw[:4], raw[4:])


def split_key(text: str, what: str) -> tuple[str, str, bytes]:
    """(name, key id in hex, key bytes with their type first) of a key's text, unchecked. Raises NoteError."""
    parts = text.split("+", 2)
    if len(parts) != 3 or not re.fullmatch(r"[0-9a-f]{8}", parts[1]):
        raise NoteError(f"not a {what}: expected <name>+<8 hex digits>+<base64>")
    name, key_id, encoded = parts
    _check_name(name)
    return name, key_id, base64_bytes(encoded, f"{what} of {name!r}")


def _check_name(name: str) -> None:
    if not name or re.search(r"[\s+]", name) or _CONTROL.search(name) or _REORDERING.search(name):
        raise NoteError(
            f"{name[:60]!r} cannot be a key's name: not empty, no spaces, no '+', nothing invisible"
        )


def _check_text(text: str) -> None:
    if not text.endswith("\n"):
        raise NoteError("the text of a note must end with a newline")
    if wrong := _CONTROL_BUT_NEWLINE.search(text):
        raise NoteError(f"control character U+{ord(wrong[0]):04X} at character {wrong.start()} of the note")


def _check_value(key: str, value: str) -> None:
    if not 1 <= len(value) <= VALUE_CHARS_MAX:
        raise NoteError(f"field {key!r} has {len(value)} characters, 1 to {VALUE_CHARS_MAX} are allowed")
    if value != value.strip():
        raise NoteError(f"field {key!r} begins or ends with white space")
    if wrong := _CONTROL.search(value) or _REORDERING.search(value):
        raise NoteError(f"field {key!r} holds U+{ord(wrong[0]):04X}, which hides or reorders text")
