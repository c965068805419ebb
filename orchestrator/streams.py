"""Uploads and downloads of sites: how many at once, how slow at most, from the first message to the reply.

Owns the streams, not what is in them: what an update must be is `orchestrator.admit`'s, where bytes lie the spool's
and the store's. A site that misuses its streams takes them from itself alone.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from google.protobuf.message import DecodeError

from commons.errors import Code, Refusal, StoreError
from commons.experts.tokenizer import FILE_BYTES_MAX
from commons.names import Digest, RunId, SiteId
from commons.notes import Verifier
from commons.updates import LANES_MAX
from commons.wire.v1 import consortium_pb2 as wire
from orchestrator.admit import admit
from orchestrator.arrival import Arrival, Outcome
from orchestrator.desk import Desk
from orchestrator.intake import Claim, Upload, find_round, read_claim

STALL_S = 120.0
"""In this time a frame must be complete; slower streams are ended."""
STREAMS_MAX = 8
"""Uploads, and likewise downloads, of one site at once."""
MESSAGE_BYTES_MAX = 1 << 20
HEADER_BYTES_MAX = 9 << 20
NOTE_BYTES_MAX = 8192
FETCH_DIGESTS_MAX = 1 << 17
FETCH_SLACK_BYTES = 4096
_NAME_BEGINS, _NAME_BYTES = b"\n\x47blake3:", 73
"""Of a blob in a serialised FetchRequest."""
REPORT_BYTES_MIN = 1 << 16
TAKEOVER_S = 5.0
"""How long a newer stream of a lane waits for the older one's last write."""


@dataclass(frozen=True)
class _Tail:
    """The beginning of a frame whose stream broke off: in memory only, so that a cut line costs few bytes."""

    claim: tuple[str, int, str, int]
    """Run, round, update, lanes."""
    at: int
    data: bytes


