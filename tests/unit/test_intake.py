"""The gate: what a site claims and sends is checked before it counts, and kept so that it can resume."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from commons.charter import Charter
from commons.codec import encode
from commons.errors import Code, Refusal
from commons.exchange import Exchange
from commons.experts.map import ExpertMap, Kind
from commons.learning import Codecs
from commons.names import Digest, Micro, RoundNumber, RunId, SiteId
from commons.notes import NoteError, digest, parse
from commons.updates import UpdateManifest, lay_out
from commons.work import UpdateNote, UsageNote, routed_text, routed_tokens
from orchestrator.intake import (
    RECORDED,
    Claim,
    Upload,
    check_claim,
    check_frame,
    check_open,
    check_usage,
    find_round,
    payload_bytes,
    read_claim,
)
from orchestrator.progress import RoundState, Runs, RunState
from orchestrator.spool import Spool
from orchestrator.usages import CLOCK_SLACK_MS, Usages
from tests.support.consortium import NAME, charter, signer

ALDER, RUN = SiteId("alder"), RunId("run-1")
D = Digest("sha256:" + "d" * 64)
OF = charter()
MAP = ExpertMap.from_charter(OF)
KEY = signer("alder/alder")
TOKENS = 4 * 2 * 16


def sent(of: Charter = OF, **changes: Any) -> tuple[Upload, bytes]:
    """A right upload of alder, but for `changes` of note fields or of `epoch`, `slices`, `value`."""
    slices = changes.get("slices", [s.name for s in MAP.uplink(ALDER)])
    value = np.float32(changes.get("value", 0.01))
    shapes = {s.name: s.shape for s in MAP.slices}
    codec = changes.get("codec", "fp32")
    manifest, payload = lay_out(
        ((n, codec, shapes[n], encode(codec, np.full(shapes[n], value))) for n in slices),
        routed=changes.get("routed", ()),
    )
    text = manifest.to_bytes()
    update: dict[str, Any] = {
        "consortium": NAME, "run": RUN, "round": 1, "site": ALDER, "base": D, "manifest": digest(text),
        "payload": manifest.payload_digest, "payload_bytes": len(payload), "steps": 4, "tokens": TOKENS,
        "loss": 2.0, "held_out_loss": None, "routed": changes.get("said", "-"),
    }  # fmt: skip
    usage: dict[str, Any] = {
        "consortium": NAME, "run": RUN, "round": 1, "site": ALDER, "lease": "lease/run-1/1/alder/1",
        "device": "cpu", "device_ids": "cpu/alder/alder", "precision": "fp32", "started_ms": 1000, "ended_ms": 2000,
        "device_ms": 900, "steps": 4, "tokens": TOKENS, "gflop": MAP.training_gflop(TOKENS), "energy_j": None,
        "update": manifest.payload_digest,
    }  # fmt: skip
    update |= {k: v for k, v in changes.items() if k in update and k != "routed"}
    usage |= {k: v for k, v in changes.items() if k in usage}
    usage |= {k.removeprefix("usage_"): v for k, v in changes.items() if k.startswith("usage_")}
    return (
        Upload(
            changes.get("epoch", 1),
            KEY.sign(UpdateNote(**update).text),
            KEY.sign(UsageNote(**usage).text),
            text,
        ),
        payload,
    )


def claimed(**changes: Any) -> Claim:
    claim = read_claim(sent(**changes)[0], ALDER, KEY.verifier)
    assert not isinstance(claim, Refusal), claim
    return claim


def claimed_text() -> str:
    """Alder's usage record, for another to sign."""
    return claimed().usage.text


def v1_text() -> str:
    """The same as sites wrote it before records named their devices."""
    lines = claimed_text().replace("hansa-usage/v2", "hansa-usage/v1").splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith(("device-ids ", "precision ", "energy-j ")))


def test_an_update_note_from_before_counts_were_in_it_is_read_and_keeps_its_digest() -> None:
    said = claimed(said="alder-0=5").update
    assert routed_tokens(said.routed) == {"alder-0": 5}
    lines = said.text.replace("hansa-update/v2", "hansa-update/v1").splitlines(keepends=True)
    text = "".join(line for line in lines if not line.startswith("routed "))
    old = UpdateNote.from_note(parse(KEY.sign(text)))
    assert (old.text, old.digest, old.routed) == (text, digest(text.encode()), "-")
    assert (old.tokens, old.manifest) == (said.tokens, said.manifest)


