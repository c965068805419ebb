"""A witness: cosigns a log's checkpoints as long as each extends the last one it cosigned.

C2SP tlog-witness (c2sp.org/tlog-witness) without its HTTP server: `Witness.add` decides, `Witness.add_request` takes
and gives the bodies of its one request. Knows nothing of what a log records. What it cosigned last is durable before
a cosignature leaves, and nobody else can cosign in between: so a witness never signs two histories.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from commons import merkle
from commons.cosignature import Cosigner
from commons.errors import StoreError
from commons.identity import write_file
from commons.log import Checkpoint, hash_text, read_hash
from commons.merkle import ProofError
from commons.notes import NOTE_BYTES_MAX, Note, NoteError, Verifier, open_note, parse

PROOF_LINES_MAX = 63
REQUEST_BYTES_MAX = NOTE_BYTES_MAX + 64 * 64
"""A checkpoint note, 63 hashes of 45 bytes, the line of the old size."""

_OLD = re.compile(r"old (0|[1-9][0-9]{0,18})")
_TEXT = "text/plain; charset=utf-8"
_SIZE = "text/x.tlog.size"


@dataclass(frozen=True)
class WitnessRefusal:
    """No cosignature, and why, by tlog-witness's HTTP status.

    400 no request, 403 not signed by the log, 404 another log, 409 the witness is at `size`: prove from there.
    422 the checkpoint does not extend what the witness cosigned: a wrong proof, or a log of two histories.
    """

    status: int
    message: str
    size: int = 0
    """With 409 and 422: the size this witness cosigned last."""
    cosigned: bytes = b""
    """With 422: the note it cosigned last. Together with the one refused, evidence."""


class WitnessMemory(Protocol):
    """What a witness cosigned last, for each log."""

    def holding(self, origin: str) -> AbstractContextManager[None]:
        """Keep every other user of this memory, in any process, from `load` and `store` of this log."""
        ...

    def load(self, origin: str) -> tuple[Checkpoint, bytes] | None:
        """The last checkpoint stored and its note. Raises StoreError when it cannot be read."""
        ...

    def store(self, checkpoint: Checkpoint, note: bytes) -> None:
        """Durable when it returns. Raises StoreError when it is not; the old one then still stands."""
        ...


class FileMemory:
    """A folder with one checkpoint note for each log, named by the SHA-256 of its origin."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @contextlib.contextmanager
    def holding(self, origin: str) -> Iterator[None]:
        """Waits for its turn: threads and processes alike, by a lock file beside the checkpoint."""
        path = self._path(origin).with_suffix(".lock")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as failed:
            raise StoreError(f"cannot open {path}: {failed.strerror}; fix its permissions") from failed
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def load(self, origin: str) -> tuple[Checkpoint, bytes] | None:
        path = self._path(origin)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as failed:
            raise StoreError(f"cannot read {path}: {failed.strerror}; fix its permissions") from failed
        try:
            checkpoint = Checkpoint.read(parse(data))
            if checkpoint.origin != origin:
                raise NoteError(f"it is of log {checkpoint.origin!r}")
        except NoteError as wrong:
            raise StoreError(
                f"{path} does not hold the checkpoint of {origin!r} cosigned last ({wrong}); restore it from a copy: "
                "a witness that forgets could cosign a second history"
            ) from wrong
        return checkpoint, data

    def store(self, checkpoint: Checkpoint, note: bytes) -> None:
        write_file(self._path(checkpoint.origin), note)

    def _path(self, origin: str) -> Path:
        return self._folder / f"{hashlib.sha256(origin.encode()).hexdigest()[:32]}.checkpoint"


