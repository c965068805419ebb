"""Cosignatures: a witness's word that it has seen one checkpoint, and no other history of that log.

The format is C2SP tlog-cosignature with Ed25519 (c2sp.org/tlog-cosignature, type 0x04), one more signature line
under the log's own. Knows how such a line is made and checked; not when a witness may give one
(`commons.witness`) nor how many a reader needs (`commons.witness_policy`, the charter).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from commons.log import Checkpoint
from commons.notes import (
    SIGNATURES_MAX,
    Note,
    NoteError,
    Signature,
    Signer,
    Verifier,
    base64_text,
    parse,
    split_key,
)

TIME_S_MAX = 2**63 - 1
WITNESSES_MAX = SIGNATURES_MAX - 1
"""One signature line is the log's."""

_COSIGNATURE = b"\x04"
_VALUE_BYTES = 8 + 64


class Cosigner:
    """A witness's private side: a note key that also cosigns, under the same name."""

    def __init__(self, signer: Signer) -> None:
        self._signer = signer
        self.cosignatory = Cosignatory.of(signer.verifier)
        self.name = signer.name
        self.vkey = self.cosignatory.vkey

    def cosign(self, checkpoint_text: str, time_s: int) -> str:
        """One signature line over a checkpoint's text, saying when (Unix seconds).

        The caller has checked that the checkpoint extends every one it cosigned before.
        """
        assert 0 < time_s <= TIME_S_MAX, f"a cosignature's time, not {time_s}"
        value = self._signer.raw_signature(_message(checkpoint_text, time_s))
        return Signature(self.name, self.cosignatory.key_id, time_s.to_bytes(8, "big") + value).line

    def __repr__(self) -> str:
        return f"Cosigner({self.vkey!r})"


class Cosignatory:
    """A witness's public side. Equal when name and key are."""

    def __init__(self, name: str, public: bytes) -> None:
        self._verifier = Verifier(name, public)
        self._key = Ed25519PublicKey.from_public_bytes(public)
        self.name = name
        self.public = public
        self.key_id = hashlib.sha256(name.encode() + b"\n" + _COSIGNATURE + public).digest()[:4]

    @classmethod
    def of(cls, verifier: Verifier) -> Cosignatory:
        """The witness that holds this note key: a site cosigns with the key it signs its notes with."""
        return cls(verifier.name, verifier.public)

    @classmethod
    def from_vkey(cls, vkey: str) -> Cosignatory:
        """Read ``<name>+<key id, 8 hex digits>+<base64>`` of type 0x04; the id must be the key's. Raises NoteError."""
        name, key_id, key = split_key(vkey, "witness key")
        if len(key) != 33 or key[:1] != _COSIGNATURE:
            raise NoteError(f"witness key of {name!r} is no Ed25519 cosignature key (type 0x04, 32 bytes)")
        found = cls(name, key[1:])
        if found.key_id.hex() != key_id:
            raise NoteError(f"witness key of {name!r} says id {key_id}, its key has {found.key_id.hex()}")
        return found

    @property
    def vkey(self) -> str:
        return f"{self.name}+{self.key_id.hex()}+{base64_text(_COSIGNATURE + self.public)}"

    def time_of(self, checkpoint_text: str, signature: Signature) -> int:
        """The Unix second at which this witness cosigned. Raises NoteError when the signature does not hold."""
        if len(signature.value) != _VALUE_BYTES:
            raise NoteError(
                f"the cosignature by {self.name!r} has {len(signature.value)} bytes, not {_VALUE_BYTES}"
            )
        time_s = int.from_bytes(signature.value[:8], "big")
        if time_s > TIME_S_MAX:
            raise NoteError(f"the cosignature by {self.name!r} is dated after the end of time")
        try:
            self._key.verify(signature.value[8:], _message(checkpoint_text, time_s))
        except InvalidSignature:
            raise NoteError(
                f"the cosignature by {self.name!r} is wrong: the checkpoint was changed or it is forged"
            ) from None
        return time_s

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Cosignatory) and self._verifier == other._verifier

    def __hash__(self) -> int:
        return hash(("cosignatory", self._verifier))

    def __repr__(self) -> str:
        return f"Cosignatory({self.vkey!r})"


def cosigned(
    data: bytes, log: Verifier, witnesses: Iterable[Cosignatory]
) -> tuple[Checkpoint, dict[str, int]]:
    """Open a checkpoint note: what the log says, and which of `witnesses` cosigned it, when (Unix seconds).

    The log's signature must hold, and so must every line that claims one of `witnesses`; other keys are ignored.
    Of two lines by one witness the later time counts. Raises NoteError.
    """
    checkpoint = Checkpoint.open(data, log)
    return checkpoint, {
        witness.name: time_s for witness, time_s in cosignatures(parse(data), witnesses).items()
    }


def cosignatures(note: Note, witnesses: Iterable[Cosignatory]) -> dict[Cosignatory, int]:
    """Which of `witnesses` cosigned a checkpoint's note, when; as `cosigned`, but nobody has checked the log's word."""
    known = {(witness.name, witness.key_id): witness for witness in witnesses}
    times: dict[Cosignatory, int] = {}
    for signature in note.signatures:
        witness = known.get((signature.name, signature.key_id))
        if witness is not None:
            times[witness] = max(witness.time_of(note.text, signature), times.get(witness, 0))
    return times


def with_cosignatures(checkpoint: bytes, lines: Sequence[str]) -> bytes:
    """A checkpoint note with these signature lines under its own, in the order given; none is verified.

    Raises NoteError for what is no signature line, for a second line by one key and for more than 16 in all.
    """
    before = parse(checkpoint)
    data = checkpoint + "".join(lines).encode()
    found = parse(data)
    if found.text != before.text or len(found.signatures) != len(before.signatures) + len(lines):
        raise NoteError("a cosignature is exactly one line")
    keys = [(signature.name, signature.key_id) for signature in found.signatures]
    for name, key_id in keys:
        if keys.count((name, key_id)) > 1:
            raise NoteError(f"{name!r} (key {key_id.hex()}) would sign this checkpoint twice")
    return data


def cosignature(line: str, checkpoint_text: str, witness: Cosignatory) -> int:
    """Check one line offered as `witness`'s over this text; its time (Unix seconds). Raises NoteError.

    Only the one writing of a line is taken, so that it can be kept and passed on as it came.
    """
    note = parse(f"{checkpoint_text}\n{line}".encode())
    keys = [(signature.name, signature.key_id) for signature in note.signatures]
    if note.text != checkpoint_text or keys != [(witness.name, witness.key_id)]:
        raise NoteError(f"not one signature line by {witness.vkey.rpartition('+')[0]}")
    return witness.time_of(checkpoint_text, note.signatures[0])


def _message(checkpoint_text: str, time_s: int) -> bytes:
    return f"cosignature/v1\ntime {time_s}\n{checkpoint_text}".encode()