def test_counts_of_more_experts_than_a_note_holds_are_withheld() -> None:
    assert routed_text({"b": 2, "a": 0}) == "a=0,b=2" and routed_text({}) == "-"
    assert routed_text({f"expert-{n}": 10**6 for n in range(400)}) == "-"


def round_one(**changes: Any) -> RoundState:
    state = RoundState(
        number=RoundNumber(1), attempt=1, base=D, charter_version=1, charter=D, expert_map=D, quorum=1,
        opened_ms=0, lease_until_ms=60_000, holds={ALDER: Micro(5)}, attempts={ALDER: 1},
    )  # fmt: skip
    return replace(state, **changes)


def run_of(found: RoundState) -> RunState:
    return RunState(RUN, 2, D, None, opened_ms=0, charter_version=1, history=[found])


def usage_of(**changes: Any) -> UsageNote:
    """Alder's usage record, as journaled before for another site, run, round or time."""
    return replace(claimed().usage, **changes)


def checked(
    claim: Claim, found: RoundState | None = None, *, of: Charter = OF, before: Iterable[UsageNote] = ()
) -> Refusal | None:
    found, usages = found or round_one(), Usages()
    for usage in before:
        usages.take(usage)
    refusal = check_open(run_of(found), found, claim, epoch=1, now_ms=3000)
    return refusal or check_claim(found, claim, of, MAP, usages)


def test_a_right_update_passes_every_check() -> None:
    upload, payload = sent()
    claim = read_claim(upload, ALDER, KEY.verifier)
    assert isinstance(claim, Claim) and checked(claim) is None
    assert not any(isinstance(found, Refusal) for found in frames_checked(claim.manifest, payload))
    assert len(payload) == payload_bytes(MAP.uplink(ALDER), OF, 1)


@pytest.mark.parametrize(
    ("upload", "key", "code"),
    [
        (sent()[0], None, Code.SIGNATURE_INVALID),
        (sent()[0], signer("birch/birch").verifier, Code.NOTE_MALFORMED),
        (replace(sent()[0], update=b"hello"), KEY.verifier, Code.NOTE_MALFORMED),
        (replace(sent()[0], update=sent()[0].usage), KEY.verifier, Code.NOTE_MALFORMED),
        (sent(site="birch")[0], KEY.verifier, Code.SIGNATURE_INVALID),
        (sent(usage_round=2)[0], KEY.verifier, Code.NOTE_MALFORMED),
        (sent(usage_run="run-0")[0], KEY.verifier, Code.NOTE_MALFORMED),
        (sent(usage_consortium="other")[0], KEY.verifier, Code.NOTE_MALFORMED),
        (sent(usage_site="birch")[0], KEY.verifier, Code.SIGNATURE_INVALID),
        (replace(sent()[0], usage=signer("birch/birch").sign(claimed_text())), KEY.verifier, Code.NOTE_MALFORMED),
        (replace(sent()[0], usage=KEY.sign(v1_text())), KEY.verifier, Code.NOTE_MALFORMED),
        (replace(sent()[0], manifest=b"{}"), KEY.verifier, Code.UPDATE_MALFORMED),
        (replace(sent()[0], manifest=sent(codec="bf16")[0].manifest), KEY.verifier, Code.UPDATE_DIGEST_MISMATCH),
    ],
)  # fmt: skip
def test_a_claim_that_cannot_be_read_or_believed_is_refused(upload: Upload, key: Any, code: Code) -> None:
    claim = read_claim(upload, ALDER, key)
    assert isinstance(claim, Refusal) and claim.code is code


PARTS = charter(learning__fragments=3, learning__rounds=9)
DUE = [s.name for s in Exchange(MAP, PARTS.learning, 1).uplink(ALDER)]
OTHERS = [s.name for s in Exchange(MAP, PARTS.learning, 2).uplink(ALDER)]


