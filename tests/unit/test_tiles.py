"""The journal as files: named as C2SP says, complete at every step, and never believed."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from commons import merkle
from commons.errors import StoreError
from commons.log import Checkpoint, open_proof, proof_text
from commons.merkle import Frontier
from commons.notes import Signer
from commons.records import Kind, Record, fact
from commons.tiles import Tile, TileFolder, bundle, published, read_bundle, tiles_of, verify_folder
from governance.journal import Journal
from governance.journal import tiles as publishing
from governance.journal.tiles import publish
from tests.support.chamber import LOG


class FixedClock:
    def now_ms(self) -> int:
        return 1_700_000_000_000


def record(n: int) -> Record:
    return fact(Kind.TRANSFER, 1000 + n, n=n)


def grow(journal: Journal, size: int) -> None:
    while journal.size < size:
        journal.append([record(n) for n in range(journal.size, min(size, journal.size + 5000))])


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    opened = Journal.open(tmp_path / "home", signer=LOG, clock=FixedClock())
    yield opened
    opened.close()


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


@pytest.mark.parametrize(
    ("tile", "path"),
    [
        (Tile(0, 0), "tile/0/000"),
        (Tile(0, 1234067), "tile/0/x001/x234/067"),
        (Tile(1, 999), "tile/1/999"),
        (Tile(2, 1000), "tile/2/x001/000"),
        (Tile(0, 273, 112), "tile/0/273.p/112"),
        (Tile(None, 1234067, 1), "tile/entries/x001/x234/067.p/1"),
    ],
)
def test_a_tile_has_the_path_that_c2sp_gives_it(tile: Tile, path: str) -> None:
    assert tile.path == path


def test_a_tree_of_seventy_thousand_has_the_tiles_of_c2sps_example() -> None:
    found = list(tiles_of(70_000))
    assert [tile.width for tile in found if tile.level == 0] == [256] * 273 + [112]
    assert [(tile.level, tile.index, tile.width) for tile in found if tile.level] == [
        (1, 0, 256),
        (1, 1, 17),
        (2, 0, 1),
    ]
    assert [(tile.level, tile.width) for tile in tiles_of(256)] == [(0, 256), (1, 1)]
    assert list(tiles_of(0)) == []


def test_a_bundle_gives_back_its_entries() -> None:
    entries = [b"", b"one", b"x" * 65_535]
    assert bundle(entries)[:7] == b"\x00\x00\x00\x03one"
    assert read_bundle(bundle(entries)) == entries


@pytest.mark.parametrize("data", [b"\x00", b"\x00\x02a", b"\x00\x01a\xff"])
def test_a_bundle_that_breaks_off_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="ends after the file"):
        read_bundle(data)


SIZES = (0, 1, 2, 255, 256, 257, 511, 600, 1024, 1500)


def test_published_tiles_give_the_journals_own_proofs_at_every_size(journal: Journal, tmp_path: Path) -> None:
    folder = tmp_path / "tiles"
    for size in SIZES:
        grow(journal, size)
        publish(journal, folder, entries=True)
        tiles = TileFolder(folder, size)
        assert verify_folder(folder, LOG.verifier) == (Checkpoint(LOG.name, size, journal.root()), [])
        assert Frontier.load(size, tiles.hash_at).root() == journal.root()
        for index in {0, size // 2, size - 1, size - size % 256} & set(range(size)):
            assert merkle.inclusion_proof(index, size, tiles.hash_at) == journal.inclusion(index, size)
            assert tiles.entry(index) == journal.record(index).leaf
        for old in SIZES[: SIZES.index(size)]:
            assert merkle.consistency_proof(old, size, tiles.hash_at) == journal.consistency(old, size)


def test_a_tree_of_three_levels_is_published_and_proven(journal: Journal, tmp_path: Path) -> None:
    grow(journal, 65_800)
    done = publish(journal, tmp_path / "tiles", entries=False)
    assert done.written == len(list(tiles_of(65_800)))
    tiles = TileFolder(tmp_path / "tiles", 65_800)
    for index in (0, 65_535, 65_536, 65_799):
        assert merkle.inclusion_proof(index, 65_800, tiles.hash_at) == journal.inclusion(index, 65_800)
    text = proof_text(65_535, journal.inclusion(65_535, 65_800), journal.checkpoint())
    assert open_proof(text, journal.record(65_535).leaf, LOG.verifier).index == 65_535
    assert verify_folder(tmp_path / "tiles", LOG.verifier)[1] == []


def test_full_tiles_are_never_written_again_and_partial_ones_go_when_they_are_full(
    journal: Journal, tmp_path: Path
) -> None:
    folder = tmp_path / "tiles"
    grow(journal, 300)
    publish(journal, folder, entries=True)
    first = {path: path.stat().st_mtime_ns for path in folder.rglob("000")}
    assert len(first) == 2
    assert (folder / "tile/0/001.p/44").is_file()
    grow(journal, 520)
    done = publish(journal, folder, entries=True)
    assert {path: path.stat().st_mtime_ns for path in first} == first
    assert not (folder / "tile/0/001.p").exists()
    assert (done.size, done.pruned) == (520, 2)
    assert (folder / "tile/1/000.p/1").is_file(), "the old checkpoint still needs it: level 1 is not full"
    again = publish(journal, folder, entries=True)
    assert (again.written, again.pruned) == (0, 0)


def test_step_by_step_or_at_once_gives_the_same_full_tiles_and_the_same_edge(
    journal: Journal, tmp_path: Path
) -> None:
    choose = random.Random(7)
    size = 0
    while size < 1600:
        size += choose.randrange(1, 200)
        grow(journal, size)
        publish(journal, tmp_path / "steps", entries=True)
    publish(journal, tmp_path / "once", entries=True)
    steps, once = files(tmp_path / "steps"), files(tmp_path / "once")
    assert {name: steps[name] for name in once} == once
    assert verify_folder(tmp_path / "steps", LOG.verifier)[1] == []


def test_entries_can_be_asked_for_later(journal: Journal, tmp_path: Path) -> None:
    folder = tmp_path / "tiles"
    grow(journal, 600)
    publish(journal, folder, entries=False)
    assert not TileFolder(folder, 600).has_entries
    publish(journal, folder, entries=True)
    grow(journal, 900)
    publish(journal, folder, entries=False)
    publish(journal, folder, entries=True)
    assert [TileFolder(folder, 900).entry(n) for n in (0, 599, 899)] == [
        journal.record(n).leaf for n in (0, 599, 899)
    ]


@pytest.mark.parametrize("died_after", range(10))
def test_a_publishing_cut_off_anywhere_leaves_the_old_log_whole_and_is_finished_by_the_next(
    journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, died_after: int
) -> None:
    folder = tmp_path / "tiles"
    grow(journal, 300)
    publish(journal, folder, entries=True)
    grow(journal, 1100)
    writes = 0

    def dying(path: Path, data: bytes) -> None:
        nonlocal writes
        if writes == died_after:
            raise StoreError("the disk is full")
        writes += 1
        write_file(path, data)

    write_file = publishing.write_file
    monkeypatch.setattr(publishing, "write_file", dying)
    with pytest.raises(StoreError, match="full"):
        publish(journal, folder, entries=True)
    checkpoint, problems = verify_folder(folder, LOG.verifier)
    assert checkpoint is not None and (checkpoint.size, problems) == (300, [])
    monkeypatch.undo()
    publish(journal, folder, entries=True)
    checkpoint, problems = verify_folder(folder, LOG.verifier)
    assert checkpoint is not None and (checkpoint.size, problems) == (1100, [])
    publish(journal, tmp_path / "clean", entries=True)
    clean, found = files(tmp_path / "clean"), files(folder)
    assert {name: found.get(name) for name in clean} == clean


def test_a_checkpoint_with_cosignatures_is_published_and_not_replaced_by_one_without(
    journal: Journal, tmp_path: Path
) -> None:
    grow(journal, 3)
    cosigned = journal.checkpoint() + "— w1 AAAAAAAA\n".encode()
    publish(journal, tmp_path / "tiles", entries=False, checkpoint=cosigned)
    assert published(tmp_path / "tiles") == cosigned
    publish(journal, tmp_path / "tiles", entries=False)
    assert published(tmp_path / "tiles") == cosigned


def test_a_folder_of_another_journal_is_left_alone(journal: Journal, tmp_path: Path) -> None:
    folder = tmp_path / "tiles"
    grow(journal, 300)
    publish(journal, folder, entries=True)
    before = files(folder)
    with Elsewhere(tmp_path / "shorter") as shorter:
        grow(shorter, 10)
        with pytest.raises(StoreError, match="holds 300 records"):
            publish(shorter, folder, entries=True)
    with Elsewhere(tmp_path / "other", Signer("other", b"\x09" * 32)) as other:
        grow(other, 400)
        with pytest.raises(StoreError, match="publish into another folder"):
            publish(other, folder, entries=True)
    with Elsewhere(tmp_path / "forked") as forked:
        forked.append([fact(Kind.TRANSFER, 1, n=-1)])
        grow(forked, 400)
        with pytest.raises(StoreError, match="does not extend what"):
            publish(forked, folder, entries=True)
    assert files(folder) == before


def test_a_fork_within_the_last_partial_tile_is_seen(journal: Journal, tmp_path: Path) -> None:
    folder = tmp_path / "tiles"
    grow(journal, 10)
    publish(journal, folder, entries=False)
    with Elsewhere(tmp_path / "forked") as forked:
        forked.append([fact(Kind.TRANSFER, 1, n=-1)])
        grow(forked, 20)
        with pytest.raises(StoreError, match="does not extend what"):
            publish(forked, folder, entries=False)
    checkpoint = Checkpoint.open(published(folder) or b"", LOG.verifier)
    assert checkpoint.size == 10


def test_a_tile_that_is_in_the_way_and_another_one_stops_the_publishing(
    journal: Journal, tmp_path: Path
) -> None:
    folder = tmp_path / "tiles"
    grow(journal, 300)
    publish(journal, folder, entries=True)
    grow(journal, 600)
    (folder / "tile/entries/001").write_bytes(b"not ours")
    with pytest.raises(StoreError, match="entries/001 is not what the journal"):
        publish(journal, folder, entries=True)
    checkpoint = Checkpoint.open(published(folder) or b"", LOG.verifier)
    assert checkpoint.size == 300


def test_a_broken_edge_is_not_built_upon(journal: Journal, tmp_path: Path) -> None:
    folder = tmp_path / "tiles"
    grow(journal, 600)
    publish(journal, folder, entries=False)
    edge = folder / "tile/1/000.p/2"
    edge.write_bytes(b"\x00" * 64)
    grow(journal, 800)
    with pytest.raises(StoreError, match="then publish into an empty folder"):
        publish(journal, folder, entries=False)
    assert Checkpoint.open(published(folder) or b"", LOG.verifier).size == 600


class Elsewhere:
    """A second journal, for as long as the block lasts."""

    def __init__(self, home: Path, signer: Signer = LOG) -> None:
        self._journal = Journal.open(home, signer=signer, clock=FixedClock())

    def __enter__(self) -> Journal:
        return self._journal

    def __exit__(self, *_: object) -> None:
        self._journal.close()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("tile/0/000", "does not follow"),
        ("tile/0/002.p/88", "do not give the root|is not the one hashed"),
        ("tile/1/000.p/2", "does not follow"),
        ("tile/entries/001", "entry 256 in tile/entries/001 is not the one hashed"),
        ("tile/entries/002.p/88", "entry 512 in"),
    ],
)
def test_a_changed_file_is_named(journal: Journal, tmp_path: Path, name: str, said: str) -> None:
    folder = tmp_path / "tiles"
    grow(journal, 600)
    publish(journal, folder, entries=name.startswith("tile/entries"))
    data = bytearray((folder / name).read_bytes())
    data[2] ^= 1
    (folder / name).write_bytes(bytes(data))
    _, problems = verify_folder(folder, LOG.verifier)
    assert problems
    assert re.search(said, problems[0])


@pytest.mark.parametrize("how", ["missing", "truncated"])
@pytest.mark.parametrize("name", ["tile/0/001", "tile/1/000.p/2", "tile/entries/000"])
def test_a_missing_or_truncated_file_is_named(journal: Journal, tmp_path: Path, name: str, how: str) -> None:
    folder = tmp_path / "tiles"
    grow(journal, 600)
    publish(journal, folder, entries=True)
    if how == "missing":
        (folder / name).unlink()
    else:
        os.truncate(folder / name, 5)
    _, problems = verify_folder(folder, LOG.verifier)
    assert name.removesuffix(".p/2") in problems[0] and "again" in problems[0]


def test_a_checkpoint_of_another_key_is_not_believed(journal: Journal, tmp_path: Path) -> None:
    grow(journal, 3)
    publish(journal, tmp_path / "tiles", entries=False)
    checkpoint, problems = verify_folder(tmp_path / "tiles", Signer(LOG.name, b"\x09" * 32).verifier)
    assert checkpoint is None and "cannot be trusted" in problems[0]
    assert verify_folder(tmp_path, LOG.verifier)[0] is None


def test_a_journal_with_nothing_signed_publishes_nothing(tmp_path: Path, journal: Journal) -> None:
    with pytest.raises(StoreError, match="cannot be published"):
        publish(journal, tmp_path / "tiles", entries=False, checkpoint=b"")
