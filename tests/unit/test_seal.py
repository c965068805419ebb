"""From trained arrays to an update, and from an update to the outbox: what is lost in a codec comes back later."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from commons.codec import decode
from commons.errors import StoreError
from commons.experts.map import ExpertMap, Slice
from commons.learning import Codecs, Outer
from commons.names import SiteId
from commons.notes import digest, open_note
from commons.privacy.terms import DP
from commons.updates import UpdateManifest
from commons.work import AssignmentNote, UpdateNote, UsageNote
from tests.support.consortium import charter, exchange, signer
from workers import outbox as outbox_module
from workers.meter import Usage
from workers.noise import Noising
from workers.outbox import Outbox, Sealed
from workers.residual import Residual, ResidualWriter
from workers.seal import PAYLOAD, Trained, pack, sign

MAP = ExpertMap.from_charter(charter())
SITE = SiteId("alder")
SIGNER = signer("alder/alder")
Arrays = dict[str, NDArray[np.float32]]


def order(round_number: int = 1, **changes: Any) -> AssignmentNote:
    note = AssignmentNote(
        consortium="hanse",
        run="run-1",
        round=round_number,
        work="train",
        site=SITE,
        base="sha256:" + "a" * 64,
        charter_version=1,
        charter="sha256:" + "b" * 64,
        expert_map=MAP.digest,
        rounds=2,
        lease=f"lease-{round_number}",
        lease_until=1,
        hold="-",
        hold_micro=0,
    )
    return replace(note, **changes)


def trained(seed: int = 0) -> tuple[Trained, Arrays]:
    """A round's result and the base it started from."""
    random = np.random.default_rng(seed)

    def draw(parts: Iterable[Slice]) -> Arrays:
        return {p.name: random.standard_normal(p.shape).astype(np.float32) for p in parts}

    base = draw(MAP.slices)
    result = Trained(
        trunk_delta=draw(MAP.shared()),
        experts=draw(MAP.owned_by(SITE)),
        steps=4,
        tokens=128,
        loss=1.25,
        held_out_loss=None,
        gflop=1,
        usage=Usage(1_000, 2_000, 900, ("GPU-1", "GPU-2"), "bf16", 17),
    )
    return result, base


@dataclass(frozen=True)
class Packed:
    manifest: UpdateManifest
    payload: bytes
    residual: Residual


def packed(
    result: Trained,
    base: Arrays,
    residual: Residual | None = None,
    codecs: Codecs | None = None,
    noising: Noising | None = None,
    number: int = 1,
    **changes: Any,
) -> Packed:
    """`changes`: of the charter's learning."""
    folder = Path(mkdtemp())
    manifest = pack(
        result,
        base=base,
        residual=residual or Residual(None, MAP),
        exchange=exchange(MAP, number=number, codecs=codecs or Codecs(), **changes),
        site=SITE,
        folder=folder,
        noising=noising,
    )
    return Packed(manifest, (folder / PAYLOAD).read_bytes(), Residual(folder, MAP))


def decoded(update: Packed) -> Arrays:
    return {
        p.name: decode(p.codec, update.payload[p.offset : p.offset + p.bytes], p.shape)
        for p in update.manifest.parts
    }


def left_over(update: Packed) -> Arrays:
    found = {s.name: (s, update.residual.read(s.name, 0, s.size)) for s in MAP.slices}
    return {name: rest.reshape(s.shape) for name, (s, rest) in found.items() if rest is not None}


def test_an_update_holds_the_sites_slices_and_nothing_of_the_guests() -> None:
    result, base = trained()
    update = packed(result, base)
    assert [p.name for p in update.manifest.parts] == [s.name for s in MAP.uplink(SITE)]
    sent = decoded(update)
    for part in MAP.uplink(SITE):
        wanted = result.experts[part.name] - base[part.name] if part.expert else result.trunk_delta[part.name]
        assert np.array_equal(sent[part.name], wanted)
    assert not update.residual


