"""A coordinator's ports on loopback with servicers that only say who called, and seats to call them with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from commons.certificates import Authority, Subject, create_authority, csr, issue, tls_keypair
from commons.errors import Code, Refusal, StoreError
from commons.identity import Seat
from commons.notes import Signer
from commons.wire import channel
from commons.wire.v1 import consortium_pb2 as wire
from commons.wire.v1 import consortium_pb2_grpc as services

TIMEOUT_S = 10.0
DEMO = create_authority("demo")
LOG = Signer.generate("demo")
SITE = Subject("site", "acme", "berlin")
MEMBER = Subject("member", "acme")
OPERATOR = Subject("operator")


class Chamber(services.ChamberServicer):
    def Submit(self, request: wire.NoteRequest, context: grpc.ServicerContext) -> wire.Receipt:
        details = {"lacking": {"acme": {"needs": 5, "available": 3}}}
        channel.refuse(context, Refusal(Code.EXCEEDS_BUDGET, "acme lacks 2 µEUR – its budget is 3", details))

    def Read(self, request: wire.ReadRequest, context: grpc.ServicerContext) -> wire.ViewReply:
        if request.view == "bug":
            raise RuntimeError("a mistake")
        if request.view == "disk":
            raise StoreError("the disk is full")
        return wire.ViewReply(json=str(channel.caller(context)).encode())

    def Watch(self, request: wire.ReadRequest, context: grpc.ServicerContext) -> Iterator[wire.ViewReply]:
        for _ in range(3):
            yield wire.ViewReply(json=str(channel.caller(context)).encode())
        if request.view == "disk":
            raise StoreError("the disk is full")

    def Chain(self, request: wire.ChainRequest, context: grpc.ServicerContext) -> wire.ChainBundle:
        return wire.ChainBundle()


class SiteLink(services.SiteLinkServicer):
    def Heartbeat(self, request: wire.Beat, context: grpc.ServicerContext) -> wire.BeatReply:
        return wire.BeatReply(stop=True)

    def _absent(self, request: Any, context: grpc.ServicerContext) -> Any:
        context.abort(grpc.StatusCode.UNIMPLEMENTED, "reached the stub")

    Work = UploadOffset = Upload = Fetch = Evaluate = Witness = Cosign = _absent  # type: ignore[assignment]


class Operator(services.OperatorServicer):
    def _absent(self, request: Any, context: grpc.ServicerContext) -> Any:
        context.abort(grpc.StatusCode.UNIMPLEMENTED, "reached the stub")

    StartRun = StopRun = MakeRelease = _absent


class Enrolment(services.EnrolmentServicer):
    asked = 0

    def Enrol(self, request: wire.EnrolRequest, context: grpc.ServicerContext) -> wire.EnrolReply:
        self.asked += 1
        return wire.EnrolReply(authority=DEMO.certificate)


def upload(frames: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
    yield b"|".join(frames) + b"|" + str(channel.caller(context)).encode()


def fetch(request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
    yield request
    yield b"\xff\x00"


@dataclass
class Ports:
    partners: str
    enrolment: str
    enroller: Enrolment


Port = tuple[grpc.ServerCredentials, channel.Authz, Callable[[grpc.Server], None]]


def serve(ports: list[Port]) -> tuple[list[grpc.Server], list[str]]:
    servers, addresses = [], []
    for credentials, authz, register in ports:
        pool = ThreadPoolExecutor(max_workers=4)
        server = grpc.server(pool, interceptors=[authz], options=channel.SERVER_OPTIONS)
        register(server)
        addresses.append(f"127.0.0.1:{server.add_secure_port('127.0.0.1:0', credentials)}")
        server.start()
        servers.append(server)
    return servers, addresses


def credentials(authority: Authority, *, mutual: bool) -> grpc.ServerCredentials:
    key = tls_keypair()
    certificate = issue(authority, csr(key), Subject("coordinator"), ips=["127.0.0.1"])
    return channel.server_credentials(
        tls_key=key, certificate=certificate, authority=authority.certificate, mutual=mutual
    )


@contextmanager
def loopback() -> Iterator[Ports]:
    """Both ports of one coordinator, each with every servicer registered, so that only the table decides."""
    enroller = Enrolment()

    def everything(server: grpc.Server) -> None:
        services.add_ChamberServicer_to_server(Chamber(), server)
        services.add_SiteLinkServicer_to_server(SiteLink(), server)
        services.add_OperatorServicer_to_server(Operator(), server)
        services.add_EnrolmentServicer_to_server(enroller, server)
        echo = grpc.unary_unary_rpc_method_handler(lambda request, context: request)
        handler = grpc.method_handlers_generic_handler("hansa.Forgotten", {"Call": echo})
        server.add_generic_rpc_handlers((handler,))
        channel.add_raw_handlers(server, upload=upload, fetch=fetch)

    servers, addresses = serve(
        [
            (credentials(DEMO, mutual=True), channel.Authz(), everything),
            (credentials(DEMO, mutual=False), channel.Authz(enrolment=True), everything),
        ]
    )
    try:
        yield Ports(addresses[0], addresses[1], enroller)
    finally:
        for server in servers:
            server.stop(None).wait()


def seat(address: str, subject: Subject, authority: Authority = DEMO) -> Seat:
    key = tls_keypair()
    return Seat(
        folder=Path("seat"),
        consortium="demo",
        address=address,
        subject=subject,
        log_key=LOG.vkey,
        tls_key=key,
        certificate=issue(authority, csr(key), subject),
        authority=authority.certificate,
        charter=b"",
        founding=(),
    )