class Streams:
    """Safe for many threads."""

    def __init__(self, desk: Desk, *, stall_s: float | None = None) -> None:
        self._desk, self._stall_s = desk, STALL_S if stall_s is None else stall_s
        self._lock = threading.Lock()
        self._open: Counter[tuple[SiteId, str]] = Counter()
        self._newest: dict[tuple[SiteId, int], Arrival] = {}
        self._tails: dict[tuple[SiteId, int], _Tail] = {}
        self._claims: dict[SiteId, tuple[Verifier | None, Claim]] = {}
        self._reading = threading.Lock()

    def position(self, site: SiteId, asked: wire.UploadKey) -> wire.UploadPosition | Refusal:
        """Where each lane of an update goes on. Raises StoreError when the disk fails."""
        if not 1 <= asked.lanes <= LANES_MAX:
            return _no_such_lane(0, asked.lanes)
        key = Digest(asked.update)
        with self._desk.consortium.lock:
            run = self._desk.runs.by_id.get(RunId(asked.run))
            if run is None or not 1 <= asked.round <= len(run.history):
                return wire.UploadPosition(offsets=[0] * asked.lanes)
            admitted = run.history[asked.round - 1].update(site)
        if admitted is not None and admitted.update.digest == key:
            return wire.UploadPosition(admitted=True)
        durable = self._desk.spool.positions(run.run, asked.round, site, key, asked.lanes)
        claim = (asked.run, asked.round, asked.update, asked.lanes)
        tails = [self._tail(site, lane, claim, at) for lane, at in enumerate(durable)]
        return wire.UploadPosition(offsets=[at + len(tail) for at, tail in zip(durable, tails, strict=True)])

    def upload(
        self, site: SiteId, incoming: Iterator[bytes], on_end: Callable[[Callable[[], None]], bool]
    ) -> Iterator[wire.UploadReply | Refusal]:
        """Take one lane: how far it has come now and then, last the receipt or a refusal.

        `on_end` registers what is to be called when the caller is gone; False: it is. Raises StoreError when the
        disk fails; what was durable stays.
        """
        if refusal := self._enter(site, "uploads"):
            yield refusal
            return
        arrival = Arrival(incoming, stall_s=self._stall_s)
        if not on_end(arrival.left):
            arrival.left()
        for at in arrival.run(lambda: self._land(site, arrival)):
            yield wire.UploadReply(taken=at)
        done = arrival.outcome
        yield done if isinstance(done, Refusal) else wire.UploadReply(index=done)

    def fetch(self, site: SiteId, request: bytes) -> Iterator[bytes | Refusal]:
        """The bytes asked for; a refusal is the first and the last that comes."""
        if refusal := self._enter(site, "downloads"):
            yield refusal
            return
        try:
            wanted = self._wanted(request)
            if isinstance(wanted, Refusal):
                yield wanted
                return
            for frame in self._frames(*wanted):
                self._desk.live.count_fetched(len(frame))
                yield frame
        finally:
            self._leave(site, "downloads")

    def _frames(self, digests: list[Digest], offset: int) -> Iterator[bytes]:
        if not self._is_tokenizer(digests):
            yield from self._desk.store.stream(digests, offset, MESSAGE_BYTES_MAX)
            return
        assert self._desk.tokenizer is not None
        try:
            with self._desk.tokenizer.open("rb") as file:
                file.seek(min(offset, FILE_BYTES_MAX))
                while frame := file.read(MESSAGE_BYTES_MAX):
                    yield frame
        except OSError as error:
            raise StoreError(f"cannot read {self._desk.tokenizer}: {error.strerror}") from error

    def _is_tokenizer(self, digests: list[Digest]) -> bool:
        """Whether it is the charter's tokenizer that is asked for, which is no blob of the store."""
        if self._desk.tokenizer is None:
            return False
        with self._desk.consortium.lock:
            return digests == [self._desk.consortium.charter.model.tokenizer.file]

    def _enter(self, site: SiteId, kind: str) -> Refusal | None:
        with self._lock:
            if self._open[site, kind] < STREAMS_MAX:
                self._open[site, kind] += 1
                return None
        message = f"site {site} has {STREAMS_MAX} {kind} under way already; it ends one, or waits"
        return Refusal(Code.TOO_MANY_STREAMS, message)

    def _leave(self, site: SiteId, kind: str) -> None:
        with self._lock:
            self._open[site, kind] -= 1

    def _land(self, site: SiteId, arrival: Arrival) -> Outcome:
        try:
            header = _parsed_header(arrival.first())
            if isinstance(header, Refusal):
                return header
            claim = self._claim(site, header)
            if isinstance(claim, Refusal):
                return claim
            with self._as_newest(site, header.lane, arrival):
                done = self._take(claim, header, arrival)
            if not arrival.begun:
                self._claims.pop(site, None)
            return done
        finally:
            self._leave(site, "uploads")

    def _take(self, claim: Claim, header: wire.UploadHeader, arrival: Arrival) -> Outcome:
        site, run, number, lanes = claim.site, RunId(claim.update.run), claim.update.round, header.lanes
        with self._desk.consortium.lock:
            found = find_round(self._desk.runs, claim)
        if isinstance(found, Refusal):
            return found
        lane = claim.manifest.lanes(lanes)[header.lane]
        at = self._desk.spool.positions(run, number, site, claim.key, lanes)[lane.number]
        names = (str(run), number, str(claim.key), lanes)
        tail = self._tail(site, lane.number, names, at)
        if header.offset > at + len(tail):
            message = (
                f"site {site} resumes lane {lane.number} at {header.offset}, {at + len(tail)} bytes of it are here; "
                "it asks for the offset first"
            )
            return Refusal(Code.REQUEST_INVALID, message)
        messages = arrival.messages(
            [frame.offset + frame.bytes - lane.offset for frame in lane.frames],
            at,
            tail,
            known=at + len(tail) - header.offset,
            report_bytes=header.report_bytes and max(header.report_bytes, REPORT_BYTES_MIN),
        )
        done = admit(self._desk, claim, lane.number, lanes, at, messages)
        begins, data = arrival.tail
        with self._lock:
            if isinstance(done, int):
                self._tails = {of: kept for of, kept in self._tails.items() if of[0] != site}
                self._claims.pop(site, None)
            elif isinstance(done, Refusal) and done.code is Code.UPDATE_DIGEST_MISMATCH:
                self._tails.pop((site, lane.number), None)  # what was kept may be what was wrong
            elif data and begins < lane.bytes:
                self._tails[site, lane.number] = _Tail(names, begins, data)
        return done if isinstance(done, Refusal) else 0 if done is None else done + 1

    def _tail(self, site: SiteId, lane: int, claim: tuple[str, int, str, int], at: int) -> bytes:
        with self._lock:
            kept = self._tails.get((site, lane))
        return kept.data if kept is not None and (kept.claim, kept.at) == (claim, at) else b""

    def _claim(self, site: SiteId, header: wire.UploadHeader) -> Claim | Refusal:
        """Read once, though every lane and every new attempt brings it."""
        upload = Upload(header.epoch, header.update, header.usage, header.manifest)
        with self._desk.consortium.lock:
            verifier = self._desk.consortium.members.site_key(site)
        with self._reading:  # one at a time: a manifest takes ten times its bytes while it is read
            signer, known = self._claims.get(site, (None, None))
            if known is not None and (signer, replace(known.upload, epoch=header.epoch)) == (
                verifier,
                upload,
            ):
                return replace(known, upload=upload)
            claim = read_claim(upload, site, verifier)
            if not isinstance(claim, Refusal):
                self._claims[site] = verifier, claim
            return claim

    @contextmanager
    def _as_newest(self, site: SiteId, lane: int, arrival: Arrival) -> Iterator[None]:
        """While this is the lane's stream; the one before is ended first, and what it has brought is kept."""
        with self._lock:
            older, self._newest[site, lane] = self._newest.get((site, lane)), arrival
        if older is not None:
            older.end(Refusal(Code.REQUEST_INVALID, f"a newer upload of site {site} took over"))
            older.wait_over(TAKEOVER_S)
        try:
            yield
        finally:
            with self._lock:
                if self._newest[site, lane] is arrival:
                    del self._newest[site, lane]

    def _wanted(self, request: bytes) -> tuple[list[Digest], int] | Refusal:
        # An empty name is two bytes here and sixteen once it is read.
        if len(request) > FETCH_SLACK_BYTES + _NAME_BYTES * request.count(_NAME_BEGINS):
            return Refusal(
                Code.REQUEST_INVALID, "a fetch names blobs by their digests and holds nothing else"
            )
        try:
            asked = wire.FetchRequest.FromString(request)
        except DecodeError as error:
            return Refusal(Code.REQUEST_INVALID, f"the fetch request cannot be read: {error}")
        if len(asked.digests) > FETCH_DIGESTS_MAX:
            return Refusal(Code.REQUEST_INVALID, f"at most {FETCH_DIGESTS_MAX} blobs in one fetch")
        digests = [Digest(text) for text in asked.digests]
        if self._is_tokenizer(digests):
            return digests, asked.offset
        for digest in digests:
            try:
                here = self._desk.store.has(digest)
            except ValueError as error:
                return Refusal(Code.REQUEST_INVALID, str(error))
            if not here:
                message = f"blob {digest} is not here any more; ask for work again and fetch its base"
                return Refusal(Code.BLOB_UNKNOWN, message)
        return digests, asked.offset


def _parsed_header(first: bytes) -> wire.UploadHeader | Refusal:
    if len(first) > HEADER_BYTES_MAX:
        return Refusal(Code.UPDATE_TOO_LARGE, f"an upload's header has at most {HEADER_BYTES_MAX} bytes")
    try:
        header = wire.UploadHeader.FromString(first)
    except DecodeError as error:
        return Refusal(Code.REQUEST_INVALID, f"an upload begins with its header: {error}")
    if max(len(header.update), len(header.usage)) > NOTE_BYTES_MAX:
        return Refusal(Code.NOTE_MALFORMED, f"update and usage notes have at most {NOTE_BYTES_MAX} bytes")
    if not header.lane < header.lanes <= LANES_MAX:
        return _no_such_lane(header.lane, header.lanes)
    return header


def _no_such_lane(lane: int, lanes: int) -> Refusal:
    return Refusal(
        Code.REQUEST_INVALID, f"lane {lane} of {lanes}: there are 1 to {LANES_MAX}, counted from 0"
    )
