"""The gate for updates: numbered checks on what a site claims, then on every frame it sends.

`check_claim` runs before a payload byte is taken, `check_frame` on each frame before it is written to disk. Both are
pure over their arguments. Where the bytes lie is `orchestrator.spool`, which time of which
device is taken `orchestrator.usages`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from blake3 import blake3

from commons.charter import Charter
from commons.charter import Site as CharterSite
from commons.codec import CodecError, encoded_bytes
from commons.codec import check_frame as check_values
from commons.errors import Code, Refusal
from commons.exchange import Exchange
from commons.experts.map import ExpertMap, Slice
from commons.names import Digest, RunId, SiteId
from commons.notes import NoteError, Verifier, digest, open_note
from commons.pricing import rates_of
from commons.updates import Frame, UpdateManifest, encoding_of, in_length
from commons.work import UpdateNote, UsageNote, routed_tokens
from orchestrator.progress import RoundState, Runs, RunState
from orchestrator.usages import CLOCK_SLACK_MS, Usages, device_ids

RECORDED = frozenset(
    {
        Code.EXPERT_MAP_MISMATCH,
        Code.UPDATE_MALFORMED,
        Code.UPDATE_TOO_LARGE,
        Code.UPDATE_NOT_FINITE,
        Code.UPDATE_NORM,
        Code.USAGE_OUTSIDE_LEASE,
        Code.USAGE_IMPLAUSIBLE,
        Code.USAGE_OVERLAP,
        Code.RATE_UNKNOWN,
    }
)
"""Refusals that reject a signed update for its round; after all others the site may come back with a right one."""
NORM_MAX = 1e18
"""L2, of an update. Which is out of proportion among smaller ones the round tells from the others (`combine.gate`)."""


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
        usage = _usage(upload.usage, verifier)
    except NoteError as error:
        return Refusal(Code.NOTE_MALFORMED, f"the notes of site {site} cannot be taken: {error}")
    # 2  they speak for the site of the connection, and of one and the same work
    if {update.site, usage.site} != {site}:
        named = update.site if update.site != site else usage.site
        return Refusal(Code.SIGNATURE_INVALID, f"site {site} sent a note that speaks for site {named[:64]}")
    for what in ("consortium", "run", "round"):
        if (one := getattr(update, what)) != (other := getattr(usage, what)):
            message = f"site {site}: the update is for {what} {one}, the usage record for {other}"
            return Refusal(Code.NOTE_MALFORMED, message[:500])
    # 3  the manifest is the one the update note names
    try:
        manifest = UpdateManifest.from_bytes(upload.manifest)
    except ValueError as error:
        return Refusal(Code.UPDATE_MALFORMED, f"manifest of site {site}: {str(error)[:500]}")
    if digest(upload.manifest) != update.manifest or manifest.payload_digest != update.payload:
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
    # 4  the round is open, or the site is still at work on it
    closed = found.closed_ms is not None and run.carried.get(site) != found.number
    if closed or run.finished:
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
    # 7  the lease holds, and it is this one: it names run, round, site and attempt, so that a usage is of use once
    lease = found.lease(run.run, site)
    if now_ms >= found.lease_until_ms or claim.usage.lease != lease:
        what = "is over" if claim.usage.lease == lease else f"is {lease}, not {claim.usage.lease[:100]}"
        return Refusal(
            Code.LEASE_EXPIRED,
            f"the lease of site {site} for round {found.number} {what}: ask for work again",
        )
    return None


def check_claim(
    found: RoundState, claim: Claim, charter: Charter, expert_map: ExpertMap, usages: Usages
) -> Refusal | None:
    """Check 8 to 16: the update is of the shape, and the usage of the size, that was ordered."""
    update, site = claim.update, claim.site
    # 8  it is this consortium's, and starts from the round's base
    if update.consortium != charter.consortium.name:
        message = f"site {site} sent an update of consortium {update.consortium[:64]!r}"
        return Refusal(Code.UPDATE_MALFORMED, message)
    if update.base != found.base:
        return Refusal(
            Code.STALE_BASE, f"site {site} started from {update.base[:80]}, round from {found.base}"
        )
    # 9  the manifest lists exactly what the round takes of the site, in the codecs in force, and routes every token
    if refusal := _check_parts(claim, charter, Exchange(expert_map, charter.learning, found.number)):
        return refusal
    if refusal := _check_routed(claim, Exchange(expert_map, charter.learning, found.number)):
        return refusal
    # 10 note, manifest and usage agree on the payload
    if update.payload_bytes != claim.manifest.payload_bytes:
        return Refusal(Code.UPDATE_MALFORMED, f"site {site}: note and manifest differ in payload bytes")
    if claim.usage.update != update.payload:
        return Refusal(Code.UPDATE_MALFORMED, f"site {site}: the usage record is for another update")
    if refusal := _check_said(claim, expert_map):
        return refusal
    # 11 to 16
    return check_usage(found, claim, charter, expert_map) or check_overlap(claim, usages)


def check_usage(found: RoundState, claim: Claim, charter: Charter, expert_map: ExpertMap) -> Refusal | None:
    """Check 11 to 15: the usage can be true and has a price, whatever the update is worth."""
    usage, site = claim.usage, claim.site
    entry = charter.site(site)
    assert entry is not None, f"assigned site {site} is in its charter"
    # 11 the work lies inside the lease, as far as clocks agree; its first steps before it, where rounds overlap
    from_ms = found.before_ms if charter.learning.overlap_steps else found.opened_ms
    earliest, latest = from_ms - CLOCK_SLACK_MS, found.lease_until_ms + CLOCK_SLACK_MS
    if not earliest <= usage.started_ms <= usage.ended_ms <= latest:
        message = (
            f"usage of site {site} runs from {usage.started_ms} to {usage.ended_ms}, outside its lease "
            f"({from_ms} to {found.lease_until_ms}); its operator checks the site's clock"
        )
        return Refusal(Code.USAGE_OUTSIDE_LEASE, message)
    # 12 it names devices the site may have
    if refusal := _check_devices(usage, entry):
        return refusal
    # 13 they have a price at the precision trained in
    rates = rates_of(charter.rate_card, usage.device, usage.precision)
    if not rates:
        message = (
            f"site {site} trained at {usage.precision[:40]}, for which the rate card has no rate on "
            f"{usage.device}; the members vote for one"
        )
        return Refusal(Code.RATE_UNKNOWN, message)
    # 14 it states the update's work, at most what was ordered
    if refusal := _check_work(claim, charter, Exchange(expert_map, charter.learning, found.number)):
        return refusal
    # 15 the devices had the time for it, and the speed
    return _check_time(usage, rates[0].peak_gflops)


def check_overlap(claim: Claim, usages: Usages) -> Refusal | None:
    """Check 16: nobody else was paid for the same time of the same device. Asked again right before it is admitted."""
    usage, site = claim.usage, claim.site
    if (found := usages.overlap(usage)) is None:
        return None
    device, claimed = found
    message = (
        f"usage of site {site} claims device {device} from {usage.started_ms} to {usage.ended_ms}, site "
        f"{claimed.site} claimed it from {claimed.started_ms} to {claimed.ended_ms} for round {claimed.round} of "
        f"run {claimed.run}; the sites' operators find out whose time it was"
    )
    return Refusal(Code.USAGE_OVERLAP, message)


def check_frame(site: SiteId, frame: Frame, data: memoryview) -> float | Refusal:
    """Check 17 and 18: every byte is what was signed, and every value is finite. The sum of the values' squares."""
    # 17 the frame's digest is the manifest's
    if blake3(data).hexdigest() != frame.blake3:
        message = (
            f"frame {frame.number} of {frame.part.name} of site {site} is not the one signed; send it anew"
        )
        return Refusal(Code.UPDATE_DIGEST_MISMATCH, message)
    # 18 decodable, and no NaN or infinity; of a masked value nobody can tell
    if frame.part.codec == "masked":
        return 0.0
    try:
        return check_values(frame.part.codec, data, frame.count)
    except CodecError as error:
        return Refusal(Code.UPDATE_NOT_FINITE, f"{frame.part.name} of site {site}: {error}")


