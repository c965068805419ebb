"""Uploads and downloads of sites: how many at once, how slow at most, from the first message to the reply.

Owns the streams, not what is in them: what an update must be is `orchestrator.admit`'s, where bytes lie the spool's
and the store's. A site that misuses its streams takes them from itself alone.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from google.protobuf.message import DecodeError

from commons.errors import Code, Refusal
from commons.names import Digest, RunId, SiteId
from commons.updates import LANES_MAX
from commons.wire.v1 import consortium_pb2 as wire
from orchestrator.admit import admit
from orchestrator.desk import Desk
from orchestrator.inflow import Inflow, Stalled
from orchestrator.intake import Upload, read_claim

STALL_S = 120.0
"""In this time a frame must be complete; slower streams are ended."""
STREAMS_MAX = 8
"""Uploads, and likewise downloads, of one site at once."""
MESSAGE_BYTES_MAX = 1 << 20
HEADER_BYTES_MAX = 9 << 20
NOTE_BYTES_MAX = 8192
FETCH_DIGESTS_MAX = 1 << 17


class Streams:
    """Safe for many threads."""

    def __init__(self, desk: Desk, *, stall_s: float = STALL_S) -> None:
        self._desk, self._stall_s = desk, stall_s
        self._lock = threading.Lock()
        self._open: Counter[tuple[SiteId, str]] = Counter()

    def position(self, site: SiteId, asked: wire.UploadKey) -> wire.UploadPosition | Refusal:
        """What is durable of each lane of an update. Raises StoreError when the disk fails."""
        if not 1 <= asked.lanes <= LANES_MAX:
            return _no_such_lane(0, asked.lanes)
        key, nothing = Digest(asked.update), wire.UploadPosition(offsets=[0] * asked.lanes)
        with self._desk.consortium.lock:
            run = self._desk.runs.by_id.get(RunId(asked.run))
            if run is None or not 1 <= asked.round <= len(run.history):
                return nothing
            admitted = run.history[asked.round - 1].admitted.get(site)
        if admitted is not None and admitted.update.digest == key:
            return wire.UploadPosition(admitted=True)
        offsets = self._desk.spool.positions(run.run, asked.round, site, key, asked.lanes)
        return wire.UploadPosition(offsets=offsets)

    def upload(self, site: SiteId, messages: Iterator[bytes]) -> wire.UploadReply | Refusal:
        """Take one lane. Raises StoreError when the disk fails; what was durable stays."""
        with self._slot(site, "uploads") as refusal:
            if refusal is not None:
                return refusal
            with Inflow(messages) as inflow:
                try:
                    return self._take(site, inflow)
                except Stalled:
                    message = (
                        f"an upload of site {site} completed no frame for {self._stall_s:g} s; it resumes"
                    )
                    return Refusal(Code.UPLOAD_STALLED, message)

    def fetch(self, site: SiteId, request: bytes) -> Iterator[bytes | Refusal]:
        """The bytes asked for; a refusal is the first and the last that comes."""
        with self._slot(site, "downloads") as refusal:
            wanted = refusal or self._wanted(request)
            if isinstance(wanted, Refusal):
                yield wanted
                return
            for message in self._desk.store.stream(*wanted, MESSAGE_BYTES_MAX):
                self._desk.live.count_fetched(len(message))
                yield message

    @contextmanager
    def _slot(self, site: SiteId, kind: str) -> Iterator[Refusal | None]:
        with self._lock:
            full = self._open[site, kind] >= STREAMS_MAX
            self._open[site, kind] += not full
        try:
            message = f"site {site} has {STREAMS_MAX} {kind} under way already; it ends one, or waits"
            yield Refusal(Code.TOO_MANY_STREAMS, message) if full else None
        finally:
            with self._lock:
                self._open[site, kind] -= not full

    def _take(self, site: SiteId, inflow: Inflow) -> wire.UploadReply | Refusal:
        header = _parsed_header(inflow.take(self._stall_s) or b"")
        if isinstance(header, Refusal):
            return header
        upload = Upload(header.epoch, header.update, header.usage, header.manifest)
        with self._desk.consortium.lock:
            verifier = self._desk.consortium.members.site_key(site)
        claim = read_claim(upload, site, verifier)
        if isinstance(claim, Refusal):
            return claim
        messages = self._progressing(inflow)
        done = admit(self._desk, claim, header.lane, header.lanes, header.offset, messages)
        if isinstance(done, Refusal):
            return done
        return wire.UploadReply(index=0 if done is None else done + 1)

    def _progressing(self, inflow: Inflow) -> Iterator[bytes]:
        """Messages for as long as a frame completes in time. Raises Stalled."""
        until, due = time.monotonic() + self._stall_s, MESSAGE_BYTES_MAX
        while (message := inflow.take(until - time.monotonic())) is not None:
            due -= len(message)
            if due <= 0:
                until, due = time.monotonic() + self._stall_s, MESSAGE_BYTES_MAX
            yield message

    def _wanted(self, request: bytes) -> tuple[list[Digest], int] | Refusal:
        try:
            asked = wire.FetchRequest.FromString(request)
        except DecodeError as error:
            return Refusal(Code.REQUEST_INVALID, f"the fetch request cannot be read: {error}")
        if len(asked.digests) > FETCH_DIGESTS_MAX:
            return Refusal(Code.REQUEST_INVALID, f"at most {FETCH_DIGESTS_MAX} blobs in one fetch")
        digests = [Digest(digest) for digest in asked.digests]
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