@pytest.mark.parametrize(
    ("slices", "code"),
    [
        (DUE, None),
        (OTHERS, Code.EXPERT_MAP_MISMATCH),
        (DUE[1:], Code.EXPERT_MAP_MISMATCH),
        (sorted([*DUE[1:], min(OTHERS, key=len)]), Code.EXPERT_MAP_MISMATCH),
        (sorted([*DUE, OTHERS[0]]), Code.EXPERT_MAP_MISMATCH),
        ([s.name for s in MAP.uplink(ALDER)], Code.EXPERT_MAP_MISMATCH),
    ],
)
def test_an_update_holds_the_slices_that_are_due_and_no_other(slices: list[str], code: Code | None) -> None:
    refusal = checked(claimed(slices=slices), of=PARTS)
    assert (refusal.code if refusal else None) is code


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"epoch": 2}, Code.EPOCH_STALE),
        ({"lease": "lease/run-1/1/alder/2"}, Code.LEASE_EXPIRED),
        ({"lease": "lease/run-0/1/alder/1"}, Code.LEASE_EXPIRED),
        ({"consortium": "other"}, Code.UPDATE_MALFORMED),
        ({"base": "sha256:" + "e" * 64}, Code.STALE_BASE),
        ({"slices": [s.name for s in MAP.shared()]}, Code.EXPERT_MAP_MISMATCH),
        ({"slices": [s.name for s in MAP.uplink(SiteId("birch"))]}, Code.EXPERT_MAP_MISMATCH),
        ({"slices": [s.name for s in MAP.slices]}, Code.EXPERT_MAP_MISMATCH),
        ({"codec": "bf16"}, Code.UPDATE_MALFORMED),
        ({"payload_bytes": 7}, Code.UPDATE_MALFORMED),
        ({"said": "fir-0=3"}, Code.UPDATE_MALFORMED),
        ({"said": "birch-0=1,alder-0=1"}, Code.UPDATE_MALFORMED),
        ({"said": "alder-0=-1"}, Code.UPDATE_MALFORMED),
        ({"said": "alder-0"}, Code.UPDATE_MALFORMED),
        ({"said": "alder-0=" + "9" * 30}, Code.UPDATE_MALFORMED),
        ({"said": f"alder-0={TOKENS},birch-0={TOKENS},cedar-0=1"}, Code.UPDATE_MALFORMED),
        ({"usage_update": D}, Code.UPDATE_MALFORMED),
    ],
)
def test_an_update_that_is_not_what_was_ordered_is_refused(changes: dict[str, Any], code: Code) -> None:
    refusal = checked(claimed(**changes))
    assert refusal is not None and refusal.code is code
    assert "alder" in refusal.message or code is Code.EPOCH_STALE


SOVEREIGN = charter(learning__strategy="sovereign", learning__routing="lean")
COPIES = charter(learning__strategy="diloco")
OWN = {s.name for s in MAP.slices if s.expert == "alder-0"}
ROUTER = {s.name for s in MAP.slices if s.kind is Kind.ROUTER}


@pytest.mark.parametrize(
    ("of", "slices", "foreign"),
    [
        (SOVEREIGN, OWN | ROUTER, ""),
        (SOVEREIGN, OWN | {s.name for s in MAP.shared()}, "lm_head.weight"),
        (SOVEREIGN, OWN | ROUTER | {"model.norm.weight"}, "model.norm.weight"),
        (COPIES, {s.name for s in MAP.slices}, ""),
        (OF, {s.name for s in MAP.slices}, "model.layers.0.mlp.experts.1.down_proj.weight"),
    ],
)
def test_an_update_may_hold_what_the_strategy_lets_its_site_move_and_nothing_more(
    of: Charter, slices: set[str], foreign: str
) -> None:
    work = Exchange(MAP, of.learning, 1).gflop(4)
    refusal = checked(claimed(slices=sorted(slices), gflop=work), of=of)
    assert (refusal is None) is (not foreign)
    if refusal is not None:
        assert refusal.code is Code.EXPERT_MAP_MISMATCH and f" {foreign}, which" in refusal.message


COUNTING = charter(learning__balance_rate=0.01)
LEAN = charter(learning__balance_rate=0.01, learning__routing="lean")