def check_norm(site: SiteId, norm: float) -> Refusal | None:
    """Check 19, once the update is whole: no sum of such updates, over however many rounds, leaves the finite numbers."""
    if norm <= NORM_MAX:
        return None
    message = (
        f"the update of site {site} has the norm {norm:.3g}, no training makes one above {NORM_MAX:.0g}; its operator "
        "looks for what went wrong in it"
    )
    return Refusal(Code.UPDATE_NORM, message)


def payload_bytes(wanted: Iterable[Slice], charter: Charter, number: int) -> int:
    """Exact size of an update of these slices under this charter, in round `number`."""
    return sum(encoded_bytes(in_length(encoding_of(charter, s.kind, number)), s.shape) for s in wanted)


def _check_parts(claim: Claim, charter: Charter, exchange: Exchange) -> Refusal | None:
    site, wanted = claim.site, exchange.uplink(claim.site)
    sent, names = [part.name for part in claim.manifest.parts], [s.name for s in wanted]
    if foreign := sorted(set(sent) - set(names)):
        message = (
            f"site {site} sent {foreign[0]}, which is not its to send in round {exchange.number} under strategy "
            f"{charter.learning.strategy}; its operator pulls the run again"
        )
        return Refusal(Code.EXPERT_MAP_MISMATCH, message)
    expected = payload_bytes(wanted, charter, exchange.number)
    if claim.manifest.payload_bytes > expected:
        message = (
            f"update of site {site} takes {claim.manifest.payload_bytes} bytes, its slices take {expected}"
        )
        return Refusal(Code.UPDATE_TOO_LARGE, message)
    if sent != names:
        lacking = min(set(names) - set(sent))
        message = f"the update of site {site} lacks slices of its own, first {lacking}; its operator pulls the run again"
        return Refusal(Code.EXPERT_MAP_MISMATCH, message)
    for part, want in zip(claim.manifest.parts, wanted, strict=True):
        codec = encoding_of(charter, want.kind, exchange.number)
        if (part.codec, part.shape) != (codec, want.shape):
            message = (
                f"{part.name} of site {site} is {part.codec} {list(part.shape)}, "
                f"charter version {charter.version} wants {codec} {list(want.shape)}"
            )
            return Refusal(Code.UPDATE_MALFORMED, message)
    return None