class Witness:
    """Cosigns for the logs whose keys it was given. Any number of threads may ask."""

    def __init__(self, cosigner: Cosigner, logs: Iterable[Verifier], memory: WitnessMemory) -> None:
        self.cosigner = cosigner
        self._memory = memory
        self._logs: dict[str, list[Verifier]] = {}
        for log in logs:
            self._logs.setdefault(log.name, []).append(log)

    def size(self, origin: str) -> int:
        """The size cosigned last for this log, 0 before the first. Raises StoreError."""
        last = self._memory.load(origin)
        return last[0].size if last else 0

    def add(self, old: int, proof: Sequence[bytes], checkpoint: bytes, time_s: int) -> str | WitnessRefusal:
        """Check that the log's checkpoint extends the one of size `old`, cosigned last; remember it; cosign it.

        The same checkpoint again gives a new cosignature, dated `time_s`. Raises StoreError when the checkpoint
        cannot be remembered: then it was not cosigned either.
        """
        try:
            note = parse(checkpoint)
            new = Checkpoint.read(note)
        except NoteError as wrong:
            return WitnessRefusal(400, f"not a checkpoint: {wrong}")
        if refusal := self._check_log(note, new):
            return refusal
        if old > new.size:
            return WitnessRefusal(400, f"a checkpoint of size {new.size} cannot extend one of size {old}")
        with self._memory.holding(new.origin):
            last = self._memory.load(new.origin)
            if refusal := _check_extends(last, old, proof, new):
                return refusal
            if last is None or last[0] != new:
                self._memory.store(new, checkpoint)
            return self.cosigner.cosign(note.text, time_s)

    def add_request(self, body: bytes, time_s: int) -> tuple[int, str, bytes]:
        """Answer the body of one ``POST add-checkpoint``: (HTTP status, content type, body). Raises StoreError."""
        try:
            old, proof, checkpoint = parse_request(body)
        except NoteError as wrong:
            return 400, _TEXT, f"{wrong}\n".encode()
        answer = self.add(old, proof, checkpoint, time_s)
        if isinstance(answer, str):
            return 200, _TEXT, answer.encode()
        if answer.status == 409:
            return 409, _SIZE, f"{answer.size}\n".encode()
        return answer.status, _TEXT, f"{answer.message}\n".encode()

    def _check_log(self, note: Note, new: Checkpoint) -> WitnessRefusal | None:
        keys = self._logs.get(new.origin)
        if keys is None:
            return WitnessRefusal(404, f"this witness does not know the log {new.origin[:60]!r}")
        try:
            open_note(note.data, keys)
        except NoteError as wrong:
            return WitnessRefusal(403, f"the checkpoint is not signed by the log {new.origin!r}: {wrong}")
        return None


def request_text(old: int, proof: Sequence[bytes], checkpoint: bytes) -> bytes:
    """The body that asks a witness which cosigned size `old` last for a cosignature over `checkpoint`."""
    lines = "".join(f"{hash_text(value)}\n" for value in proof)
    return f"old {old}\n{lines}\n".encode() + checkpoint


def parse_request(body: bytes) -> tuple[int, list[bytes], bytes]:
    """Take a request apart: old size, consistency proof, checkpoint note, none of them believed. Raises NoteError."""
    if len(body) > REQUEST_BYTES_MAX:
        raise NoteError(f"request of {len(body)} bytes, the limit is {REQUEST_BYTES_MAX}")
    head, blank, checkpoint = body.partition(b"\n\n")
    first, *lines = head.decode("ascii", errors="replace").split("\n")
    old = _OLD.fullmatch(first)
    if not old or not blank:
        raise NoteError("a request has a line 'old <size>', proof lines, an empty line and a checkpoint")
    if len(lines) > PROOF_LINES_MAX:
        raise NoteError(f"consistency proof of {len(lines)} lines, at most {PROOF_LINES_MAX} are read")
    return int(old[1]), [read_hash(line, "a line of the consistency proof") for line in lines], checkpoint


def _check_extends(
    last: tuple[Checkpoint, bytes] | None, old: int, proof: Sequence[bytes], new: Checkpoint
) -> WitnessRefusal | None:
    size, root = (last[0].size, last[0].root) if last else (0, merkle.EMPTY_ROOT)
    if old != size:
        return WitnessRefusal(
            409, f"this witness cosigned size {size} of {new.origin!r} last, not {old}", size
        )
    try:
        merkle.verify_consistency(size, root, new.size, new.root, proof)
    except ProofError as wrong:
        why = f"the checkpoint of size {new.size} does not extend the one of size {size} cosigned before: {wrong}"
        return WitnessRefusal(422, why, size, last[1] if last else b"")
    return None