def test_what_a_codec_drops_of_experts_comes_with_the_next_round_where_they_begin_from_the_base() -> None:
    result, base = trained()
    codecs, expert = Codecs(trunk="int8", expert="int8"), MAP.owned_by(SITE)[0]
    whole = replace(result, experts={s.name: base[s.name] + np.float32(0.3) for s in MAP.slices if s.expert})
    changes: list[tuple[dict[str, Any], bool]] = [
        ({}, False), ({"strategy": "diloco"}, True), ({"expert_outer": Outer(momentum=0.5)}, True),
    ]  # fmt: skip
    for learning, fed in changes:
        folder = Path(mkdtemp())
        pack(
            whole, base=base, residual=Residual(None, MAP), site=SITE, folder=folder,
            exchange=exchange(MAP, codecs=codecs, **learning),
        )  # fmt: skip
        assert (Residual(folder, MAP).read(expert.name, 0, expert.size) is not None) is fed


def test_trunk_and_experts_each_have_their_codec() -> None:
    update = packed(*trained(), None, Codecs(trunk="int8", expert="bf16"))
    codecs = {s.name: ("bf16" if s.expert else "int8") for s in MAP.uplink(SITE)}
    assert {p.name: p.codec for p in update.manifest.parts} == codecs


def test_what_int8_drops_in_the_trunk_is_sent_in_later_rounds() -> None:
    residual = Residual(None, MAP)
    wanted: Arrays = {s.name: np.zeros(s.shape, np.float32) for s in MAP.shared()}
    arrived = {name: array.copy() for name, array in wanted.items()}
    for number in range(8):
        result, base = trained(number)
        update = packed(result, base, residual, Codecs(trunk="int8"))
        residual, sent, rest = update.residual, decoded(update), left_over(update)
        for name in wanted:
            wanted[name] += result.trunk_delta[name]
            arrived[name] += sent[name]
    for name in wanted:
        # Without feedback the error of eight rounds would add up; with it only the last one's is open.
        assert np.allclose(arrived[name] + rest[name], wanted[name], atol=1e-5)
        assert np.max(np.abs(rest[name])) <= 5.0 / 254 + 1e-3


def test_a_lossless_codec_sends_what_a_lossy_one_left_over() -> None:
    result, base = trained()
    lossy = packed(result, base, None, Codecs(trunk="int8"))
    update = packed(result, base, lossy.residual)
    sent = decoded(update)
    for name, rest in left_over(lossy).items():
        assert np.array_equal(sent[name], result.trunk_delta[name] + rest)
    assert not update.residual


def test_a_runs_last_update_is_in_the_closing_codec_and_sends_what_is_left_over() -> None:
    codecs = Codecs(trunk="int4", expert="int4", closing="fp32")
    result, base = trained()
    before = packed(result, base, None, codecs, rounds=2)
    assert {p.codec for p in before.manifest.parts} == {"int4"}
    last = packed(result, base, before.residual, codecs, rounds=2, number=2)
    assert {p.codec for p in last.manifest.parts} == {"fp32"}
    for name, rest in left_over(before).items():
        assert np.array_equal(decoded(last)[name], result.trunk_delta[name] + rest)
    assert not last.residual


def noising(slices: str = "shared", **terms: Any) -> Noising:
    return Noising(
        terms=DP.model_validate({"clip_norm": 0.5, "noise_multiplier": 2.0, "slices": slices} | terms),
        secret=b"s" * 32,
        consortium="hanse",
        run="run-1",
        round=1,
        charter="sha256:" + "b" * 64,
        site=SITE,
    )


def deltas(result: Trained, base: Arrays) -> Arrays:
    return {
        p.name: result.experts[p.name] - base[p.name] if p.expert else result.trunk_delta[p.name]
        for p in MAP.uplink(SITE)
    }