def _check_said(claim: Claim, expert_map: ExpertMap) -> Refusal | None:
    """Counts that may stand in the journal: of experts there are, and no more than the update's tokens could give."""
    update = claim.update
    try:
        counts = routed_tokens(update.routed)
    except NoteError as error:
        return Refusal(Code.UPDATE_MALFORMED, f"update of site {claim.site}: {error}")
    most = update.tokens * expert_map.experts_per_token * len(expert_map.routed_layers)
    if counts.keys() - set(expert_map.experts) or sum(counts.values()) > most:
        message = (
            f"update of site {claim.site} gave tokens to other experts than there are, or more than {most}"
        )
        return Refusal(Code.UPDATE_MALFORMED, message)
    return None


def _check_routed(claim: Claim, exchange: Exchange) -> Refusal | None:
    """Counts are there where they are wanted, and every layer gives each token its experts."""
    site, routed, expert_map = claim.site, claim.manifest.routed, exchange.expert_map
    may = exchange.may_route_to(site)
    layers = len(expert_map.routed_layers) if exchange.counts else 0
    if [len(layer) for layer in routed] != [len(may)] * layers:
        message = f"site {site} counts routed tokens of {len(routed)} layers, wanted are {layers} of {len(may)} experts each"
        return Refusal(Code.UPDATE_MALFORMED, message)
    each = claim.update.tokens * min(expert_map.experts_per_token, sum(may))
    for number, layer in zip(expert_map.routed_layers, routed, strict=False):
        strange = sum(count for count, allowed in zip(layer, may, strict=True) if not allowed)
        if sum(layer) != each or strange:
            message = (
                f"site {site} counts {sum(layer)} routed tokens in layer {number}, {strange} of them to experts it does not "
                f"hold; {claim.update.tokens} tokens make {each}"
            )
            return Refusal(Code.UPDATE_MALFORMED, message)
    return None


