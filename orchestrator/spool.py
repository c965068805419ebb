"""Where updates lie until their round is combined: the claim and the payload of each site.

Owns durability and resuming; knows nothing of what makes an update right. A payload is resumed only for the
same claim (update note); another claim of the same site starts anew.
"""

from __future__ import annotations

import mmap
import os
import shutil
import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from commons.errors import Code, Refusal, StoreError
from commons.identity import write_file
from commons.names import Digest, RunId, SiteId
from commons.notes import digest, parse
from orchestrator.intake import Claim

FRAME_BYTES_MAX = 1 << 20
_SYNC_EVERY = 32 << 20


class Spool:
    """Files ``<run>/<round>/<site>.{note,manifest,part}``. Safe for many threads."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._lock = threading.Lock()
        self._turns: defaultdict[SiteId, int] = defaultdict(int)
        self._writing: defaultdict[SiteId, threading.Lock] = defaultdict(threading.Lock)

    def offset(self, run: RunId, number: int, site: SiteId, key: Digest) -> int:
        """Payload bytes that are durable for the claim with this key; 0 when nothing is known of it.

        Raises StoreError when the disk fails.
        """
        part = self._file(run, number, site, "part")
        if self._held(run, number, site) != key or not part.exists():
            return 0
        try:
            _sync(part)
            return part.stat().st_size
        except OSError as error:
            raise self._failed(site, error) from error

    def receive(self, claim: Claim, offset: int, frames: Iterable[bytes]) -> Refusal | None:
        """Append payload frames from `offset`; None when the payload is whole and durable.

        A newer upload of the same site ends this one at its next frame. Raises StoreError when the disk is
        full; what was durable stays, and the upload may be resumed.
        """
        site = claim.site
        with self._lock:
            self._turns[site] += 1
            turn, writing = self._turns[site], self._writing[site]
        try:
            with writing:
                path = self._begin(claim)
            with path.open("ab", buffering=0) as file:
                return self._append(claim, file.fileno(), offset, frames, turn)
        except OSError as error:
            raise self._failed(site, error) from error

    def discard(self, claim: Claim) -> None:
        """Forget the payload of a claim that turned out damaged."""
        with suppress(FileNotFoundError):
            self._file(RunId(claim.update.run), claim.update.round, claim.site, "part").unlink()

    @contextmanager
    def payload(self, run: RunId, number: int, site: SiteId) -> Iterator[memoryview]:
        """The payload, mapped read-only. Raises StoreError when the spool lost it."""
        try:
            with self._file(run, number, site, "part").open("rb") as file:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise self._lost(run, number, site) from error
        view = memoryview(mapped)
        try:
            yield view
        finally:
            view.release()
            with suppress(BufferError):  # a tensor still looks at it; it is unmapped with the last of them
                mapped.close()

    def manifest(self, run: RunId, number: int, site: SiteId) -> bytes:
        """The manifest of the spooled update. Raises StoreError when the spool lost it."""
        try:
            return self._file(run, number, site, "manifest").read_bytes()
        except OSError as error:
            raise self._lost(run, number, site) from error

    def drop_before(self, run: RunId, number: int) -> None:
        """Remove the spools of the run's rounds below `number`, and those of all other runs."""
        for folder in self._root.glob("*/*"):
            if folder.parent.name != run or int(folder.name) < number:
                shutil.rmtree(folder, ignore_errors=True)

    def _append(
        self, claim: Claim, handle: int, offset: int, frames: Iterable[bytes], turn: int
    ) -> Refusal | None:
        whole, site = claim.manifest.payload_bytes, claim.site
        at = os.fstat(handle).st_size
        if not 0 <= offset <= at:
            message = f"site {site} resumes at {offset}, durable are {at}: ask for the offset first"
            return Refusal(Code.REQUEST_INVALID, message)
        known, synced = at - offset, at
        for frame in frames:
            fresh = frame[known:]
            known -= len(frame) - len(fresh)
            if len(frame) > FRAME_BYTES_MAX or at + len(fresh) > whole:
                message = f"site {site} sends frames above 1 MiB, or more than the {whole} bytes it signed"
                return Refusal(Code.UPDATE_TOO_LARGE, message)
            with self._writing[site]:
                if self._turns[site] != turn:
                    return Refusal(Code.REQUEST_INVALID, f"a newer upload of site {site} took over")
                _write(handle, fresh)
            at += len(fresh)
            if at - synced >= _SYNC_EVERY:
                os.fsync(handle)
                synced = at
        os.fsync(handle)
        if at < whole:
            message = f"the upload of site {site} ended at {at} of {whole} bytes; it resumes from there"
            return Refusal(Code.REQUEST_INVALID, message)
        return None

    def _begin(self, claim: Claim) -> Path:
        run, number, site = RunId(claim.update.run), claim.update.round, claim.site
        part = self._file(run, number, site, "part")
        if self._held(run, number, site) != claim.key:
            note = self._file(run, number, site, "note")
            note.unlink(missing_ok=True)
            part.unlink(missing_ok=True)
            write_file(self._file(run, number, site, "manifest"), claim.upload.manifest)
            write_file(note, claim.upload.update)
        return part

    def _held(self, run: RunId, number: int, site: SiteId) -> Digest | None:
        try:
            note = parse(self._file(run, number, site, "note").read_bytes())
        except FileNotFoundError:
            return None
        return digest(note.text.encode())

    def _failed(self, site: SiteId, error: OSError) -> StoreError:
        why = error.strerror or str(error)
        return StoreError(f"cannot keep the update of site {site} in {self._root}: {why}")

    def _lost(self, run: RunId, number: int, site: SiteId) -> StoreError:
        where = self._file(run, number, site, "*")
        return StoreError(f"{where}: an admitted update was removed from the spool; its operator restores it")

    def _file(self, run: RunId, number: int, site: SiteId, ending: str) -> Path:
        return self._root / run / str(number) / f"{site}.{ending}"


def _write(handle: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(handle, view) :]


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