@pytest.mark.parametrize("slices", ["shared", "all"])
def test_under_noise_what_is_covered_leaves_clipped_and_noised_and_the_rest_as_trained(slices: str) -> None:
    result, base = trained()
    how = noising(slices)
    covered = [p for p in MAP.uplink(SITE) if p.expert is None or slices == "all"]
    made = how.begin((p.name, deltas(result, base)[p.name].reshape(-1)) for p in covered)
    sent = decoded(packed(result, base, noising=how))
    for part in MAP.uplink(SITE):
        wanted = deltas(result, base)[part.name]
        if part in covered:
            wanted = made.frame(part.name, 0, wanted.reshape(-1)).reshape(part.shape)
        assert np.array_equal(sent[part.name], wanted)
    length = np.sqrt(sum(np.sum(deltas(result, base)[p.name].astype(np.float64) ** 2) for p in covered))
    assert made.norm == pytest.approx(length), "one norm over everything covered"


def test_a_noised_round_seals_to_the_same_bytes_and_another_update_to_nothing_alike() -> None:
    codecs = Codecs(trunk="int8", expert="bf16")
    first, second = (packed(*trained(), None, codecs, noising("all")) for _ in range(2))
    assert first.payload == second.payload
    names = [s.name for s in MAP.shared()]
    result, base = trained()
    nudged = dict(result.trunk_delta)
    nudged[names[0]] = np.nextafter(nudged[names[0]], np.float32(9))
    one = decoded(packed(result, base, noising=noising()))
    two = decoded(packed(replace(result, trunk_delta=nudged), base, noising=noising()))
    rest = np.concatenate([(one[n] - two[n]).reshape(-1) for n in names])
    assert rest.std() == pytest.approx(np.sqrt(2) * 2.0 * 0.5, rel=0.1), "neither has the other's noise"


def test_what_a_codec_drops_of_noised_values_is_sent_later_and_the_noise_comes_first() -> None:
    residual, codecs = Residual(None, MAP), Codecs(trunk="int8")
    wanted: Arrays = {s.name: np.zeros(s.shape, np.float32) for s in MAP.shared()}
    arrived = {name: array.copy() for name, array in wanted.items()}
    for number in range(4):
        result, base = trained(number)
        how = replace(noising(), round=number + 1)
        made = how.begin((s.name, result.trunk_delta[s.name].reshape(-1)) for s in MAP.shared())
        update = packed(result, base, residual, codecs, how)
        residual, sent, rest = update.residual, decoded(update), left_over(update)
        for part in MAP.shared():
            noised = made.frame(part.name, 0, result.trunk_delta[part.name].reshape(-1))
            wanted[part.name] += noised.reshape(part.shape)
            arrived[part.name] += sent[part.name]
    for name in wanted:
        assert np.allclose(arrived[name] + rest[name], wanted[name], atol=1e-5)


def test_what_was_left_over_without_noise_is_never_sent_under_it() -> None:
    result, base = trained()
    codecs = Codecs(trunk="int8")
    plain = packed(result, base, None, codecs)
    assert plain.residual and not plain.residual.noised
    fresh = packed(result, base, None, codecs, noising())
    assert packed(result, base, plain.residual, codecs, noising()).payload == fresh.payload
    again = packed(result, base, fresh.residual, codecs, noising())
    assert fresh.residual.noised and again.payload != fresh.payload, "what was noised is fed back"


def test_losses_are_withheld_where_updates_are_noised() -> None:
    result, base = trained()
    result = replace(result, held_out_loss=2.0)
    update = packed(result, base, noising=noising())
    note, _ = sign(order(), result, update.manifest, device="cpu", signer=SIGNER, losses=False)
    text = open_note(note, [SIGNER.verifier])
    assert "loss -\nheld-out-loss -\n" in text.text
    said = UpdateNote.from_note(text)
    assert (said.loss, said.held_out_loss) == (None, None)


def test_the_same_round_seals_to_the_same_bytes() -> None:
    first, second = (packed(*trained(), None, Codecs(trunk="int8", expert="bf16")) for _ in range(2))
    assert first.payload == second.payload
    assert first.manifest.to_bytes() == second.manifest.to_bytes()
    assert sign(order(), trained()[0], first.manifest, device="cpu", signer=SIGNER) == sign(
        order(), trained()[0], second.manifest, device="cpu", signer=SIGNER
    )