def _usage(data: bytes, verifier: Verifier) -> UsageNote:
    note = open_note(data, [verifier])
    if not note.text.startswith(f"{UsageNote.KIND}\n"):
        kind = note.text.partition("\n")[0][:80]
        raise NoteError(f"{kind} is taken no longer, {UsageNote.KIND} is; the site's operator upgrades it")
    return UsageNote.from_note(note)


def _check_devices(usage: UsageNote, entry: CharterSite) -> Refusal | None:
    site = entry.name
    if usage.device != entry.device:
        message = f"site {site} states device {usage.device[:40]}, the charter says {entry.device}"
        return Refusal(Code.USAGE_IMPLAUSIBLE, message)
    ids = device_ids(usage)
    if ids is None:
        what = "different ids of letters, digits and -_/:., at most 64 characters each"
        return Refusal(
            Code.USAGE_IMPLAUSIBLE, f"devices {usage.device_ids[:80]!r} of site {site} are not {what}"
        )
    if len(ids) > entry.devices:
        message = f"site {site} states {len(ids)} devices, the charter allows {entry.devices}; the members vote on more"
        return Refusal(Code.USAGE_IMPLAUSIBLE, message)
    own = f"cpu/{entry.partner}/{site}"
    for strange in (i for i in ids if i.startswith("cpu/") and i != own):
        message = f"site {site} states device {strange}, its processor is {own}"
        return Refusal(Code.USAGE_IMPLAUSIBLE, message)
    return None


def _check_work(claim: Claim, charter: Charter, exchange: Exchange) -> Refusal | None:
    usage, site, learning = claim.usage, claim.site, charter.learning
    if (usage.steps, usage.tokens) != (claim.update.steps, claim.update.tokens):
        return Refusal(Code.USAGE_IMPLAUSIBLE, f"update and usage of site {site} state different work")
    most = learning.steps_in(exchange.number)
    if not 1 <= usage.steps <= most:
        message = f"site {site} states {usage.steps} steps where at most {most}, and some, were ordered"
        return Refusal(Code.USAGE_IMPLAUSIBLE, message)
    tokens = usage.steps * learning.batch_size * learning.sequence_length
    gflop = exchange.gflop(usage.steps)
    if (usage.tokens, usage.gflop) != (tokens, gflop):
        message = (
            f"site {site} states {usage.tokens} tokens and {usage.gflop} gflop; {usage.steps} steps are {tokens} "
            f"tokens and {gflop} gflop"
        )
        return Refusal(Code.USAGE_IMPLAUSIBLE, message)
    return None


def _check_time(usage: UsageNote, peak_gflops: int) -> Refusal | None:
    devices = len(device_ids(usage) or ())
    most_ms = (usage.ended_ms - usage.started_ms) * devices
    if usage.device_ms > most_ms:
        message = f"site {usage.site} states {usage.device_ms} ms of device time, {devices} devices had {most_ms} ms"
        return Refusal(Code.USAGE_IMPLAUSIBLE, message)
    # gflop is rounded up: the work is anywhere above one less
    if peak_gflops and (usage.gflop - 1) * 1000 >= peak_gflops * usage.device_ms:
        message = (
            f"site {usage.site} states {usage.gflop} gflop in {usage.device_ms} ms of device time, above the "
            f"{peak_gflops} gflop/s that {usage.device} reaches by the rate card"
        )
        return Refusal(Code.USAGE_IMPLAUSIBLE, message)
    return None
