"""The journal as static files: C2SP tlog-tiles (c2sp.org/tlog-tiles), so that any web server can publish it.

Owns the files' names and contents and the way back from them to hashes, entries and proofs. Believes no file: what is
read here counts once a proof built from it leads to a signed root. Writing them is `governance.journal.tiles`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import zip_longest
from pathlib import Path

from commons import merkle
from commons.errors import StoreError
from commons.log import Checkpoint
from commons.merkle import HASH_BYTES, Frontier
from commons.notes import NoteError, Verifier

HEIGHT = 8
"""Levels of the tree in one tile."""
WIDTH = 1 << HEIGHT
"""Hashes of a full tile, entries of a full bundle."""
CHECKPOINT = "checkpoint"
ENTRY_BYTES_MAX = 65_535
PROBLEMS_MAX = 20
_CACHED_TILES = 4096


@dataclass(frozen=True)
class Tile:
    """Hashes (level * 8, index * 256 ...) of a tree, or, at level "entries", the leaves themselves."""

    level: int | None
    """None: a bundle of entries."""
    index: int
    width: int = WIDTH
    """1 to 256; less than 256 at the right edge only."""

    @property
    def path(self) -> str:
        """Under the log's prefix: tile/<level>/x001/x234/067, with .p/<width> when partial."""
        level = "entries" if self.level is None else str(self.level)
        groups = [f"{self.index % 1000:03d}"]
        rest = self.index // 1000
        while rest:
            groups.insert(0, f"x{rest % 1000:03d}")
            rest //= 1000
        suffix = "" if self.width == WIDTH else f".p/{self.width}"
        return f"tile/{level}/{'/'.join(groups)}{suffix}"

    @property
    def full(self) -> Tile:
        """The tile this one becomes."""
        return Tile(self.level, self.index)


def tiles_of(size: int) -> Iterator[Tile]:
    """The hash tiles of a tree of `size` leaves, level by level from the leaves."""
    for level in range(_levels(size)):
        yield from level_tiles(level, size >> (level * HEIGHT))


def level_tiles(level: int | None, width: int) -> Iterator[Tile]:
    """Tiles that hold the first `width` hashes (or entries) of a level; the last one may be partial."""
    for index in range(width >> HEIGHT):
        yield Tile(level, index)
    if rest := width % WIDTH:
        yield Tile(level, width >> HEIGHT, rest)


def bundle(entries: Sequence[bytes]) -> bytes:
    """Up to 256 entries, each behind its length in two bytes."""
    assert all(len(entry) <= ENTRY_BYTES_MAX for entry in entries), "an entry longer than 65535 bytes"
    return b"".join(struct.pack(">H", len(entry)) + entry for entry in entries)


def read_bundle(data: bytes) -> list[bytes]:
    """The entries of a bundle. Raises ValueError when it does not end with an entry."""
    entries: list[bytes] = []
    at = 0
    while at < len(data):
        end = at + 2 + int.from_bytes(data[at : at + 2], "big")
        if at + 2 > len(data) or end > len(data):
            raise ValueError(f"entry {len(entries)} of the bundle ends after the file does")
        entries.append(data[at + 2 : end])
        at = end
    return entries