@pytest.mark.parametrize(
    ("of", "routed", "said"),
    [
        (COUNTING, ((TOKENS, TOKENS, 0),), ""),
        (COUNTING, (), "of 0 layers, wanted are 1 of 3"),
        (COUNTING, ((TOKENS, TOKENS, 0),) * 2, "of 2 layers"),
        (COUNTING, ((TOKENS, TOKENS),), "of 3 experts each"),
        (COUNTING, ((TOKENS, TOKENS + 1, 0),), f"tokens make {2 * TOKENS}"),
        (LEAN, ((TOKENS, 0, 0),), ""),
        (LEAN, ((0, TOKENS, 0),), f"{TOKENS} of them to experts it does not hold"),
        (OF, ((TOKENS, TOKENS, 0),), "wanted are 0"),
    ],
)
def test_counts_of_routed_tokens_add_up_or_are_refused(
    of: Charter, routed: tuple[tuple[int, ...], ...], said: str
) -> None:
    refusal = checked(claimed(routed=routed), of=of)
    assert (refusal is None) is (not said)
    if refusal is not None:
        assert refusal.code is Code.UPDATE_MALFORMED and said in refusal.message


@pytest.mark.parametrize(
    ("rounds", "codec", "code"),
    [
        (1, "int8", None),
        (1, "fp32", Code.UPDATE_TOO_LARGE),
        (1, "int4", Code.UPDATE_MALFORMED),
        (2, "int4", None),
        (2, "int8", Code.UPDATE_TOO_LARGE),
    ],
)
def test_a_runs_last_round_takes_updates_in_the_closing_codec_alone(
    rounds: int, codec: str, code: Code | None
) -> None:
    """Round 1 of so many."""
    codecs = Codecs(trunk="int4", expert="int4", closing="int8")
    learning = OF.learning.model_copy(update={"rounds": rounds, "codecs": codecs})
    refusal = checked(claimed(codec=codec), of=OF.model_copy(update={"learning": learning}))
    assert (refusal and refusal.code) == code


def test_an_update_larger_than_its_slices_is_refused_before_it_is_read() -> None:
    compressed = charter(learning__codecs={"trunk": "int8", "expert": "int8"})
    refusal = checked(claimed(codec="fp32"), of=compressed)
    assert refusal is not None and refusal.code is Code.UPDATE_TOO_LARGE


PRICED = charter(
    rate_card={
        "currency": "EUR",
        "rates": (
            {"device": "cpu", "precision": "fp32", "micro_per_gflop": 3000, "peak_gflops": 100},
            {"device": "cpu", "precision": "bf16", "micro_per_gflop": 2000, "peak_gflops": 10**9},
        ),
    }
)
HOUR_MS = 3_600_000


@pytest.mark.parametrize(
    ("changes", "code", "says"),
    [
        ({"started_ms": -1}, Code.NOTE_MALFORMED, "'started_ms' is no whole number"),
        ({"started_ms": 3000}, Code.USAGE_OUTSIDE_LEASE, "from 3000 to 2000, outside its lease"),
        ({"ended_ms": 60_000 + 300_001}, Code.USAGE_OUTSIDE_LEASE, "outside its lease"),
        (
            {"started_ms": 0, "ended_ms": HOUR_MS},
            Code.USAGE_OUTSIDE_LEASE,
            "operator checks the site's clock",
        ),
        ({"device": "abacus"}, Code.USAGE_IMPLAUSIBLE, "the charter says cpu"),
        ({"device_ids": ""}, Code.NOTE_MALFORMED, "device-ids"),
        ({"device_ids": "-"}, Code.USAGE_IMPLAUSIBLE, "are not different ids"),
        ({"device_ids": "cpu/alder/alder,"}, Code.USAGE_IMPLAUSIBLE, "are not different ids"),
        ({"device_ids": "a b"}, Code.USAGE_IMPLAUSIBLE, "are not different ids"),
        ({"device_ids": "G" * 65}, Code.USAGE_IMPLAUSIBLE, "at most 64 characters"),
        ({"device_ids": "GPU-1,GPU-1"}, Code.USAGE_IMPLAUSIBLE, "are not different ids"),
        ({"device_ids": "GPU-1,GPU-2"}, Code.USAGE_IMPLAUSIBLE, "2 devices, the charter allows 1"),
        ({"device_ids": "cpu/birch/birch"}, Code.USAGE_IMPLAUSIBLE, "its processor is cpu/alder/alder"),
        ({"precision": "fp8"}, Code.RATE_UNKNOWN, "no rate on cpu; the members vote for one"),
        ({"steps": 3}, Code.USAGE_IMPLAUSIBLE, "different work"),
        ({"tokens": TOKENS + 1}, Code.USAGE_IMPLAUSIBLE, "different work"),
        ({"gflop": 2}, Code.USAGE_IMPLAUSIBLE, "are 128 tokens and 1 gflop"),
        ({"gflop": 0}, Code.USAGE_IMPLAUSIBLE, "0 gflop"),
        ({"device_ms": 1001}, Code.USAGE_IMPLAUSIBLE, "1 devices had 1000 ms"),
        ({"device_ms": 0}, Code.USAGE_IMPLAUSIBLE, "in 0 ms of device time, above the 100 gflop/s"),
        ({"energy_j": -1}, Code.NOTE_MALFORMED, "'energy_j' is no whole number"),
    ],
)
def test_a_usage_record_that_cannot_be_true_is_refused_with_the_reason(
    changes: dict[str, Any], code: Code, says: str
) -> None:
    try:
        used = {f"usage_{name}": value for name, value in changes.items()}
        claim = read_claim(sent(of=PRICED, **used)[0], ALDER, KEY.verifier)
    except NoteError as error:  # a value that no note can hold
        claim = Refusal(Code.NOTE_MALFORMED, str(error))
    refusal = claim if isinstance(claim, Refusal) else checked(claim, of=PRICED)
    assert refusal is not None and refusal.code is code, refusal
    assert says in refusal.message


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"steps": 0, "tokens": 0}, "0 steps where at most 4"),
        ({"steps": 5, "tokens": 5 * 32}, "5 steps where at most 4"),
        ({"steps": 4, "tokens": TOKENS - 1}, "4 steps are 128 tokens"),
    ],
)
def test_work_that_was_not_ordered_is_refused_also_where_update_and_usage_agree(
    changes: dict[str, int], says: str
) -> None:
    refusal = checked(claimed(**changes))
    assert refusal is not None and refusal.code is Code.USAGE_IMPLAUSIBLE and says in refusal.message


