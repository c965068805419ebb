"""The gate for updates: numbered checks on what a site claims, then on every byte it sent.

`check_claim` runs before a payload byte is taken, `check_payload` once all are on disk. Both are pure over
their arguments and answer with None or a refusal. Where the bytes lie is `orchestrator.spool`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from commons.charter import Charter, Codec
from commons.codec import CodecError, decode, encoded_bytes
from commons.errors import Code, Refusal
from commons.experts.map import ExpertMap, Kind
from commons.names import Digest, RunId, SiteId
from commons.notes import NoteError, Verifier, digest, open_note
from commons.updates import UpdateManifest
from commons.work import UpdateNote, UsageNote
from orchestrator.progress import RoundState, Runs, RunState

CLOCK_SLACK_MS = 300_000
"""How far a site's clock may be off the coordinator's before its usage record is refused."""

RECORDED = frozenset(
    {
        Code.EXPERT_MAP_MISMATCH,
        Code.UPDATE_MALFORMED,
        Code.UPDATE_TOO_LARGE,
        Code.UPDATE_NOT_FINITE,
        Code.USAGE_OUTSIDE_LEASE,
        Code.USAGE_IMPLAUSIBLE,
    }
)
"""Refusals that reject a signed update for its round; after all others the site may come back with a right one."""


@dataclass(frozen=True)
class Upload:
    """The first message of an upload, as sent."""

    epoch: int
    update: bytes
    usage: bytes
    manifest: bytes


@dataclass(frozen=True)
class Claim:
    """An upload whose notes are read and whose signatures hold."""

    update: UpdateNote
    usage: UsageNote
    manifest: UpdateManifest
    upload: Upload

    @property
    def site(self) -> SiteId:
        return SiteId(self.update.site)

    @property
    def key(self) -> Digest:
        """What the site names the upload by."""
        return self.update.digest


def read_claim(upload: Upload, site: SiteId, verifier: Verifier | None) -> Claim | Refusal:
    """Check 1 to 3: who speaks, and whether what is said can be read."""
    # 1  the notes are signed by the key that the site's partner delegated
    if verifier is None:
        return Refusal(Code.SIGNATURE_INVALID, f"site {site} has no enrolled key; its partner joins it first")
    try:
        update = UpdateNote.from_note(open_note(upload.update, [verifier]))
        usage = UsageNote.from_note(open_note(upload.usage, [verifier]))
    except NoteError as error:
        return Refusal(Code.NOTE_MALFORMED, f"the notes of site {site} cannot be taken: {error}")
    # 2  they speak for the site of the connection, and of one and the same work
    if {update.site, usage.site} != {site}:
        named = update.site if update.site != site else usage.site
        return Refusal(Code.SIGNATURE_INVALID, f"site {site} sent a note that speaks for site {named[:64]}")
    if (update.run, update.round) != (usage.run, usage.round):
        return Refusal(Code.NOTE_MALFORMED, f"update and usage of site {site} speak of different rounds")
    # 3  the manifest is the one the update note names
    try:
        manifest = UpdateManifest.from_bytes(upload.manifest)
    except ValueError as error:
        return Refusal(Code.UPDATE_MALFORMED, f"manifest of site {site}: {str(error)[:500]}")
    if digest(upload.manifest) != update.manifest:
        return Refusal(Code.UPDATE_DIGEST_MISMATCH, f"site {site} signed another manifest than it sent")
    return Claim(update, usage, manifest, upload)


def find_round(runs: Runs, claim: Claim) -> tuple[RunState, RoundState] | Refusal:
    """The round the claim is for, open or not."""
    run = runs.by_id.get(RunId(claim.update.run))
    if run is None:
        return Refusal(Code.RUN_UNKNOWN, f"there is no run {claim.update.run[:64]!r} here")
    if not 1 <= claim.update.round <= len(run.history):
        return Refusal(Code.ROUND_CLOSED, f"run {run.run} has no round {claim.update.round} yet")
    return run, run.history[claim.update.round - 1]


def check_open(run: RunState, found: RoundState, claim: Claim, *, epoch: int, now_ms: int) -> Refusal | None:
    """Check 4 to 7: the round wants this update now. Asked again right before it is admitted."""
    site = claim.site
    # 4  the round is open
    if found.closed_ms is not None or run.finished:
        return Refusal(Code.ROUND_CLOSED, f"round {found.number} is closed; site {site} drops this update")
    # 5  the site was assigned, and has neither been admitted nor rejected
    if site not in found.holds:
        return Refusal(Code.NOT_ASSIGNED, f"site {site} was not assigned in round {found.number}")
    if site in found.admitted:
        return Refusal(
            Code.UPDATE_ALREADY_ADMITTED, f"another update of site {site} is admitted in round {found.number}"
        )
    if site in found.rejected:
        why = found.rejected[site].message
        return Refusal(Code.NOT_ASSIGNED, f"site {site} is out of round {found.number}: {why}")
    # 6  the site has spoken with this life of the coordinator
    if claim.upload.epoch != epoch:
        return Refusal(
            Code.EPOCH_STALE,
            f"epoch {claim.upload.epoch} is over, now {epoch}: ask for work again, then resend",
        )
    # 7  the lease holds, and it is this one
    if now_ms > found.lease_until_ms or claim.usage.lease != found.lease(run.run, site):
        return Refusal(Code.LEASE_EXPIRED, f"the lease of site {site} for round {found.number} is over")
    return None


def check_claim(found: RoundState, claim: Claim, charter: Charter, expert_map: ExpertMap) -> Refusal | None:
    """Check 8 to 11: the update is of the shape, and the usage of the size, that was ordered."""
    update, usage, site = claim.update, claim.usage, claim.site
    # 8  it starts from the round's base
    if update.base != found.base:
        return Refusal(
            Code.STALE_BASE, f"site {site} started from {update.base[:80]}, round from {found.base}"
        )
    # 9  the manifest lists exactly the site's slices, in the codecs in force
    if refusal := _check_parts(claim, charter, expert_map):
        return refusal
    # 10 note, manifest and usage agree on the payload
    if update.payload_bytes != claim.manifest.payload_bytes:
        return Refusal(Code.UPDATE_MALFORMED, f"site {site}: note and manifest differ in payload bytes")
    if usage.update != update.payload:
        return Refusal(Code.UPDATE_MALFORMED, f"site {site}: the usage record is for another update")
    # 11 the usage is inside lease and order
    return _check_usage(found, claim, charter, expert_map)


def check_payload(claim: Claim, payload: memoryview) -> Refusal | None:
    """Check 12 and 13: every byte is what was signed, and every value is finite."""
    site = claim.site
    # 12 digests, whole and of each part
    if "sha256:" + hashlib.sha256(payload).hexdigest() != claim.update.payload:
        return Refusal(
            Code.UPDATE_DIGEST_MISMATCH, f"payload of site {site} is not the one signed; send it anew"
        )
    for part in claim.manifest.parts:
        data = payload[part.offset : part.offset + part.bytes]
        if "sha256:" + hashlib.sha256(data).hexdigest() != part.sha256:
            return Refusal(Code.UPDATE_MALFORMED, f"{part.name} of site {site} is not what its manifest says")
        # 13 decodable, and no NaN or infinity
        try:
            decode(part.codec, data, part.shape)
        except CodecError as error:
            return Refusal(Code.UPDATE_NOT_FINITE, f"{part.name} of site {site}: {error}")
    return None


def payload_bytes(expert_map: ExpertMap, site: SiteId, charter: Charter) -> int:
    """Exact size of the site's update under this charter."""
    return sum(encoded_bytes(_codec(charter, s.kind), s.shape) for s in expert_map.uplink(site))


