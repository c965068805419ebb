"""Finished rounds of a site, sealed on disk before anything is sent, so that a killed site sends the same bytes.

A sealed round outlives its process at once, and a power cut once it is secured, which goes on beside the upload; what
was not secured is checked when the next process begins, and trained again when it is damaged. One folder per round, `<run>-<round>`, that appears whole or not at all: payload, manifest, signed notes, and the
residual that the next round's quantisation starts from. Knows nothing of the wire.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from commons.disk import sync
from commons.errors import StoreError
from commons.experts.map import ExpertMap
from commons.notes import NoteError, digest, parse
from commons.updates import UpdateManifest
from commons.work import AssignmentNote, UpdateNote
from workers.residual import Residual, residual_is_whole
from workers.seal import PAYLOAD

_KEPT = 2
"""Sealed rounds kept: the last, to send again, and of the one before the residual, from which a re-sealed last starts."""
_SECURED = "secured"
_SYNCS_AT_ONCE = 4
_FOLDER = re.compile(r"(?P<run>.+)-(?P<round>[0-9]{6})")


@dataclass(frozen=True)
class Sealed:
    """One round's result, ready to be sent."""

    folder: Path
    update: bytes
    """hansa-update/v2 note; `usage` hansa-usage/v1."""
    usage: bytes
    manifest: bytes

    @property
    def payload(self) -> Path:
        return self.folder / PAYLOAD

    def secure(self) -> None:
        """Wait until the round outlives a power cut too; asked twice, nothing. Raises StoreError."""
        try:
            _secure(self.folder)
        except OSError as error:
            raise StoreError(
                f"cannot keep {self.folder}: {error.strerror}; its operator checks the disk"
            ) from error


class Outbox:
    def __init__(self, root: Path) -> None:
        self._root = root
        try:
            root.mkdir(parents=True, exist_ok=True)
            for folder in root.iterdir():
                if not (folder / _SECURED).exists():
                    if folder.name.startswith(".") or not _is_whole(folder):
                        shutil.rmtree(folder)
                    else:
                        _secure(folder)
        except OSError as error:
            raise StoreError(f"cannot use {root} for finished rounds: {error.strerror}") from error

    def find(self, order: AssignmentNote) -> Sealed | None:
        """The sealed result of this very order (run, round, base, charter, lease), if there is one."""
        folder = self._folder(order.run, order.round)
        try:
            if json.loads((folder / "order.json").read_bytes()) != _identity(order):
                return None
            (folder / PAYLOAD).stat()
            read = {name: (folder / file).read_bytes() for name, file in _FILES.items()}
        except FileNotFoundError:
            return None
        return Sealed(folder, **read)

    def residual(self, order: AssignmentNote, expert_map: ExpertMap) -> Residual:
        """What quantisation left over in the latest sealed round of the run before this one, as of the order's experts;
        nothing at first."""
        earlier = [n for n in self._rounds(order.run) if n < order.round]
        return Residual(self._folder(order.run, earlier[-1]) if earlier else None, expert_map)

    @contextmanager
    def draft(self, order: AssignmentNote) -> Iterator[Path]:
        """A folder to pack the order's payload in, for `seal`; gone when it was not sealed.

        Raises StoreError when the disk is full or fails, then too.
        """
        draft = self._root / f".{self._folder(order.run, order.round).name}"
        try:
            shutil.rmtree(draft, ignore_errors=True)
            draft.mkdir()
            self._reuse(order, draft)
            yield draft
        except OSError as error:
            raise StoreError(
                f"cannot keep round {order.round} in {self._root}: {error.strerror}; the site's operator makes room, "
                "the round is then sealed again"
            ) from error
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def seal(
        self, order: AssignmentNote, draft: Path, *, update: bytes, usage: bytes, manifest: bytes
    ) -> Sealed:
        """The round packed in `draft` is finished, within the draft's context; an older result of it is replaced.

        Begin to send it, and `secure` it beside.
        """
        folder = self._folder(order.run, order.round)
        files = {
            "order.json": json.dumps(_identity(order)).encode(),
            "update.note": update,
            "usage.note": usage,
            "manifest.json": manifest,
        }
        for name, content in files.items():
            (draft / name).write_bytes(content)
        shutil.rmtree(folder, ignore_errors=True)
        draft.rename(folder)
        self._forget(order)
        return Sealed(folder, update, usage, manifest)

    def latest(self) -> tuple[str, int]:
        """Run and number of the round sealed last; empty and 0 when there is none."""
        found = [(f.stat().st_mtime_ns, m) for f in self._root.iterdir() if (m := _FOLDER.fullmatch(f.name))]
        if not found:
            return "", 0
        _, match = max(found, key=lambda entry: (entry[0], entry[1]["round"]))
        return match["run"], int(match["round"])

    def _folder(self, run: str, number: int) -> Path:
        return self._root / f"{run}-{number:06d}"

    def _rounds(self, run: str) -> list[int]:
        matches = (_FOLDER.fullmatch(folder.name) for folder in self._root.iterdir())
        return sorted(int(m["round"]) for m in matches if m and m["run"] == run)

    def _reuse(self, order: AssignmentNote, draft: Path) -> None:
        """A payload of an earlier round, which nobody asks for once this one is ordered, is written over: cheaper than a new
        file (`pack`). That of a round which was not secured is read once more should this process die; it stays."""
        earlier = [self._folder(order.run, n) for n in self._rounds(order.run) if n < order.round]
        for folder in earlier:
            if (folder / _SECURED).exists() and (folder / PAYLOAD).exists():
                (folder / PAYLOAD).replace(draft / PAYLOAD)
        for folder in earlier[: 1 - _KEPT]:
            shutil.rmtree(folder)

    def _forget(self, order: AssignmentNote) -> None:
        """Drop what is not needed again: other runs, and rounds before the last two."""
        kept = [n for n in self._rounds(order.run) if n <= order.round][-_KEPT:]
        names = {self._folder(order.run, n).name for n in kept}
        for folder in self._root.iterdir():
            if folder.name not in names:
                shutil.rmtree(folder, ignore_errors=True)


_FILES = {"update": "update.note", "usage": "usage.note", "manifest": "manifest.json"}


def _identity(order: AssignmentNote) -> dict[str, str | int]:
    return {
        "run": order.run,
        "round": order.round,
        "base": order.base,
        "charter": order.charter,
        "lease": order.lease,
    }


def _secure(folder: Path) -> None:
    """Raises OSError."""
    if (folder / _SECURED).exists():
        return
    with ThreadPoolExecutor(_SYNCS_AT_ONCE) as pool:  # a file system commits concurrent syncs in one go
        list(pool.map(sync, folder.iterdir()))
    sync(folder)
    sync(folder.parent)
    (folder / _SECURED).touch()


def _is_whole(folder: Path) -> bool:
    """Whether every byte is as it was sealed."""
    try:
        text = (folder / "manifest.json").read_bytes()
        manifest = UpdateManifest.from_bytes(text)
        said = UpdateNote.from_note(parse((folder / "update.note").read_bytes()))
        json.loads((folder / "order.json").read_bytes())
        with (folder / PAYLOAD).open("rb") as payload:
            frames = all(blake3(payload.read(f.bytes)).hexdigest() == f.blake3 for f in manifest.frames)
    except (OSError, ValueError, NoteError):
        return False
    return frames and said.manifest == digest(text) and residual_is_whole(folder)
