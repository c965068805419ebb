"""Model states written and read block by block: from threads and processes, in bounded memory, damaged, interrupted."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from commons.errors import StoreError
from commons.states import Blob, StateStore
from commons.states.drafts import BLOCK_BYTES, Draft
from tests.support.buckets import serving

ROOT = Path(__file__).parents[2]
shapes = st.lists(st.integers(1, 40), min_size=0, max_size=3).map(tuple)
names = st.text("abc.é", min_size=1, max_size=4)


@pytest.fixture
def store(tmp_path: Path) -> StateStore:
    return StateStore(tmp_path / "states")


def drawn(shape: tuple[int, ...], seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def one_slice(store: StateStore, megabytes: float = 3.5) -> Blob:
    return store.manifest(store.save({"x": drawn((int(megabytes * (1 << 18)),), 1)}))["x"]


def spoil(store: StateStore, blob: Blob, at: int) -> None:
    with store.path(blob.digest).open("r+b") as file:
        file.seek(at)
        file.write(b"\xff\xfe")


@settings(max_examples=60, deadline=None)
@given(
    slices=st.dictionaries(names, st.tuples(shapes, st.integers(0, 3)), min_size=1, max_size=8),
    cut=st.integers(1, 3000),
    threads=st.integers(1, 4),
    data=st.data(),
)
def test_any_cut_in_any_order_from_any_threads_is_the_state_that_is_saved_at_once(
    slices: dict[str, tuple[tuple[int, ...], int]], cut: int, threads: int, data: st.DataObject
) -> None:
    tensors = {name: drawn(shape, seed) for name, (shape, seed) in slices.items()}
    with tempfile.TemporaryDirectory() as folder:
        blockwise = StateStore(Path(folder) / "blockwise")
        with blockwise.writer() as writer, ThreadPoolExecutor(threads) as pool:

            def write(name: str) -> None:
                part, flat = writer.slice(name, tensors[name].shape), tensors[name].reshape(-1)
                for start in range(0, flat.size, cut):
                    part.write(flat[start : start + cut])
                part.close()

            list(pool.map(write, data.draw(st.permutations(sorted(tensors)))))
            state = writer.finish()
        assert state == StateStore(Path(folder) / "whole").save(tensors)
        again = StateStore(blockwise.root, durable=False)
        for name, blob in again.manifest(state).items():
            got = np.empty(tensors[name].size, np.float32)
            with again.open(blob) as reader:
                for start in data.draw(st.permutations(range(0, got.size, cut))):
                    reader.read_into(start, got[start : start + cut])
            assert np.array_equal(got.reshape(blob.shape), tensors[name])


@pytest.mark.parametrize("durable", [True, False])
def test_a_blob_damaged_anywhere_is_found_when_its_end_is_read(tmp_path: Path, durable: bool) -> None:
    made = StateStore(tmp_path)
    for at in (0, BLOCK_BYTES + 5, one_slice(made).bytes - 2):
        blob = one_slice(made)
        spoil(made, blob, at)
        store = StateStore(tmp_path, durable=durable)
        with store.open(blob) as reader, pytest.raises(StoreError, match=f"blob {blob.digest} .*is damaged"):
            reader.read_into(0, np.empty(blob.bytes // 4, np.float32))
        assert store.has(blob.digest) == durable, "a cache drops it, so that it is fetched again"
        store.path(blob.digest).unlink(missing_ok=True)


def test_who_reads_out_of_order_or_maps_a_damaged_blob_gets_nothing_of_it(store: StateStore) -> None:
    blob = one_slice(store)
    spoil(store, blob, 8)
    fresh, got = StateStore(store.root), np.zeros(5, np.float32)
    with fresh.open(blob) as reader, pytest.raises(StoreError, match="is damaged"):
        reader.read_into(1000, got)
    assert not got.any()
    with pytest.raises(StoreError, match="is damaged"):
        fresh.map(blob)
    with pytest.raises(StoreError, match="is damaged"):
        fresh.tensor(blob)


def test_a_cache_checks_a_blob_once_and_what_it_wrote_itself_never(tmp_path: Path) -> None:
    cache = StateStore(tmp_path, durable=False)
    blob = one_slice(cache)
    spoil(cache, blob, 8)
    cache.tensor(blob)
    with pytest.raises(StoreError, match="is damaged"):
        StateStore(tmp_path, durable=False).tensor(blob)
    other = StateStore(tmp_path, durable=False)
    blob = one_slice(cache)
    other.tensor(blob)
    spoil(other, blob, 8)
    other.map(blob)


def test_a_truncated_blob_is_found_before_anything_is_read(store: StateStore) -> None:
    blob = one_slice(store)
    with store.path(blob.digest).open("r+b") as file:
        file.truncate(blob.bytes - 4)
    assert not store.holds(blob.digest, blob.bytes)
    with pytest.raises(StoreError, match=f"it has {blob.bytes - 4} bytes, not {blob.bytes}"):
        store.open(blob)
    assert one_slice(store) == blob and store.tensor(blob).size == blob.bytes // 4


def test_a_blob_cut_while_it_is_read_is_found(store: StateStore) -> None:
    blob, got = one_slice(store), np.empty(10, np.float32)
    with store.open(blob) as reader:
        reader.read_into(0, got)
        with store.path(blob.digest).open("r+b") as file:
            file.truncate(64)
        with pytest.raises(StoreError, match=f"it ends after 64 bytes of {blob.bytes}"):
            reader.read_into(10, got)


def test_a_folder_in_the_place_of_a_blob_is_no_blob(store: StateStore) -> None:
    blob = one_slice(store)
    store.path(blob.digest).unlink()
    store.path(blob.digest).mkdir()
    assert not store.has(blob.digest)
    for read in (store.open, store.tensor, store.map, lambda b: store.read(b.digest)):
        with pytest.raises(StoreError, match="cannot be read: it is no file"):
            read(blob)  # type: ignore[operator]
    with pytest.raises(StoreError, match="Is a directory; earlier states are intact"):
        one_slice(store)
    store.prune([])


def test_a_disk_that_fills_up_within_a_slice_leaves_no_trace(
    store: StateStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = store.save({"y": drawn((9,), 1)})
    files, real = sorted(store.root.rglob("*")), Draft.append

    def append(self: Draft, data: memoryview) -> None:
        if self.bytes + len(data) > 3 << 20:
            raise OSError(28, "No space left on device")
        real(self, data)

    monkeypatch.setattr(Draft, "append", append)
    with pytest.raises(StoreError, match="No space left on device"), store.writer() as writer:
        part = writer.slice("x", (4, 1 << 18))
        for _ in range(4):
            part.write(drawn((1 << 18,), 2))
    assert sorted(store.root.rglob("*")) == files and len(store.load(before)) == 1


@pytest.mark.parametrize("elements", [99, 101])
def test_a_slice_of_another_size_than_was_said_is_our_own_mistake(store: StateStore, elements: int) -> None:
    with pytest.raises(AssertionError, match="elements"), store.writer() as writer:
        part = writer.slice("x", (10, 10))
        part.write(np.zeros(elements, np.float32))
        part.close()


def test_pruning_spares_what_is_being_written(store: StateStore) -> None:
    base = store.manifest(store.save({"kept": drawn((5,), 1), "same": drawn((6,), 2)}))
    with store.writer() as writer:
        writer.keep("kept", base["kept"])
        writer.add("same", drawn((6,), 2))
        begun = writer.slice("begun", (4,))
        begun.write(drawn((2,), 3))
        assert store.prune([]) == 1
        begun.write(drawn((2,), 4))
        begun.close()
        state = writer.finish()
    assert len(store.load(state)) == 3
    assert store.prune([]) == 4


def test_a_new_slice_is_written_over_one_that_was_pruned(store: StateStore) -> None:
    blob = one_slice(store)
    inode = store.path(blob.digest).stat().st_ino
    store.prune([])
    state = store.save({"x": np.zeros(blob.shape, np.float32)})
    assert store.path(store.manifest(state)["x"].digest).stat().st_ino == inode
    assert not store.load(state)["x"].any()


def test_what_somebody_still_reads_is_not_written_over(store: StateStore) -> None:
    blob = one_slice(store)
    mapped, before = store.map(blob), store.tensor(blob)
    store.prune([])
    store.save({"x": np.zeros(blob.shape, np.float32)})
    assert (mapped == before).all()


def test_pruning_twice_gives_room_back(store: StateStore) -> None:
    one_slice(store)
    store.prune([])
    store.prune([])
    assert not [file for file in store.root.rglob("*") if file.is_file()]


WRITING = """
import sys
import numpy as np
from pathlib import Path
from commons.states import StateStore

