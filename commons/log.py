"""What the journal says in public: signed checkpoints (C2SP tlog-checkpoint), one-file proofs (tlog-proof).

A checkpoint commits the coordinator to every record up to its size: two that contradict each other, signed by
one key, are evidence of a fork. Reads and writes the texts; the tree itself is `commons.merkle`.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence
from dataclasses import dataclass

from commons import merkle
from commons.notes import NOTE_BYTES_MAX, Note, NoteError, Signer, Verifier, open_note

_DECIMAL = re.compile(r"0|[1-9][0-9]{0,18}")
_PROOF_HEADER = "c2sp.org/tlog-proof@v1"


@dataclass(frozen=True)
class Checkpoint:
    """The journal at one size."""

    origin: str
    """Name of the log: the consortium's name, and the name of the key that signs."""
    size: int
    root: bytes

    @property
    def text(self) -> str:
        """Three lines: origin, size, base64 of the root."""
        return f"{self.origin}\n{self.size}\n{hash_text(self.root)}\n"

    def sign(self, signer: Signer) -> bytes:
        """The checkpoint as a signed note. The same checkpoint gives the same bytes.

        The caller promises never to sign two that contradict each other.
        """
        assert signer.name == self.origin, f"log {self.origin} signed by {signer.name}"
        return signer.sign(self.text)

    @classmethod
    def open(cls, data: bytes, verifier: Verifier) -> Checkpoint:
        """Check the signature and read it; the origin must be the verifier's name. Raises NoteError."""
        found = cls.read(open_note(data, [verifier]))
        if found.origin != verifier.name:
            raise NoteError(f"checkpoint of log {found.origin[:60]!r}, expected {verifier.name!r}")
        return found

    @classmethod
    def read(cls, note: Note) -> Checkpoint:
        """What a note says, if it is a checkpoint; who signed it is for the caller to check. Raises NoteError."""
        origin, *rest = note.text[:-1].split("\n")
        if len(rest) != 2 or not _DECIMAL.fullmatch(rest[0]):
            raise NoteError("a checkpoint has three lines: origin, size, root")
        return cls(origin, int(rest[0]), read_hash(rest[1], "the checkpoint's root"))


@dataclass(frozen=True)
class Proof:
    """That one leaf stands in the journal, verified by `open_proof`."""

    index: int
    path: tuple[bytes, ...]
    checkpoint: Checkpoint


def proof_text(index: int, path: Sequence[bytes], checkpoint: bytes) -> str:
    """A ``.tlog-proof`` file: index, inclusion path and signed checkpoint, to be checked offline."""
    lines = [_PROOF_HEADER, f"index {index}", *map(hash_text, path), "", checkpoint.decode()]
    return "\n".join(lines)


def open_proof(text: str, leaf: bytes, verifier: Verifier) -> Proof:
    """Check that `leaf` is in the log `verifier` signs for, by a text of `proof_text`.

    An ``extra`` line is read over, as it proves nothing. Raises NoteError for a text that is no proof or a
    checkpoint not signed by the log, ProofError when the leaf is not in that log.
    """
    if len(text) > 2 * NOTE_BYTES_MAX:
        raise NoteError(f"proof of {len(text)} characters")
    head, blank, checkpoint_text = text.partition("\n\n")
    lines = head.split("\n")
    if not blank or lines.pop(0) != _PROOF_HEADER:
        raise NoteError(
            f"not a proof: expected {_PROOF_HEADER!r}, an index, hashes, a blank line, a checkpoint"
        )
    if lines and lines[0].startswith("extra "):
        lines.pop(0)
    word, _, number = lines.pop(0).partition(" ") if lines else ("", "", "")
    if word != "index" or not _DECIMAL.fullmatch(number):
        raise NoteError("the proof has no index line")
    path = tuple(read_hash(line, "a hash of the proof") for line in lines)
    checkpoint = Checkpoint.open(checkpoint_text.encode(), verifier)
    leaf_hash = merkle.leaf_hash(leaf)
    merkle.verify_inclusion(leaf_hash, int(number), checkpoint.size, path, checkpoint.root)
    return Proof(int(number), path, checkpoint)


def hash_text(value: bytes) -> str:
    """How checkpoints, proofs and requests write a hash: base64, 44 characters."""
    return base64.b64encode(value).decode("ascii")


def read_hash(text: str, what: str) -> bytes:
    """The hash that `hash_text` wrote so; `what` names it in the NoteError."""
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as wrong:
        raise NoteError(f"{what} is not base64") from wrong
    if len(data) != merkle.HASH_BYTES or hash_text(data) != text:
        raise NoteError(f"{what} is not the base64 of {merkle.HASH_BYTES} bytes")
    return data