def _check_parts(claim: Claim, charter: Charter, expert_map: ExpertMap) -> Refusal | None:
    site = claim.site
    wanted = expert_map.uplink(site)
    expected = payload_bytes(expert_map, site, charter)
    if claim.manifest.payload_bytes > expected:
        message = (
            f"update of site {site} takes {claim.manifest.payload_bytes} bytes, its slices take {expected}"
        )
        return Refusal(Code.UPDATE_TOO_LARGE, message)
    sent = [part.name for part in claim.manifest.parts]
    if sent != [s.name for s in wanted]:
        odd = sorted(set(sent) ^ {s.name for s in wanted})
        message = (
            f"site {site} sent other slices than its own, first {odd[0]}; its operator pulls the run again"
        )
        return Refusal(Code.EXPERT_MAP_MISMATCH, message)
    for part, want in zip(claim.manifest.parts, wanted, strict=True):
        codec = _codec(charter, want.kind)
        if (part.codec, part.shape, part.bytes) != (codec, want.shape, encoded_bytes(codec, want.shape)):
            message = (
                f"{part.name} of site {site} is {part.codec} {list(part.shape)}, "
                f"charter version {charter.version} wants {codec} {list(want.shape)}"
            )
            return Refusal(Code.UPDATE_MALFORMED, message)
    return None


def _check_usage(found: RoundState, claim: Claim, charter: Charter, expert_map: ExpertMap) -> Refusal | None:
    usage, site, learning = claim.usage, claim.site, charter.learning
    entry = charter.site(site)
    assert entry is not None, f"assigned site {site} is in its charter"
    earliest, latest = found.opened_ms - CLOCK_SLACK_MS, found.lease_until_ms + CLOCK_SLACK_MS
    if not earliest <= usage.started_ms <= usage.ended_ms <= latest:
        message = f"usage of site {site} runs from {usage.started_ms} to {usage.ended_ms}, outside its lease"
        return Refusal(Code.USAGE_OUTSIDE_LEASE, message)
    tokens = learning.inner_steps * learning.batch_size * learning.sequence_length
    gflop = expert_map.training_gflop(tokens)
    ordered = {"steps": learning.inner_steps, "tokens": tokens, "gflop": gflop}
    stated = {"steps": usage.steps, "tokens": usage.tokens, "gflop": usage.gflop}
    if (usage.steps, usage.tokens) != (claim.update.steps, claim.update.tokens):
        return Refusal(Code.USAGE_IMPLAUSIBLE, f"update and usage of site {site} state different work")
    for what, most in ordered.items():
        if stated[what] > most or stated[what] == 0:
            message = f"site {site} states {stated[what]} {what} where at most {most}, and some, were ordered"
            return Refusal(Code.USAGE_IMPLAUSIBLE, message)
    if usage.device != entry.device:
        message = f"site {site} states device {usage.device[:40]}, the charter says {entry.device}"
        return Refusal(Code.USAGE_IMPLAUSIBLE, message)
    return None


def _codec(charter: Charter, kind: Kind) -> Codec:
    codecs = charter.learning.codecs
    return codecs.expert if kind is Kind.EXPERT else codecs.trunk