with StateStore(Path(sys.argv[1])).writer() as writer:
    begun = writer.slice("x", (1000,))
    begun.write(np.ones(500, np.float32))
    print("begun", flush=True)
    sys.stdin.readline()
    begun.write(np.ones(500, np.float32))
    begun.close()
    print(writer.finish(), flush=True)
"""


def writing(store: StateStore) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        [sys.executable, "-c", WRITING, str(store.root)], stdin=pipe, stdout=pipe, text=True, cwd=ROOT
    )
    assert process.stdout is not None and process.stdout.readline() == "begun\n"
    return process


def test_two_processes_share_a_store_and_one_prunes_while_the_other_writes(store: StateStore) -> None:
    with writing(store) as other:
        mine = store.save({"y": np.zeros(3, np.float32)})
        store.save({"z": np.zeros(4, np.float32)})
        assert store.prune([mine]) == 2
        state, _ = other.communicate("go on\n", timeout=60)
    assert np.array_equal(store.load(state.strip())["x"], np.ones(1000, np.float32))  # type: ignore[arg-type]
    assert len(store.load(mine)) == 1


def test_what_a_killed_process_had_begun_is_swept_and_nothing_else(store: StateStore) -> None:
    with writing(store) as alive, writing(store) as killed:
        killed.kill()
        killed.wait()
        assert len(list((store.root / "drafts").iterdir())) == 2
        store.prune([])
        assert len(list((store.root / "drafts").iterdir())) == 1
        state, _ = alive.communicate("go on\n", timeout=60)
        assert store.has(state.strip())  # type: ignore[arg-type]


MEASURED = """
import sys
import numpy as np
from pathlib import Path
from commons.states import StateStore

