"""Steps: a slice is built from the one before it and an encoded difference, or not at all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from commons.codec import FRAME, decode, encode
from commons.errors import StoreError
from commons.names import Digest
from commons.states import Blob, StateStore, Step, manifest_bytes, read_manifest

SHAPE = (3, FRAME // 2 + 5)
"""Two frames, the second not full."""


@pytest.fixture
def origin(tmp_path: Path) -> StateStore:
    return StateStore(tmp_path / "origin")


@pytest.fixture
def cache(tmp_path: Path) -> StateStore:
    return StateStore(tmp_path / "cache", durable=False)


def stepped(store: StateStore, *, bias: float = 0) -> tuple[Digest, Digest]:
    """A state, and the next one: slice ``w`` moved by a step (the slice off by `bias`), slice ``kept`` as it was."""
    random = np.random.default_rng(5)
    before = random.standard_normal(SHAPE).astype(np.float32)
    frames = encode("int8", 0.01 * random.standard_normal(SHAPE).astype(np.float32))
    old = store.save({"w": before, "kept": np.ones(7, np.float32)})
    slices = store.manifest(old)
    with store.writer() as writer:
        encoded = writer.frames()
        encoded.write(frames)
        step = Step(slices["w"].digest, "int8", encoded.close(), len(frames))
        new = writer.slice("w", SHAPE)
        new.write(before + decode("int8", frames, SHAPE) + np.float32(bias))
        new.close(step)
        writer.keep("kept", slices["kept"])
        return old, writer.finish()


def bring(origin: StateStore, cache: StateStore, state: Digest) -> list[Digest]:
    brought = []
    while missing := cache.missing(state):
        for digest in missing:
            cache.put(origin.read(digest))
        brought += missing
    return brought


def test_who_has_the_base_fetches_the_step_and_has_the_same_bits(
    origin: StateStore, cache: StateStore
) -> None:
    old, new = stepped(origin)
    bring(origin, cache, old)
    slice_ = origin.manifest(new)["w"]
    assert slice_.step is not None
    assert bring(origin, cache, new) == [new, slice_.step.digest]
    loaded, right = cache.load(new), origin.load(new)
    assert all(np.array_equal(loaded[name].view(np.uint32), right[name].view(np.uint32)) for name in right)
    assert cache.has(slice_.digest) and cache.missing(new) == []


def test_who_lacks_the_base_or_wants_no_steps_fetches_the_slice(
    origin: StateStore, cache: StateStore
) -> None:
    old, new = stepped(origin)
    slices = origin.manifest(new).values()
    assert set(cache.lacking(slices)) == {blob.digest for blob in slices}
    bring(origin, cache, old)
    blob = origin.manifest(new)["w"]
    assert cache.lacking(slices, steps=False) == {blob.digest: blob.bytes}


def test_a_step_to_something_else_leaves_nothing(origin: StateStore, cache: StateStore) -> None:
    old, new = stepped(origin, bias=2**-6)
    bring(origin, cache, old)
    bring(origin, cache, new)
    blob, files = origin.manifest(new)["w"], sorted(cache.root.rglob("*"))
    with pytest.raises(StoreError, match=f"computed as blob {blob.digest}"):
        cache.advance(blob)
    assert sorted(cache.root.rglob("*")) == files and not cache.has(blob.digest)


@pytest.mark.parametrize("which", ["base", "digest"])
def test_a_damaged_base_or_step_is_found_dropped_and_fetched_again(
    origin: StateStore, cache: StateStore, which: str
) -> None:
    old, new = stepped(origin)
    bring(origin, cache, old)
    bring(origin, cache, new)
    blob = origin.manifest(new)["w"]
    damaged: Digest = getattr(blob.step, which)
    with cache.path(damaged).open("r+b") as file:
        file.seek(-5, 2)
        file.write(b"x")
    again = StateStore(cache.root, durable=False)
    with pytest.raises(StoreError, match=f"blob {damaged} .* is damaged"):
        again.advance(blob)
    assert not again.has(blob.digest) and not again.has(damaged)
    assert not list((cache.root / "drafts").iterdir())
    bring(origin, again, new)
    assert np.array_equal(again.load(new)["w"], origin.load(new)["w"])


def test_frames_that_no_encoder_writes_are_no_step(origin: StateStore, cache: StateStore) -> None:
    old, new = stepped(origin)
    bring(origin, cache, old)
    blob = origin.manifest(new)["w"]
    assert blob.step is not None
    forged = replace(blob, step=replace(blob.step, digest=cache.put(b"\x80" * blob.step.bytes)))
    with pytest.raises(StoreError, match=f"the step to blob {blob.digest} cannot be read"):
        cache.advance(forged)


def test_pruning_keeps_the_steps_of_kept_states_and_no_others(origin: StateStore) -> None:
    old, new = stepped(origin)
    blob = origin.manifest(new)["w"]
    assert blob.step is not None
    origin.prune([new])
    assert origin.has(blob.step.digest) and not origin.has(blob.step.base) and not origin.has(old)
    last = origin.save({"z": np.ones(2, np.float32)})
    origin.prune([last])
    assert not origin.has(blob.step.digest)


def test_pruning_keeps_the_base_of_a_slice_that_is_still_to_be_built(
    origin: StateStore, cache: StateStore
) -> None:
    old, new = stepped(origin)
    bring(origin, cache, old)
    cache.put(origin.read(new))
    cache.prune([new])
    bring(origin, cache, new)
    assert cache.load(new).keys() == origin.load(new).keys()
    cache.prune([new])
    assert not cache.has(old)


def test_a_kept_slice_keeps_its_step(origin: StateStore) -> None:
    _, new = stepped(origin)
    with origin.writer() as writer:
        for name, blob in origin.manifest(new).items():
            writer.keep(name, blob)
        assert writer.finish() == new


def test_a_step_whose_frames_are_nowhere_makes_no_state(origin: StateStore) -> None:
    _, new = stepped(origin)
    blob = origin.manifest(new)["w"]
    assert blob.step is not None
    with (
        origin.writer() as writer,
        pytest.raises(StoreError, match=r"slice w: blob blake3:0+ is not in"),
    ):
        writer.keep("w", replace(blob, step=replace(blob.step, digest=Digest("blake3:" + "0" * 64))))
        writer.finish()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"bytes": 4}, "has 4 bytes, int8 has"),
        ({"codec": "int3"}, "has no codec"),
        ({"base": "sha256:1"}, "has no digest"),
        ({"digest": ""}, "not one in canonical form"),
    ],
)
def test_a_manifest_with_a_step_that_cannot_be_is_refused(change: dict[str, object], why: str) -> None:
    name = Digest("blake3:" + "0" * 64)
    whole = Blob(name, (3,), 12, Step(name, "int8", name, 7))
    assert read_manifest(manifest_bytes({"a": whole}))["a"] == whole
    assert whole.step is not None
    wrong = replace(whole, step=replace(whole.step, **change))  # type: ignore[arg-type]
    with pytest.raises(StoreError, match=why):
        read_manifest(manifest_bytes({"a": wrong}))
