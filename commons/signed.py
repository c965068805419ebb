"""Opening a note that exactly one key must have signed.

A partner's words reach the journal with that partner's signature and nothing else: a second signature
line, even an unknown one, would be another writing of the same words.
"""

from __future__ import annotations

from commons.errors import Code, Refusal
from commons.names import Digest
from commons.notes import Note, NoteError, Verifier, digest, open_note


def open_signed(note: Note, verifier: Verifier, owner: str) -> Refusal | None:
    """None when `verifier` and nobody else signed the note; else why not, naming `owner`."""
    if len(note.signatures) != 1:
        return Refusal(
            Code.NOTE_MALFORMED,
            f"the note has {len(note.signatures)} signatures, expected only that of {owner}; {owner} signs it again",
        )
    try:
        open_note(note.data, [verifier])
    except NoteError as error:
        return Refusal(
            Code.SIGNATURE_INVALID,
            f"not signed by {owner} with key {verifier.vkey.rpartition('+')[0]}: {error}",
        )
    return None


def text_digest(note: Note) -> Digest:
    """Names the words, whoever's bytes carry them: two writings of one signature are one note."""
    return digest(note.text.encode())
