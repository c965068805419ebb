"""What the journal says in public: signed checkpoints (C2SP tlog-checkpoint), one-file proofs (tlog-proof).

A checkpoint commits the coordinator to every record up to its size: two that contradict each other, signed by
one key, are evidence of a fork. Reads and writes the texts; the tree itself is `commons.merkle`, who must have
cosigned is `commons.witness_policy`'s.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from commons import merkle
from commons.notes import (
    NOTE_BYTES_MAX,
    Note,
    NoteError,
    Signer,
    Verifier,
    base64_bytes,
    base64_text,
    open_note,
)

_DECIMAL = re.compile(r"0|[1-9][0-9]{0,18}")
_PROOF_HEADER = "c2sp.org/tlog-proof@v1"
_PROOF_CHARS_MAX = 2 * NOTE_BYTES_MAX
EXTRA_BYTES_MAX = 65_535
"""Of a proof file: a record fits."""
_EXTRA_CHARS_MAX = (EXTRA_BYTES_MAX + 2) // 3 * 4


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
    note: bytes
    """The checkpoint as it stood in the proof, with all its signatures."""


class CheckpointPolicy(Protocol):
    """Decides which checkpoint notes to trust; `commons.witness_policy.Policy` is one."""

    def open(self, data: bytes) -> Checkpoint:
        """What the note says. Raises NoteError when it is not to be trusted."""
        ...


def proof_text(index: int, path: Sequence[bytes], checkpoint: bytes, extra: bytes = b"") -> str:
    """A ``.tlog-proof`` file: index, inclusion path and signed checkpoint, to be checked offline.

    With the leaf as `extra` it is all that `open_proof_file` needs.
    """
    assert len(extra) <= EXTRA_BYTES_MAX, f"extra data of {len(extra)} bytes"
    lines = [f"extra {base64_text(extra)}"] if extra else []
    lines = [_PROOF_HEADER, *lines, f"index {index}", *map(hash_text, path), "", checkpoint.decode()]
    return "\n".join(lines)


def open_proof(text: str, leaf: bytes, verifier: Verifier) -> Proof:
    """Check that `leaf` is in the log `verifier` signs for, by a text of `proof_text`.

    An ``extra`` line is read over, as it proves nothing. Raises NoteError for a text that is no proof or a
    checkpoint not signed by the log, ProofError when the leaf is not in that log.
    """
    parts = _split_proof(text)
    return _prove(parts, leaf, Checkpoint.open(parts.checkpoint, verifier))


def open_proof_file(
    text: str, verifier: Verifier | None, policy: CheckpointPolicy | None = None
) -> tuple[Proof, bytes]:
    """Check a proof that carries its own leaf (the ``extra`` line); the proof and the leaf.

    The checkpoint must be signed by `verifier` and trusted by `policy`, each where given; one must be. Raises as
    `open_proof` does, and NoteError when no leaf is in the file.
    """
    assert verifier or policy, "a proof is checked against a key or a policy"
    parts = _split_proof(text)
    if not parts.extra:
        raise NoteError("the proof does not carry the record itself: it has no extra line")
    checkpoint = Checkpoint.open(parts.checkpoint, verifier) if verifier else None
    if policy:
        checkpoint = policy.open(parts.checkpoint)
    assert checkpoint
    return _prove(parts, parts.extra, checkpoint), parts.extra


@dataclass(frozen=True)
class _ProofParts:
    extra: bytes
    index: int
    path: tuple[bytes, ...]
    checkpoint: bytes


def _split_proof(text: str) -> _ProofParts:
    if len(text) > _PROOF_CHARS_MAX + _EXTRA_CHARS_MAX:
        raise NoteError(f"proof of {len(text)} characters")
    head, blank, checkpoint = text.partition("\n\n")
    lines = head.split("\n")
    if not blank or lines.pop(0) != _PROOF_HEADER:
        raise NoteError(
            f"not a proof: expected {_PROOF_HEADER!r}, an index, hashes, a blank line, a checkpoint"
        )
    extra = b""
    if lines and lines[0].startswith("extra "):
        extra = _extra(lines.pop(0)[len("extra ") :])
    word, _, number = lines.pop(0).partition(" ") if lines else ("", "", "")
    if word != "index" or not _DECIMAL.fullmatch(number):
        raise NoteError("the proof has no index line")
    path = tuple(read_hash(line, "a hash of the proof") for line in lines)
    return _ProofParts(extra, int(number), path, checkpoint.encode("utf-8", "surrogatepass"))


def _extra(encoded: str) -> bytes:
    data = base64_bytes(encoded, "the extra line")
    if len(data) > EXTRA_BYTES_MAX:
        raise NoteError(f"the extra line has {len(data)} bytes, the limit is {EXTRA_BYTES_MAX}")
    return data


def _prove(parts: _ProofParts, leaf: bytes, checkpoint: Checkpoint) -> Proof:
    leaf_hash = merkle.leaf_hash(leaf)
    merkle.verify_inclusion(leaf_hash, parts.index, checkpoint.size, parts.path, checkpoint.root)
    return Proof(parts.index, parts.path, checkpoint, parts.checkpoint)


def hash_text(value: bytes) -> str:
    """How checkpoints, proofs and requests write a hash: base64, 44 characters."""
    return base64_text(value)


def read_hash(text: str, what: str) -> bytes:
    """The hash that `hash_text` wrote so; `what` names it in the NoteError."""
    data = base64_bytes(text, what)
    if len(data) != merkle.HASH_BYTES:
        raise NoteError(f"{what} is not the base64 of {merkle.HASH_BYTES} bytes")
    return data