def test_the_notes_name_what_was_packed_and_what_it_took() -> None:
    result, base = trained()
    update = packed(result, base)
    note, used = sign(order(), result, update.manifest, device="cpu", signer=SIGNER)
    said = UpdateNote.from_note(open_note(note, [SIGNER.verifier]))
    assert (said.payload, said.payload_bytes) == (
        update.manifest.payload_digest,
        len(update.payload),
    )
    assert said.manifest == digest(update.manifest.to_bytes())
    assert (said.steps, said.tokens, said.loss, said.held_out_loss) == (4, 128, 1.25, None)
    usage = UsageNote.from_note(open_note(used, [SIGNER.verifier]))
    assert (usage.update, usage.lease, usage.device_ms, usage.gflop) == (said.payload, "lease-1", 900, 1)
    assert (usage.started_ms, usage.ended_ms, usage.energy_j) == (1_000, 2_000, 17)
    assert (usage.device, usage.device_ids, usage.precision) == ("cpu", "GPU-1,GPU-2", "bf16")


def keep(box: Outbox, what: AssignmentNote, *, left: float | None = None, payload: bytes = b"p") -> Sealed:
    with box.draft(what) as folder:
        (folder / PAYLOAD).write_bytes(payload)
        writer = ResidualWriter(folder, expert_map=MAP)
        if left is not None:
            writer.add("t", np.full(3, left, np.float32))
        writer.close()
        done = box.seal(what, folder, update=b"u", usage=b"s", manifest=b"m")
    done.secure()
    return done


def test_a_sealed_round_is_found_again_by_another_process(tmp_path: Path) -> None:
    keep(Outbox(tmp_path), order(3), payload=b"bytes")
    found = Outbox(tmp_path).find(order(3))
    assert found is not None
    assert (found.update, found.usage, found.manifest, found.payload.read_bytes()) == (
        b"u",
        b"s",
        b"m",
        b"bytes",
    )
    assert Outbox(tmp_path).latest() == ("run-1", 3)


@pytest.mark.parametrize("change", ["run", "base", "charter", "lease"])
def test_another_order_for_the_round_finds_nothing(tmp_path: Path, change: str) -> None:
    box = Outbox(tmp_path)
    keep(box, order())
    assert box.find(order(**dict[str, Any]({change: "other"}))) is None


def test_the_residual_is_that_of_the_round_before_even_when_a_round_is_sealed_again(tmp_path: Path) -> None:
    box = Outbox(tmp_path)
    assert not box.residual(order(1), MAP)
    keep(box, order(1), left=1)
    keep(box, order(2), left=2)
    for number, value in ((2, 1.0), (3, 2.0)):
        rest = box.residual(order(number), MAP).read("t", 0, 3)
        assert rest is not None and rest.tolist() == [value] * 3
    assert not box.residual(order(3, run="run-2"), MAP)


def test_a_residual_of_another_size_is_not_taken(tmp_path: Path) -> None:
    box = Outbox(tmp_path)
    keep(box, order(1), left=1)
    assert box.residual(order(2), MAP).read("t", 0, 4) is None
    assert box.residual(order(2), MAP).read("u", 0, 1) is None


def test_only_the_last_two_rounds_of_the_run_are_kept(tmp_path: Path) -> None:
    box = Outbox(tmp_path)
    keep(box, order(9, run="older"))
    for number in (1, 2, 3):
        keep(box, order(number))
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["run-1-000002", "run-1-000003"]


def test_what_was_dropped_of_a_slice_waits_for_its_turn() -> None:
    """Whatever codecs drop comes later, not sooner: sums of what was sent and what is left are sums of the deltas."""
    (one, base), (two, _) = trained(1), trained(2)
    how: dict[str, Any] = {"codecs": Codecs(trunk="int4"), "fragments": 2, "rounds": 9}
    turns = [exchange(MAP, number=n, fragments=2, rounds=9).uplink(SITE) for n in (1, 2)]
    first = packed(one, base, number=1, **how)
    second = packed(two, base, first.residual, number=2, **how)
    third = packed(two, base, second.residual, number=3, **how)
    for update, turn in ((first, turns[0]), (second, turns[1]), (third, turns[0])):
        assert [p.name for p in update.manifest.parts] == [s.name for s in turn]
    names = [s.name for s in turns[0] if s.expert is None]
    for name in names:
        assert np.array_equal(left_over(second)[name], left_over(first)[name])
        sums = decoded(first)[name] + decoded(third)[name] + left_over(third)[name]
        np.testing.assert_allclose(sums, one.trunk_delta[name] + two.trunk_delta[name], rtol=1e-4, atol=1e-5)


