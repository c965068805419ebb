"""A coordinator's site port that does as a test tells it: speaks, stays silent, breaks off, comes back."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import grpc

from commons.errors import Code, Refusal
from commons.identity import Seat
from commons.states.naming import name_of
from commons.wire import channel
from commons.wire.v1 import consortium_pb2 as wire
from commons.wire.v1 import consortium_pb2_grpc as services
from tests.support.loopback import DEMO, SITE, credentials, seat, serve


@dataclass
class SitePort(services.SiteLinkServicer):
    """`break_after` bytes of a download or upload the stream fails, once."""

    directives: queue.Queue[wire.Directive] = field(default_factory=queue.Queue)
    blobs: dict[str, bytes] = field(default_factory=dict)
    beats: list[wire.Beat] = field(default_factory=list)
    asked: list[wire.FetchRequest] = field(default_factory=list)
    headers: list[wire.UploadHeader] = field(default_factory=list)
    topups: list[wire.TopUpRequest] = field(default_factory=list)
    received: bytearray = field(default_factory=bytearray)
    break_after: int | None = None
    refusal: Refusal | None = None
    unwanted: bool = False
    admitted: bool = False
    works: int = 0
    stopping: threading.Event = field(default_factory=threading.Event)
    server: grpc.Server | None = None
    address: str = "127.0.0.1:0"

    def add(self, blob: bytes) -> str:
        self.blobs[name_of(blob)] = blob
        return name_of(blob)

    def open(self) -> Seat:
        """Serve; the seat of a site that may call."""

        def register(server: grpc.Server) -> None:
            services.add_SiteLinkServicer_to_server(self, server)
            channel.add_raw_handlers(server, upload=self.upload, fetch=self.fetch)

        servers, addresses = serve([(credentials(DEMO, mutual=True), channel.Authz(), register)])
        [self.server], [self.address] = servers, addresses
        return seat(self.address, SITE)

    def close(self) -> None:
        self.stopping.set()
        if self.server is not None:
            self.server.stop(None).wait()

    def Work(self, request: wire.WorkRequest, context: grpc.ServicerContext) -> Iterator[wire.Directive]:
        self.works += 1
        if self.refusal is not None:
            channel.refuse(context, self.refusal)
        while context.is_active() and not self.stopping.is_set():
            try:
                yield self.directives.get(timeout=0.05)
            except queue.Empty:
                continue

    def Heartbeat(self, request: wire.Beat, context: grpc.ServicerContext) -> wire.BeatReply:
        self.beats.append(request)
        return wire.BeatReply(stop=self.unwanted)

    def UploadOffset(self, request: wire.UploadKey, context: grpc.ServicerContext) -> wire.UploadPosition:
        return wire.UploadPosition(offsets=[len(self.received)], admitted=self.admitted)

    def TopUp(self, request: wire.TopUpRequest, context: grpc.ServicerContext) -> wire.TopUpReply:
        self.topups.append(request)
        if self.refusal is not None:
            channel.refuse(context, self.refusal)
        return wire.TopUpReply()

    def upload(self, frames: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        header = wire.UploadHeader.FromString(next(frames))
        self.headers.append(header)
        if self.refusal is not None:
            channel.refuse(context, self.refusal)
        assert header.offset == len(self.received)
        told = header.offset
        for frame in frames:
            self.received += frame
            self._break_off(len(self.received), context)
            if header.report_bytes and len(self.received) - told >= header.report_bytes:
                told = len(self.received)
                yield wire.UploadReply(taken=told).SerializeToString()
        yield wire.UploadReply(index=18).SerializeToString()

    def fetch(self, request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        asked = wire.FetchRequest.FromString(request)
        self.asked.append(asked)
        missing = [d for d in asked.digests if d not in self.blobs]
        if missing:
            channel.refuse(context, Refusal(Code.BLOB_UNKNOWN, f"blob {missing[0]} is not here"))
        data = b"".join(self.blobs[d] for d in asked.digests)[asked.offset :]
        for start in range(0, len(data), 1000):
            self._break_off(start, context)
            yield data[start : start + 1000]

    def _elsewhere(self, request: Any, context: grpc.ServicerContext) -> Any:
        context.abort(grpc.StatusCode.UNIMPLEMENTED, "not of this port")

    # Upload and Fetch are served as raw bytes, by `upload` and `fetch`.
    Upload = Fetch = Evaluate = _elsewhere  # type: ignore[assignment]

    def _break_off(self, position: int, context: grpc.ServicerContext) -> None:
        if self.break_after is not None and position >= self.break_after:
            self.break_after = None
            context.abort(grpc.StatusCode.UNAVAILABLE, "the line broke")
