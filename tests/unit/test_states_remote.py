"""Model states in a bucket of a real server, and at other URLs: as in a folder, and when the network fails."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from commons.errors import StoreError
from commons.names import Digest
from commons.states import Blob, StateStore, remote
from tests.support.buckets import Buckets, serving

LARGE = (5 << 20) // 4 * 7
"""Elements of a slice of 35 MiB: uploaded in parts, read in ranges."""


@pytest.fixture(scope="module")
def server() -> Iterator[Buckets]:
    with serving() as buckets:
        yield buckets


@pytest.fixture
def buckets(server: Buckets, monkeypatch: pytest.MonkeyPatch) -> Buckets:
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(remote, "RETRY_S", 1.0)
    server.relay.up()
    return server


@pytest.fixture
def url(buckets: Buckets, request: pytest.FixtureRequest) -> str:
    number = sum(request.node.name.encode()) * 1000 + len(request.node.name)
    return buckets.create(f"test-{number}") + "/some/prefix"


def tensors(bias: float = 0.0) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(2)
    return {
        f"slice.{n}": draw.standard_normal((n + 1, 30)).astype(np.float32) + np.float32(bias)
        for n in range(9)
    }


def large() -> np.ndarray:
    return np.random.default_rng(4).standard_normal(LARGE).astype(np.float32)


def blobs(buckets: Buckets, url: str) -> set[str]:
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    inside = f"{prefix}/blobs/"
    return {key.removeprefix(inside) for key in buckets.keys(bucket) if key.startswith(inside)}


def empty(folder: Path) -> bool:
    return not folder.exists() or not list(folder.iterdir())


@pytest.mark.parametrize("kind", ["s3", "memory", "file"])
def test_a_state_is_the_same_wherever_it_lies(url: str, kind: str, tmp_path: Path) -> None:
    where = {"s3": url, "memory": f"memory://{tmp_path}", "file": f"file://{tmp_path}/far"}[kind]
    here, there = StateStore(tmp_path / "here"), StateStore(where, drafts=tmp_path / "drafts")
    state = here.save(tensors())
    assert there.missing(state) == [state]
    assert there.save(tensors()) == state == there.save(tensors())
    again = StateStore(where)
    assert again.missing(state) == [] and again.read(state) == here.read(state)
    assert all(np.array_equal(again.load(state)[name], tensor) for name, tensor in tensors().items())
    digests = [blob.digest for blob in here.manifest(state).values()]
    for offset in (0, 100, 5000):
        assert list(again.stream(digests, offset, 700)) == list(here.stream(digests, offset, 700))
    other = again.save(tensors(1.0))
    assert again.prune([other]) == here.prune([]) == 10
    assert not again.has(state) and not StateStore(where).has(state)
    file = tmp_path / "file"
    file.write_bytes(here.read(here.put(b"whole")))
    again.adopt(file, here.put(b"whole"))
    assert again.read(here.put(b"whole")) == b"whole" and not file.exists()
    assert len(there.load(other)) == 9
    assert empty(tmp_path / "drafts")


def test_a_large_slice_goes_up_in_parts_and_comes_in_ranges(
    buckets: Buckets, url: str, tmp_path: Path
) -> None:
    store, tensor = StateStore(url, drafts=tmp_path), large()
    with store.writer() as writer:
        part = writer.slice("x", tensor.shape)
        for start in range(0, LARGE, 1 << 18):
            part.write(tensor[start : start + (1 << 18)])
        blob = part.close()
        writer.finish()
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    key = f"{prefix}/blobs/{blob.digest.removeprefix('blake3:')}"
    assert buckets.client().head_object(Bucket=bucket, Key=key)["ETag"].endswith('-5"')
    got = np.empty(LARGE, np.float32)
    with store.open(blob) as reader:
        for start in range(0, LARGE, 100_003):
            reader.read_into(start, got[start : start + 100_003])
    assert np.array_equal(got, tensor)
    with store.open(blob) as reader:
        reader.read_into(LARGE - 9, got[:9])
        reader.read_into(5, got[9:14])
    assert np.array_equal(got[:14], np.concatenate([tensor[-9:], tensor[5:10]]))
    assert b"".join(store.stream([blob.digest] * 2, 3, 1 << 20)) == (tensor.tobytes() * 2)[3:]


def test_what_was_read_ahead_is_bounded_for_all_readers_together(url: str) -> None:
    store, tensor = StateStore(url), large()
    blob = store.manifest(store.save({"x": tensor}))["x"]
    readers = [store.open(blob) for _ in range(9)]
    got = np.empty(10, np.float32)
    for reader in readers:
        reader.read_into(0, got)
    place = store._place
    assert isinstance(place, remote.Bucket)
    assert not place.ahead.acquire(blocking=False)
    for reader in readers:
        reader.close()
    for _ in range(remote.AHEAD_IN_ALL):
        assert place.ahead.acquire(timeout=30)
    assert not place.ahead.acquire(blocking=False)


def test_a_blob_changed_cut_or_lost_in_the_bucket_is_named(buckets: Buckets, url: str) -> None:
    store = StateStore(url)
    slices = store.manifest(store.save(tensors()))
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    client = buckets.client()

    def key(blob: Blob) -> str:
        return f"{prefix}/blobs/{blob.digest.removeprefix('blake3:')}"

    changed, cut, lost = (slices[f"slice.{n}"] for n in range(3))
    client.put_object(Bucket=bucket, Key=key(changed), Body=b"\1" * changed.bytes)
    client.put_object(Bucket=bucket, Key=key(cut), Body=b"\1" * (cut.bytes - 4))
    client.delete_object(Bucket=bucket, Key=key(lost))
    for reading in (store, StateStore(url)):
        with pytest.raises(StoreError, match=f"blob {changed.digest} in {url} is damaged: its digest is"):
            reading.tensor(changed)
        with pytest.raises(StoreError, match=f"blob {cut.digest} .* is damaged: it (has|ends after) "):
            reading.tensor(cut)
        with pytest.raises(StoreError, match=f"blob {lost.digest} cannot be read: .* is not there"):
            reading.tensor(lost)
        assert not reading.has(lost.digest)
        assert reading.missing(store.save({"y": np.ones(1, np.float32)})) == []
    with pytest.raises(StoreError, match="is not there"):
        list(store.stream([lost.digest], 0, 100))


def test_two_stores_share_a_bucket(url: str) -> None:
    one, two = StateStore(url), StateStore(url)
    state = one.save(tensors())
    assert two.missing(state) == [] and two.save(tensors()) == state
    assert len(two.load(state)) == 9


def test_a_server_killed_while_a_slice_goes_up_costs_that_state_alone(tmp_path: Path) -> None:
    with serving() as buckets, pytest.MonkeyPatch.context() as patch:
        for name, value in buckets.environment.items():
            patch.setenv(name, value)
        patch.setattr(remote, "RETRY_S", 1.0)
        store = StateStore(buckets.create("killed"), drafts=tmp_path / "drafts")
        small = {"small": np.ones(3, np.float32)}
        store.save(small)
        buckets.relay.after(10 << 20, buckets.kill)
        with pytest.raises(StoreError, match=r"cannot reach s3://killed .*saved states are intact"):
            store.save({"x": large()})
        assert empty(tmp_path / "drafts")
        buckets.start()
        buckets.create("killed")
        with store.writer() as writer:
            writer.add("x", large())
            state = writer.finish()
        assert np.array_equal(StateStore("s3://killed").load(state)["x"], large())


def test_a_network_lost_while_a_slice_goes_up_leaves_earlier_states_and_nothing_half(
    buckets: Buckets, url: str, tmp_path: Path
) -> None:
    store = StateStore(url, drafts=tmp_path / "drafts")
    before = store.save(tensors())
    there = blobs(buckets, url)
    buckets.relay.after(20 << 20, buckets.relay.down)
    with pytest.raises(StoreError, match=f"cannot reach {url}"):
        store.save({"x": large()})
    assert blobs(buckets, url) == there and empty(tmp_path / "drafts")
    buckets.relay.up()
    assert len(store.load(before)) == 9
    state = store.save({"x": large()})
    assert np.array_equal(StateStore(url).load(state)["x"], large())


def test_a_network_that_comes_back_in_time_costs_nothing(
    buckets: Buckets, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "RETRY_S", 60.0)
    store, relay = StateStore(url), buckets.relay
    relay.after(20 << 20, relay.down)

    def heal() -> None:
        while relay.refused < 12:  # more than one upload tries by itself
            threading.Event().wait(0.01)
        relay.up()

    healing = threading.Thread(target=heal)
    healing.start()
    state = store.save({"x": large()})
    healing.join()
    assert np.array_equal(store.load(state)["x"], large())


def test_a_store_that_is_closed_waits_for_no_network(
    buckets: Buckets, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "RETRY_S", 3600.0)
    store = StateStore(url)
    buckets.relay.down()
    failed: list[StoreError] = []

    def save() -> None:
        try:
            store.save(tensors())
        except StoreError as error:
            failed.append(error)

    saving = threading.Thread(target=save, daemon=True)
    saving.start()
    while not buckets.relay.refused:
        threading.Event().wait(0.01)
    store.close()
    saving.join(60)
    assert [str(error).partition(" (")[0] for error in failed] == [f"cannot reach {url}"]


def test_a_bucket_that_does_not_exist_is_named_at_once(
    buckets: Buckets, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "RETRY_S", 3600.0)
    with pytest.raises(StoreError, match="s3://nowhere/x does not exist; the operator creates the bucket"):
        StateStore("s3://nowhere/x")
    assert "nowhere" not in {found["Name"] for found in buckets.client().list_buckets()["Buckets"]}


def test_wrong_credentials_are_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "RETRY_S", 3600.0)
    with serving(INITIAL_NO_AUTH_ACTION_COUNT="1") as strict:
        url = strict.create("strict")
        for name, value in strict.environment.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(StoreError, match=f"{url} refuses the coordinator .* gives it credentials"):
            StateStore(url)


def test_no_credentials_are_named_at_once(buckets: Buckets, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "RETRY_S", 3600.0)
    url = buckets.create("unsigned")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(StoreError, match=f"{url} refuses the coordinator .*AWS_ACCESS_KEY_ID"):
        StateStore(url)


def test_a_missing_package_and_an_unknown_protocol_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from fsspec.registry import _registry

    monkeypatch.setitem(sys.modules, "s3fs", None)
    for name in ("s3", "s3a"):
        monkeypatch.delitem(_registry, name, raising=False)
    with pytest.raises(StoreError, match=r"for S3: pip install 'hansa\[s3\]'"):
        StateStore("s3://bucket")
    with pytest.raises(StoreError, match="nix://bucket is no place for model states"):
        StateStore("nix://bucket")


@pytest.mark.parametrize("text", ["", "blake3:12", "../../etc/passwd"])
def test_no_text_but_a_digest_becomes_a_key(text: str) -> None:
    store = StateStore("memory://digests")
    with pytest.raises(ValueError, match="not a digest"):
        store.has(Digest(text))


def test_a_folder_whose_blobs_are_copied_to_a_bucket_has_moved(
    buckets: Buckets, url: str, tmp_path: Path
) -> None:
    here = StateStore(tmp_path)
    state = here.save(tensors())
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    for file in (tmp_path / "blobs").iterdir():
        buckets.client().put_object(Bucket=bucket, Key=f"{prefix}/blobs/{file.name}", Body=file.read_bytes())
    there = StateStore(url)
    assert there.missing(state) == [] and there.manifest(state) == here.manifest(state)
    assert len(there.load(state)) == 9 and there.save(tensors()) == state