class TileFolder:
    """A log's files in a folder, as a mirror or the log's own publisher left them.

    Reads what a tree of `size` leaves needs; a partial tile that has become full is read from the full one. Every
    method raises StoreError naming the file that is missing or not what it must be.
    """

    def __init__(self, folder: Path, size: int) -> None:
        self.folder = folder
        self.size = size
        self._tile = lru_cache(maxsize=_CACHED_TILES)(self._read_tile)

    def hash_at(self, level: int, index: int) -> bytes:
        """The complete subtree (level, index) of the tree: a `merkle.HashAt`."""
        tile_level, height = divmod(level, HEIGHT)
        first = index << height
        if (index + 1) << level > self.size:
            raise merkle.ProofError(f"no complete subtree ({level}, {index}) in a tree of {self.size}")
        hashes = self._tile(tile_level, first >> HEIGHT)
        low = first % WIDTH * HASH_BYTES
        row = hashes[low : low + (HASH_BYTES << height)]
        return merkle.root(_split(row))

    def hashes(self, tile: Tile) -> list[bytes]:
        """What one tile holds."""
        data = self._read(tile, tile.width * HASH_BYTES)
        return _split(data[: tile.width * HASH_BYTES])

    def entries(self, tile: Tile) -> list[bytes]:
        """The entries of one bundle."""
        try:
            found = read_bundle(self._read(tile, 0))
        except ValueError as wrong:
            raise StoreError(
                f"{self.folder / tile.path} is broken: {wrong}; publish the tiles again"
            ) from wrong
        if len(found) < tile.width:
            raise StoreError(
                f"{self.folder / tile.path} holds {len(found)} entries, not {tile.width}; publish the tiles again"
            )
        return found[: tile.width]

    def entry(self, index: int) -> bytes:
        """One leaf; whether it is the leaf is for a proof to show."""
        if not 0 <= index < self.size:
            raise IndexError(f"no record {index} in tiles of {self.size}")
        return self.entries(self._edge(None, index >> HEIGHT, self.size))[index % WIDTH]

    @property
    def has_entries(self) -> bool:
        """Whether the records themselves were published too."""
        return (self.folder / "tile" / "entries").is_dir()

    def _edge(self, level: int | None, index: int, width: int) -> Tile:
        """The tile at `index` of a level that is `width` wide."""
        return Tile(level, index, min(WIDTH, width - (index << HEIGHT)))

    def _read_tile(self, level: int, index: int) -> bytes:
        tile = self._edge(level, index, self.size >> (level * HEIGHT))
        return self._read(tile, tile.width * HASH_BYTES)

    def _read(self, tile: Tile, length: int) -> bytes:
        path = self.folder / tile.path
        try:
            data = path.read_bytes() if path.is_file() else (self.folder / tile.full.path).read_bytes()
        except FileNotFoundError:
            raise StoreError(
                f"{path} is missing; publish the tiles again or fetch it from a mirror"
            ) from None
        except OSError as failed:
            raise StoreError(f"cannot read {path}: {failed.strerror}; fix its permissions") from failed
        if len(data) < length:
            raise StoreError(f"{path} has {len(data)} bytes, not {length}; publish the tiles again")
        return data


def published(folder: Path) -> bytes | None:
    """The checkpoint note a folder of tiles was last published with; None when there is none. Raises StoreError."""
    try:
        return (folder / CHECKPOINT).read_bytes()
    except FileNotFoundError:
        return None
    except OSError as failed:
        raise StoreError(
            f"cannot read {folder / CHECKPOINT}: {failed.strerror}; fix its permissions"
        ) from failed


def verify_folder(folder: Path, log: Verifier) -> tuple[Checkpoint | None, list[str]]:
    """Recompute every file of a folder of tiles up to the root its checkpoint signs; entries too where they are.

    The checkpoint (None when it cannot be trusted) and every problem in a sentence, at most `PROBLEMS_MAX`, lowest
    index first; empty when all is well.
    """
    note = published(folder)
    if note is None:
        return None, [f"{folder / CHECKPOINT} is missing: nothing was published here"]
    try:
        checkpoint = Checkpoint.open(note, log)
    except NoteError as wrong:
        return None, [f"{folder / CHECKPOINT} cannot be trusted: {wrong}"]
    tiles = TileFolder(folder, checkpoint.size)
    try:
        problems = list(_problems(tiles))[:PROBLEMS_MAX]
        if not problems and Frontier.load(checkpoint.size, tiles.hash_at).root() != checkpoint.root:
            problems = [f"the tiles in {folder} do not give the root signed for size {checkpoint.size}"]
    except StoreError as wrong:
        problems = [str(wrong)]
    return checkpoint, problems


def _problems(tiles: TileFolder) -> Iterator[str]:
    if tiles.has_entries:
        for of_leaves, of_hashes in zip(
            level_tiles(None, tiles.size), level_tiles(0, tiles.size), strict=True
        ):
            found = [merkle.leaf_hash(entry) for entry in tiles.entries(of_leaves)]
            if (at := _differs(found, tiles.hashes(of_hashes))) is not None:
                yield f"entry {(of_leaves.index << HEIGHT) + at} in {of_leaves.path} is not the one hashed"
    roots: list[bytes] = []
    for level in range(_levels(tiles.size)):
        expected, roots = roots, []
        for tile in level_tiles(level, tiles.size >> (level * HEIGHT)):
            hashes = tiles.hashes(tile)
            first = tile.index << HEIGHT
            if level and (at := _differs(hashes, expected[first : first + tile.width])) is not None:
                record = (first + at) << (level * HEIGHT)
                yield f"{tile.path} does not follow from the tiles below it, from record {record} on"
            if tile.width == WIDTH:
                roots.append(merkle.root(hashes))


def _levels(size: int) -> int:
    return -(-size.bit_length() // HEIGHT)


def _differs(found: Sequence[bytes], expected: Sequence[bytes]) -> int | None:
    pairs = enumerate(zip_longest(found, expected))
    return next((i for i, (one, other) in pairs if one != other), None)


def _split(data: bytes) -> list[bytes]:
    return [data[at : at + HASH_BYTES] for at in range(0, len(data), HASH_BYTES)]