def peak_mib():
    text = Path("/proc/self/status").read_text()
    return int(text.split("VmHWM:")[1].split()[0]) / 1024

where, drafts, mib = sys.argv[1], sys.argv[2], int(sys.argv[3])
warm = StateStore(where, drafts=Path(drafts))
warm.load(warm.save({"x": np.ones(3_000_000 if "://" in where else 9, np.float32)}))
block = np.ones(1 << 18, np.float32)
before = peak_mib()
with warm.writer() as writer:
    part = writer.slice("x", (mib, 1 << 18))
    for number in range(mib):
        part.write(block * np.float32(number))
    blob = part.close()
    writer.finish()
print(peak_mib() - before)
with warm.open(blob) as reader:
    for number in range(mib):
        reader.read_into(number << 18, block)
        assert block[-1] == number
for _ in warm.stream([blob.digest], 5, 1 << 20):
    pass
if "://" not in where:
    assert warm.map(blob).shape == (mib, 1 << 18)
print(peak_mib() - before)
"""


def measured(where: str, drafts: Path, mib: int) -> list[float]:
    command = [sys.executable, "-c", MEASURED, where, str(drafts), str(mib)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return [float(line) for line in done.stdout.split()]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_a_slice_of_300_mib_takes_less_than_40_mib_of_memory(tmp_path: Path) -> None:
    assert max(measured(str(tmp_path / "states"), tmp_path / "drafts", 300)) < 40


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_a_slice_of_120_mib_in_a_bucket_takes_less_than_60_mib_of_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two parts of an upload, three ranges, and what the client's layers hold of them."""
    with serving() as buckets:
        for name, value in buckets.environment.items():
            monkeypatch.setenv(name, value)
        assert max(measured(buckets.create("large"), tmp_path / "drafts", 120)) < 60
