"""Model states: content-addressed, whole or absent, and checked when read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from blake3 import blake3

from commons.errors import StoreError
from commons.names import Digest
from commons.states import Blob, StateStore, read_manifest
from commons.states.drafts import Draft
from commons.updates import UpdateManifest, lay_out


def tensors(bias: float = 0.0) -> dict[str, np.ndarray]:
    return {
        "b.weight": np.arange(6, dtype=np.float32).reshape(2, 3) + np.float32(bias),
        "a.weight": np.full((4,), 0.5, np.float32),
    }


@pytest.fixture
def store(tmp_path: Path) -> StateStore:
    return StateStore(tmp_path / "states")


def test_a_saved_state_comes_back_bit_for_bit_under_the_digest_of_its_manifest(store: StateStore) -> None:
    state = store.save(tensors())
    loaded = store.load(state)
    assert list(loaded) == ["a.weight", "b.weight"]
    assert all(np.array_equal(loaded[name], tensor) for name, tensor in tensors().items())
    assert state == "blake3:" + blake3(store.path(state).read_bytes()).hexdigest()
    loaded["a.weight"][0] = 9


def test_the_order_and_memory_layout_of_tensors_do_not_change_a_state(store: StateStore) -> None:
    turned = {n: np.asfortranarray(t) for n, t in reversed(list(tensors().items()))}
    assert store.save(tensors()) == store.save(turned) == store.save(iter(turned.items()))


def test_slices_that_two_states_share_are_kept_once_and_fetched_once(
    store: StateStore, tmp_path: Path
) -> None:
    one, two = store.save(tensors()), store.save(tensors(1.0))
    assert len(list((store.root / "blobs").iterdir())) == 5
    cache = StateStore(tmp_path / "cache")
    assert cache.missing(one) == [one]
    for state in (one, two):
        cache.put(store.read(state))
        for digest in cache.missing(state):
            cache.put(store.read(digest))
    assert cache.missing(two) == []
    assert np.array_equal(cache.load(two)["b.weight"], tensors(1.0)["b.weight"])


def test_a_damaged_or_missing_blob_is_named_when_it_is_read(store: StateStore) -> None:
    state = store.save(tensors())
    blob = store.manifest(state)["a.weight"]
    store.path(blob.digest).write_bytes(b"\0" * blob.bytes)
    with pytest.raises(StoreError, match="is damaged"):
        store.load(state)
    store.path(blob.digest).unlink()
    with pytest.raises(StoreError, match="cannot be read"):
        store.load(state)


def test_a_full_disk_leaves_no_half_state_and_earlier_ones_intact(
    store: StateStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = store.save(tensors())
    files = sorted(store.root.rglob("*"))

    def full(self: Draft, data: memoryview) -> None:
        if len(data) == 16:
            raise OSError(28, "No space left on device")
        real(self, data)

    real = Draft.append
    monkeypatch.setattr(Draft, "append", full)
    with pytest.raises(StoreError, match="No space left on device; earlier states are intact"):
        store.save({"x": np.ones(3, np.float32), "y": np.ones(4, np.float32)})
    assert sorted(store.root.rglob("*")) == files
    assert len(store.load(before)) == 2


def test_pruning_keeps_exactly_what_the_named_states_use(store: StateStore) -> None:
    one, two = store.save(tensors()), store.save(tensors(1.0))
    assert store.prune([two]) == 2
    assert not store.has(one) and len(store.load(two)) == 2


def test_a_writer_takes_over_slices_of_another_state_without_reading_them(store: StateStore) -> None:
    base = store.save(tensors())
    with store.writer() as writer:
        for name, blob in store.manifest(base).items():
            writer.keep(name, blob)
        assert writer.finish() == base


def test_a_file_is_adopted_only_under_its_own_digest(store: StateStore, tmp_path: Path) -> None:
    file = tmp_path / "part"
    file.write_bytes(b"four")
    with pytest.raises(StoreError, match="fetch it again"):
        store.adopt(file, Digest("blake3:" + "0" * 64))
    file.write_bytes(b"four")
    digest = Digest("blake3:" + blake3(b"four").hexdigest())
    store.adopt(file, digest)
    assert store.read(digest) == b"four" and not file.exists()


@pytest.mark.parametrize("text", ["", "blake3:12", "../../etc/passwd", "blake3:" + "A" * 64])
def test_no_text_but_a_digest_becomes_a_path(store: StateStore, text: str) -> None:
    with pytest.raises(ValueError, match="not a digest of a blob"):
        store.path(Digest(text))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{}",
        b'{"slices":{"a":{"bytes":4,"digest":"blake3:00","shape":[1]}}}',
        b'{"slices":{"a":{"bytes":5,"digest":"blake3:' + b"0" * 64 + b'","shape":[1]}}}',
        b'{"slices":{"a":{"bytes":4,"digest":"blake3:' + b"0" * 64 + b'","shape":[-1]}}}',
        b'{"slices": {"a":{"bytes":4,"digest":"blake3:' + b"0" * 64 + b'","shape":[1]}}}',
    ],
)
def test_what_is_no_manifest_in_canonical_form_is_refused(data: bytes) -> None:
    with pytest.raises(StoreError, match="not the manifest"):
        read_manifest(data)


def test_a_manifest_names_digest_shape_and_bytes_of_each_slice() -> None:
    data = b'{"slices":{"a":{"bytes":4,"digest":"blake3:' + b"0" * 64 + b'","shape":[1]}}}'
    assert read_manifest(data) == {"a": Blob(Digest("blake3:" + "0" * 64), (1,), 4)}


def test_an_update_is_laid_out_in_name_order_without_gaps() -> None:
    manifest, payload = lay_out([("b", "fp32", (2,), b"12345678"), ("a", "bf16", (1,), b"ab")])
    assert payload == b"ab12345678"
    assert [(p.name, p.offset, p.bytes) for p in manifest.parts] == [("a", 0, 2), ("b", 2, 8)]
    assert UpdateManifest.from_bytes(manifest.to_bytes()) == manifest


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ('"offset":2', '"offset":3', "starts at 3"),
        ('"payload_bytes":10', '"payload_bytes":11', "take 10 bytes"),
        ('"name":"a"', '"name":"c"', "name order"),
        ('"bf16"', '"int3"', "codec"),
        ('{"parts"', '{ "parts"', "canonical"),
    ],
)
def test_an_update_manifest_with_gaps_or_another_writing_is_refused(old: str, new: str, why: str) -> None:
    manifest, _ = lay_out([("b", "fp32", (2,), b"12345678"), ("a", "bf16", (1,), b"ab")])
    text = manifest.to_bytes().decode()
    assert old in text
    with pytest.raises(ValueError, match=why):
        UpdateManifest.from_bytes(text.replace(old, new).encode())


@pytest.mark.parametrize("cut", [1, 7, 1000, 1 << 18])
def test_a_slice_written_block_by_block_is_the_blob_of_the_whole_tensor(store: StateStore, cut: int) -> None:
    tensor = np.random.default_rng(1).standard_normal((3, 3001)).astype(np.float32)
    whole = store.save({"x": tensor})
    other = StateStore(store.root.parent / "other")
    with other.writer() as writer:
        part = writer.slice("x", tensor.shape)
        for start in range(0, tensor.size, cut):
            part.write(tensor.reshape(-1)[start : start + cut])
        blob = part.close()
        assert not other.has(blob.digest)
        assert writer.finish() == whole
    assert not list((other.root / "drafts").iterdir())
    got = np.empty(cut, np.float32)
    with other.open(blob) as reader:
        for start in range(0, tensor.size, cut):
            block = got[: tensor.size - start]
            reader.read_into(start, block)
            assert np.array_equal(block, tensor.reshape(-1)[start : start + cut])
    assert np.array_equal(other.map(blob), tensor) and not other.map(blob).flags.writeable


def test_blobs_are_streamed_one_after_another_from_any_offset(store: StateStore) -> None:
    state = store.save(tensors())
    digests = [blob.digest for blob in store.manifest(state).values()]
    whole = b"".join(store.read(digest) for digest in digests)
    for offset in (0, 5, 16, 39, 40):
        frames = list(store.stream(digests, offset, 7))
        assert b"".join(frames) == whole[offset:]
        assert [len(frame) for frame in frames[:-1]] == [7] * (len(frames) - 1)
    with pytest.raises(StoreError, match="cannot be read"):
        list(store.stream([Digest("blake3:" + "0" * 64)], 0, 7))


def test_a_state_that_was_pruned_has_no_manifest_though_it_was_read_before(store: StateStore) -> None:
    state = store.save({"a": np.ones(3, np.float32)})
    slices = store.manifest(state)
    slices.clear()
    assert list(store.manifest(state)) == ["a"], "what one caller does to it is not what the next one gets"
    store.prune([])
    with pytest.raises(StoreError):
        store.manifest(state)