def test_work_may_begin_a_round_early_where_rounds_overlap_and_nowhere_else() -> None:
    second = round_one(opened_ms=900_000, before_ms=600_000, lease_until_ms=960_000)
    early = {"usage_started_ms": 600_000 - CLOCK_SLACK_MS, "usage_ended_ms": 950_000}
    overlapping = charter(learning__routing="lean", learning__overlap_steps=2)
    assert checked(claimed(**early), second, of=overlapping) is None
    for of, started_ms in ((OF, early["usage_started_ms"]), (overlapping, early["usage_started_ms"] - 1)):
        refusal = checked(claimed(**early | {"usage_started_ms": started_ms}), second, of=of)
        assert refusal is not None and refusal.code is Code.USAGE_OUTSIDE_LEASE


def test_a_round_cut_short_is_a_right_update() -> None:
    assert checked(claimed(steps=3, tokens=3 * 32, gflop=MAP.training_gflop(3 * 32))) is None


def test_several_devices_add_up_their_time() -> None:
    site = OF.sites[0].model_dump() | {"devices": 2}
    of = charter(sites=(site, *(s.model_dump() for s in OF.sites[1:])))
    two = {"usage_device_ids": "GPU-1,GPU-2", "usage_device_ms": 2000}
    assert checked(claimed(**two), of=of) is None
    refusal = checked(claimed(**two | {"usage_device_ms": 2001}), of=of)
    assert refusal is not None and "2 devices had 2000 ms" in refusal.message