def sealed(box: Outbox, what: AssignmentNote) -> Sealed:
    """A round as a site seals it, not yet secured."""
    result, base = trained()
    with box.draft(what) as folder:
        manifest = pack(
            result, base=base, residual=Residual(None, MAP), site=SITE, folder=folder,
            exchange=exchange(MAP, codecs=Codecs(trunk="int8")),
        )  # fmt: skip
        update, usage = sign(what, result, manifest, device="cpu", signer=SIGNER)
        return box.seal(what, folder, update=update, usage=usage, manifest=manifest.to_bytes())


def test_the_payload_of_the_round_before_is_written_over_once_it_is_secured(tmp_path: Path) -> None:
    box = Outbox(tmp_path)
    first = sealed(box, order(1))
    second = sealed(box, order(2))
    assert first.payload.exists() and box.find(order(1)) is not None
    size, place = second.payload.stat().st_size, second.payload.stat().st_ino
    second.payload.write_bytes(bytes(size + 7))  # what is longer is cut
    second.secure()
    done = sealed(box, order(3))
    assert (done.payload.stat().st_ino, done.payload.stat().st_size) == (place, size)
    assert Outbox(tmp_path).find(order(3)) is not None and box.find(order(2)) is None
    assert box.residual(order(3), MAP)
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["run-1-000002", "run-1-000003"]


def test_a_round_that_was_not_secured_before_its_process_died_is_there_if_it_is_whole(tmp_path: Path) -> None:
    sealed(Outbox(tmp_path), order())
    found = Outbox(tmp_path).find(order())
    assert found is not None and found.payload.stat().st_size and Outbox(tmp_path).residual(order(2), MAP)


@pytest.mark.parametrize(
    "file", ["payload.bin", "manifest.json", "update.note", "order.json", "residual.bin"]
)
@pytest.mark.parametrize("harm", ["cut", "zeros"])
def test_a_round_that_a_power_cut_damaged_is_sealed_anew(tmp_path: Path, file: str, harm: str) -> None:
    path = sealed(Outbox(tmp_path), order()).folder / file
    content = path.read_bytes()
    path.write_bytes(content[:-1] if harm == "cut" else content[:-8] + bytes(8))
    assert Outbox(tmp_path).find(order()) is None


def test_what_was_secured_is_not_read_again_when_the_site_starts(tmp_path: Path) -> None:
    done = sealed(Outbox(tmp_path), order())
    done.secure()
    done.payload.write_bytes(b"damaged later; the coordinator would refuse it")
    assert Outbox(tmp_path).find(order()) is not None


def test_an_unfinished_seal_is_as_none(tmp_path: Path) -> None:
    draft = tmp_path / ".run-1-000001"
    draft.mkdir()
    (draft / "order.json").write_text("{")
    box = Outbox(tmp_path)
    assert (box.find(order()), box.latest(), list(tmp_path.iterdir())) == (None, ("", 0), [])


def test_a_full_disk_leaves_what_the_round_before_left_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = Outbox(tmp_path)
    keep(box, order(1), left=0.5)

    def full(path: Path, content: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", full)
        with pytest.raises(StoreError, match="No space left on device; the site's operator makes room"):
            sealed(box, order(2))
    assert box.residual(order(2), MAP).read("t", 0, 3) is not None
    assert [folder.name for folder in tmp_path.iterdir()] == ["run-1-000001"]


def test_a_disk_that_cannot_secure_a_round_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = sealed(Outbox(tmp_path), order())

    def broken(path: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(outbox_module, "sync", broken)
    with pytest.raises(StoreError, match="Input/output error; its operator checks the disk"):
        done.secure()
