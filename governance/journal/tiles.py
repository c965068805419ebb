"""Publishing the journal as static files (`commons.tiles`), for any web server and any mirror.

Reads the journal and writes a folder; never the other way round. Full tiles are written once and never again. The
checkpoint goes last: what it signs for is there, whenever the work is cut off, and the next publishing goes on.
"""

from __future__ import annotations

import contextlib
import fcntl
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice, takewhile
from pathlib import Path

from commons import merkle
from commons.errors import StoreError
from commons.identity import write_file
from commons.log import Checkpoint
from commons.merkle import Frontier, ProofError
from commons.notes import NoteError, parse
from commons.tiles import CHECKPOINT, HEIGHT, WIDTH, Tile, TileFolder, bundle, level_tiles, published
from governance.journal.store import JournalReader


@dataclass(frozen=True)
class Published:
    """What one publishing did."""

    size: int
    """Records the folder's checkpoint signs for."""
    written: int
    """Files that are new, without the checkpoint."""
    pruned: int
    """Partial tiles removed because the full one is there."""


def publish(
    reader: JournalReader, folder: Path, *, entries: bool, checkpoint: bytes | None = None
) -> Published:
    """Bring `folder` up to the journal's last checkpoint, or to `checkpoint` (a note, for one with cosignatures).

    With `entries` the records themselves are published too, whoever may read them. Asked twice: nothing is written.
    Raises StoreError, leaving the folder's checkpoint as it was: nothing signed yet, a folder of another journal or
    of a longer one, a journal that does not give the signed root, a disk that refuses, another publishing here.
    """
    note = reader.checkpoint() if checkpoint is None else checkpoint
    new = _read(note, "the journal's checkpoint")
    with _alone(folder):
        before = published(folder)
        old = _read(before, f"{folder / CHECKPOINT}") if before is not None else None
        if old and (old.origin != new.origin or old.size > new.size):
            raise StoreError(
                f"{folder} holds {old.size} records of {old.origin!r}, the journal {reader.location} {new.size} of "
                f"{new.origin!r}: publish into another folder, or restore the journal's newest backup"
            )
        if old:
            _check_extends(reader, folder, old, new)
        work = _Work(reader, folder, old.size if old else 0, new.size, entries)
        work.write()
        _check_root(folder, new)
        if before is None or old != new or _signatures(before) < _signatures(note):
            write_file(folder / CHECKPOINT, note)
        return Published(new.size, work.written, _prune(folder))


@dataclass
class _Work:
    reader: JournalReader
    folder: Path
    old: int
    new: int
    entries: bool
    written: int = 0
    _edge: dict[int, list[bytes]] = field(default_factory=dict)
    """Level -> the hashes of its last, growing tile."""

    def write(self) -> None:
        """Every tile between the two sizes, from the records; leaves the checkpoint alone."""
        hashed = self.old >> HEIGHT << HEIGHT
        before = TileFolder(self.folder, self.old)
        level = 1
        while self.old >> (level * HEIGHT):
            width = self.old >> (level * HEIGHT)
            kept = width % WIDTH
            self._edge[level] = before.hashes(Tile(level, width >> HEIGHT, kept)) if kept else []
            level += 1
        start = min(hashed, self._first_bundle()) if self.entries else hashed
        records = self.reader.records(start, stop=self.new)
        while leaves := [record.leaf for record in islice(records, WIDTH)]:
            if self.entries:
                self._put(Tile(None, start >> HEIGHT, len(leaves)), bundle(leaves))
            if start >= hashed:
                self._put_hashes(0, start >> HEIGHT, [merkle.leaf_hash(leaf) for leaf in leaves])
            start += len(leaves)
        if start != self.new:
            raise StoreError(
                f"the journal {self.reader.location} has {start} records, {self.new} were signed for"
            )
        for level, hashes in sorted(self._edge.items()):
            if hashes:
                self._put_hashes(level, self.new >> ((level + 1) * HEIGHT), hashes)

    def _first_bundle(self) -> int:
        """The first record without a full bundle."""
        full = level_tiles(None, self.new >> HEIGHT << HEIGHT)
        return sum(1 for _ in takewhile(lambda tile: (self.folder / tile.path).is_file(), full)) << HEIGHT

    def _put_hashes(self, level: int, index: int, hashes: Sequence[bytes]) -> None:
        self._put(Tile(level, index, len(hashes)), b"".join(hashes))
        if len(hashes) == WIDTH:
            above = self._edge.setdefault(level + 1, [])
            above.append(merkle.root(hashes))
            if len(above) == WIDTH:
                self._edge[level + 1] = []
                self._put_hashes(level + 1, index >> HEIGHT, above)

    def _put(self, tile: Tile, data: bytes) -> None:
        path = self.folder / tile.path
        if not path.exists():
            write_file(path, data)
            self.written += 1
        elif path.read_bytes() != data:
            raise StoreError(
                f"{path} is not what the journal {self.reader.location} holds: keep the folder as evidence, compare the "
                "journal's backups, and publish into an empty folder"
            )


def _prune(folder: Path) -> int:
    """Remove the partial tiles of tiles that are full by now; how many files."""
    removed = 0
    for partials in sorted((folder / "tile").rglob("*.p")):
        if partials.with_suffix("").is_file():
            removed += len(list(partials.iterdir()))
            shutil.rmtree(partials)
    return removed


def _check_extends(reader: JournalReader, folder: Path, old: Checkpoint, new: Checkpoint) -> None:
    try:
        proof = reader.consistency(old.size, new.size)
        merkle.verify_consistency(old.size, old.root, new.size, new.root, proof)
    except ProofError as wrong:
        raise StoreError(
            f"the journal {reader.location} does not extend what {folder} holds ({wrong}): keep both as evidence, "
            "restore a backup of the journal that does, or publish into an empty folder"
        ) from wrong


def _check_root(folder: Path, new: Checkpoint) -> None:
    root = Frontier.load(new.size, TileFolder(folder, new.size).hash_at).root()
    if root != new.root:
        raise StoreError(
            f"the tiles in {folder} give root {root.hex()[:16]} for size {new.size}, {new.root.hex()[:16]} was signed: "
            "run `hansa journal verify`, then publish into an empty folder"
        )


def _read(note: bytes, what: str) -> Checkpoint:
    try:
        return Checkpoint.read(parse(note))
    except NoteError as wrong:
        raise StoreError(f"{what} cannot be published: {wrong or 'nothing was signed'}") from wrong


def _signatures(note: bytes) -> int:
    return len(parse(note).signatures)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / ".lock").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as held:
                raise StoreError(f"another process publishes into {folder} now; wait for it") from held
            yield
    except OSError as failed:
        raise StoreError(
            f"cannot publish into {folder}: {failed.strerror}; make room or fix its permissions"
        ) from failed