@pytest.mark.parametrize(
    ("gflop", "device_ms", "possible"),
    [(1, 1, True), (100, 1000, True), (101, 1001, True), (101, 1000, False), (1000, 9000, False)],
)
def test_a_peak_allows_for_work_that_is_rounded_up(gflop: int, device_ms: int, possible: bool) -> None:
    class Large:
        """A map of a model with that much work in a round."""

        def training_gflop(self, tokens: int, *, frozen_trunk: bool) -> int:
            return gflop

    claim = claimed(gflop=gflop, usage_ended_ms=1000 + device_ms, usage_device_ms=device_ms)
    assert (check_usage(round_one(), claim, PRICED, Large()) is None) is possible  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("before", "overlaps"),
    [
        ({"site": "birch"}, True),
        ({"run": "run-0", "round": 7}, True),
        ({"site": "birch", "started_ms": 500, "ended_ms": 1001}, True),
        ({"site": "birch", "started_ms": 1999, "ended_ms": 9000}, True),
        ({"site": "birch", "started_ms": 0, "ended_ms": 9000}, True),
        ({"site": "birch", "started_ms": 1400, "ended_ms": 1500}, True),
        ({"site": "birch", "started_ms": 0, "ended_ms": 1000}, False),
        ({"site": "birch", "started_ms": 2000, "ended_ms": 3000}, False),
        ({"site": "birch", "started_ms": 1500, "ended_ms": 1500}, False),
        ({"site": "birch", "device_ids": "GPU-9"}, False),
        ({"site": "birch", "device_ids": "GPU-9,cpu/alder/alder"}, True),
        ({"site": "birch", "device_ids": "-"}, False),
    ],
)
def test_no_time_of_a_device_is_claimed_twice(before: dict[str, Any], overlaps: bool) -> None:
    earlier = usage_of(**before)
    refusal = checked(claimed(), before=[usage_of(started_ms=1, ended_ms=2), earlier])
    assert (refusal is not None) is overlaps
    if refusal is not None:
        assert refusal.code is Code.USAGE_OVERLAP
        when = f"site {earlier.site} claimed it from {earlier.started_ms} to {earlier.ended_ms}"
        assert f"{when} for round {earlier.round} of run {earlier.run}" in refusal.message


def test_claims_that_no_further_record_can_meet_are_forgotten() -> None:
    usages, at_ms = Usages(), 10 * HOUR_MS
    usages.take(usage_of(device_ids="GPU-1", started_ms=at_ms, ended_ms=at_ms + 1))
    usages.forget_until(at_ms + CLOCK_SLACK_MS)
    assert usages.overlap(usage_of(device_ids="GPU-1", started_ms=at_ms, ended_ms=at_ms + 1))
    usages.forget_until(at_ms + CLOCK_SLACK_MS + 1)
    assert not usages.overlap(usage_of(device_ids="GPU-1", started_ms=at_ms, ended_ms=at_ms + 1))


def test_what_is_wrong_with_a_usage_is_recorded_and_what_a_repeat_mends_is_not() -> None:
    usage = {Code.USAGE_OUTSIDE_LEASE, Code.USAGE_IMPLAUSIBLE, Code.USAGE_OVERLAP, Code.RATE_UNKNOWN}
    assert usage <= RECORDED and not {Code.LEASE_EXPIRED, Code.EPOCH_STALE, Code.NOTE_MALFORMED} & RECORDED


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"closed_ms": 5}, Code.ROUND_CLOSED),
        ({"holds": {}}, Code.NOT_ASSIGNED),
        ({"lease_until_ms": 3000}, Code.LEASE_EXPIRED),
    ],
)
def test_a_round_takes_updates_only_while_it_waits_for_the_site(changes: dict[str, Any], code: Code) -> None:
    refusal = checked(claimed(), round_one(**changes))
    assert refusal is not None and refusal.code is code
    assert code not in RECORDED


def test_updates_for_unknown_runs_and_rounds_are_sent_away() -> None:
    runs = Runs()
    unknown = find_round(runs, claimed())
    assert isinstance(unknown, Refusal) and unknown.code is Code.RUN_UNKNOWN
    runs.by_id[RUN] = run_of(round_one())
    early = find_round(runs, claimed(round=2))
    assert isinstance(early, Refusal) and early.code is Code.ROUND_CLOSED


def test_a_payload_with_other_bytes_or_values_that_are_not_finite_is_refused() -> None:
    _, payload = sent()
    claim = claimed()
    flipped = bytearray(payload)
    flipped[3] ^= 1
    first, *others = frames_checked(claim.manifest, bytes(flipped))
    assert isinstance(first, Refusal) and first.code is Code.UPDATE_DIGEST_MISMATCH
    assert not any(isinstance(found, Refusal) for found in others)
    poison = np.frombuffer(payload, np.float32).copy()
    poison[5] = np.nan
    parts = {p.name: poison[p.offset // 4 : (p.offset + p.bytes) // 4] for p in claim.manifest.parts}
    shapes = {p.name: p.shape for p in claim.manifest.parts}
    manifest, bad = lay_out((n, "fp32", shapes[n], d.tobytes()) for n, d in parts.items())
    first, *_ = frames_checked(manifest, bad)
    assert isinstance(first, Refusal) and first.code is Code.UPDATE_NOT_FINITE


def frames_checked(manifest: UpdateManifest, payload: bytes) -> list[float | Refusal]:
    data = memoryview(payload)
    return [check_frame(ALDER, f, data[f.offset : f.offset + f.bytes]) for f in manifest.frames]


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path)


def frames(payload: bytes, start: int = 0, stop: int | None = None, size: int = 1000) -> Iterator[bytes]:
    data = payload[start:stop]
    yield from (data[i : i + size] for i in range(0, len(data), size))


def held(spool: Spool, number: int = 1) -> bytes:
    with spool.open(RUN, number, ALDER) as update:
        payload = bytearray(update.manifest.payload_bytes)
        for frame in update.manifest.frames:
            update.read_into(frame.offset, memoryview(payload)[frame.offset : frame.offset + frame.bytes])
        return bytes(payload)


def at(spool: Spool, claim: Claim) -> int:
    return spool.positions(RUN, claim.update.round, ALDER, claim.key, 1)[0]


def boundary(claim: Claim, below: int) -> int:
    """Where the last frame ends that ends at or below this byte."""
    return max(f.offset + f.bytes for f in claim.manifest.frames if f.offset + f.bytes <= below)


def test_a_broken_upload_goes_on_at_its_last_whole_frame_also_in_a_new_life(
    spool: Spool, tmp_path: Path
) -> None:
    _, payload = sent()
    claim = claimed()
    broken = spool.receive(claim, 0, 1, 0, frames(payload, stop=29_500))
    assert broken is not None and broken.code is Code.REQUEST_INVALID
    again = Spool(tmp_path)
    assert at(again, claim) == at(spool, claim) == boundary(claim, 29_500)
    assert again.receive(claim, 0, 1, at(again, claim), frames(payload, at(again, claim))) is None
    assert held(again) == payload
    assert (
        again.whole_norm(claim, 1)
        == again.norm(RUN, 1, ALDER)
        == pytest.approx(0.01 * (len(payload) // 4) ** 0.5, rel=1e-4)
    )


def test_what_a_power_cut_left_damaged_is_taken_again(spool: Spool, tmp_path: Path) -> None:
    _, payload = sent()
    claim = claimed()
    spool.receive(claim, 0, 1, 0, frames(payload, stop=29_500))
    part = next(tmp_path.rglob("*.part"))
    data = bytearray(part.read_bytes())
    data[-1] ^= 1
    part.write_bytes(data + b"torn")
    again = Spool(tmp_path)
    assert at(again, claim) < boundary(claim, 29_500)
    assert again.receive(claim, 0, 1, at(again, claim), frames(payload, at(again, claim))) is None
    assert held(again) == payload


@pytest.mark.parametrize("lanes", [1, 2, 3, 8])
def test_lanes_come_in_any_order_and_make_one_payload(spool: Spool, tmp_path: Path, lanes: int) -> None:
    _, payload = sent()
    claim = claimed()
    cut = claim.manifest.lanes(lanes)
    assert sum(lane.bytes for lane in cut) == len(payload)
    for lane in reversed(cut):
        assert spool.whole_norm(claim, lanes) is None
        data = payload[lane.offset : lane.offset + lane.bytes]
        assert spool.receive(claim, lane.number, lanes, 0, frames(data)) is None
    whole = spool.whole_norm(claim, lanes)
    assert whole is not None and Spool(tmp_path).whole_norm(claim, lanes) == pytest.approx(whole)
    assert held(spool) == held(Spool(tmp_path)) == payload


def test_another_cut_or_another_update_of_the_site_starts_anew(spool: Spool) -> None:
    _, payload = sent()
    spool.receive(claimed(), 0, 1, 0, frames(payload, stop=29_500))
    assert spool.positions(RUN, 1, ALDER, claimed().key, 2) == (0, 0)
    other = claimed(loss=1.0)
    assert at(spool, other) == 0
    ahead = spool.receive(other, 0, 1, 2500, frames(payload, 2500))
    assert ahead is not None and ahead.code is Code.REQUEST_INVALID
    assert spool.receive(other, 0, 1, 0, frames(payload)) is None
    assert held(spool) == payload


def test_more_bytes_than_were_signed_are_not_kept(spool: Spool) -> None:
    _, payload = sent()
    refusal = spool.receive(claimed(), 0, 1, 0, frames(payload + b"x"))
    assert refusal is not None and refusal.code is Code.UPDATE_TOO_LARGE
    assert at(spool, claimed()) <= len(payload)


def test_a_message_above_its_size_is_refused_before_it_is_looked_at(spool: Spool) -> None:
    refusal = spool.receive(claimed(), 0, 1, 0, iter([bytes((1 << 20) + 1)]))
    assert refusal is not None and refusal.code is Code.UPDATE_TOO_LARGE
    assert at(spool, claimed()) == 0


def test_a_frame_with_another_digest_ends_the_upload_and_what_was_right_before_it_stays(spool: Spool) -> None:
    _, payload = sent()
    wrong = bytearray(payload)
    wrong[29_500] ^= 1
    refusal = spool.receive(claimed(), 0, 1, 0, frames(bytes(wrong)))
    assert refusal is not None and refusal.code is Code.UPDATE_DIGEST_MISMATCH
    assert at(spool, claimed()) == boundary(claimed(), 29_500)


def test_a_newer_upload_of_a_lane_takes_over_from_one_that_hangs(spool: Spool) -> None:
    _, payload = sent()
    claim = claimed()

    def hanging() -> Iterator[bytes]:
        yield payload[:29_500]
        assert spool.receive(claim, 0, 1, at(spool, claim), frames(payload, at(spool, claim))) is None
        yield payload[29_500:]

    late = spool.receive(claim, 0, 1, 0, hanging())
    assert late is not None and "took over" in late.message
    assert held(spool) == payload


def test_a_full_disk_is_named_and_what_was_durable_stays(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from commons.errors import StoreError
    from orchestrator import spool as module

    _, payload = sent()
    claim = claimed()
    spool.receive(claim, 0, 1, 0, frames(payload, stop=29_500))

    def half_full(handle: int, at: int, data: memoryview) -> None:
        os.pwrite(handle, data[: len(data) // 2], at)
        raise OSError(28, "No space left on device")

    durable = at(spool, claim)
    with monkeypatch.context() as patched:
        patched.setattr(module, "_write", half_full)
        with pytest.raises(StoreError, match=r"alder.*No space left on device"):
            spool.receive(claim, 0, 1, durable, frames(payload, durable))
    assert at(spool, claim) == durable
    assert spool.receive(claim, 0, 1, durable, frames(payload, durable)) is None
    assert held(spool) == payload


def test_spools_of_closed_rounds_and_other_runs_go(spool: Spool, tmp_path: Path) -> None:
    _, payload = sent()
    spool.receive(claimed(), 0, 1, 0, frames(payload))
    spool.drop_before(RUN, 1, more=False)
    assert held(spool) == payload
    spool.drop_before(RUN, 2, more=False)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_the_room_of_a_closed_round_is_written_over_and_then_given_back(spool: Spool, tmp_path: Path) -> None:
    _, payload = sent()
    spool.receive(claimed(), 0, 1, 0, frames(payload))
    files = {part.stat().st_ino for part in tmp_path.rglob("*.part")}
    spool.drop_before(RUN, 2, more=True)
    _, later = sent(round=2, value=0.02)
    claim = claimed(round=2, value=0.02)
    assert spool.receive(claim, 0, 1, 0, frames(later, stop=29_500)) is not None
    assert {part.stat().st_ino for part in tmp_path.rglob("*.part")} == files
    # Another process finds what is of this round in the file, and what is left of the one before counts for nothing.
    assert at(Spool(tmp_path), claim) == at(spool, claim) < len(later)
    spool.drop_before(RUN, 3, more=False)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_an_upload_of_a_closed_round_does_not_write_into_the_next(spool: Spool) -> None:
    _, payload = sent()
    _, later = sent(round=2, value=0.02)

    def slow() -> Iterator[bytes]:
        yield from frames(payload, stop=29_500)
        spool.drop_before(RUN, 2, more=True)
        assert spool.receive(claimed(round=2, value=0.02), 0, 1, 0, frames(later)) is None
        yield from frames(payload, 29_500)

    refusal = spool.receive(claimed(), 0, 1, 0, slow())
    assert refusal is not None and "took over" in refusal.message
    assert held(spool, 2) == later
