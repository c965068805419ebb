"""Secure connections between a partner and the coordinator, and who may call what over them.

Owns TLS, the table of roles, and how a refusal travels. Every connection is opened by the partner. Knows
nothing of what the calls mean.
"""

from __future__ import annotations

import functools
import json
import logging
import ssl
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn, Protocol, TypeAlias, cast

import grpc

from commons.certificates import (
    CertificateError,
    Subject,
    consortium_of,
    coordinator_name,
    fingerprint_der,
    subject_of,
)
from commons.errors import GRPC_STATUS, Code, HansaError, Refusal, Refused, Unreachable
from commons.identity import Seat
from commons.names import Digest
from commons.records import canonical_json
from commons.wire.presented import presented_chain

log = logging.getLogger("hansa.wire")

PACKAGE = "commons.wire.v1"
UPLOAD = f"/{PACKAGE}.SiteLink/Upload"
FETCH = f"/{PACKAGE}.SiteLink/Fetch"

MESSAGE_BYTES_MAX = 16 * 2**20
ENROLMENT_BYTES_MAX = 64 * 2**10
_DETAILS_BYTES_MAX = 4096
"""gRPC limits all metadata of a reply to 8 KiB; longer details stay behind."""
_MESSAGE_CHARS_MAX = 1000

ANYONE = "anyone"
"""A caller without a certificate; only the enrolment port knows it."""

ROLES: Mapping[str, frozenset[str]] = {
    f"/{PACKAGE}.{service}/{method}": frozenset(roles)
    for service, methods, roles in (
        ("Enrolment", "Enrol", (ANYONE,)),
        (
            "SiteLink",
            "Work Heartbeat UploadOffset Upload Fetch Evaluate TopUp Mask Witness Cosign",
            ("site",),
        ),
        ("Chamber", "Submit Read Watch Chain", ("member", "site", "operator")),
        ("Operator", "StartRun StopRun MakeRelease ReverseCharge", ("operator",)),
    )
    for method in methods.split()
}
"""Every method of the wire and who may call it. What is not here is refused."""

SERVER_OPTIONS: list[tuple[str, int]] = [
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.so_reuseport", 0),  # a second coordinator on the port must fail, not share it
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 20_000),
]
ENROLMENT_OPTIONS: list[tuple[str, int]] = [
    ("grpc.max_receive_message_length", ENROLMENT_BYTES_MAX),
    ("grpc.so_reuseport", 0),
]
CHANNEL_OPTIONS: list[tuple[str, int]] = [
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.keepalive_time_ms", 20_000),  # below the idle limits of common NATs and proxies
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
]

Serialiser = Callable[[Any], bytes]
Behaviour = Callable[[Any, grpc.ServicerContext], Any]
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


def server_credentials(
    *, tls_key: bytes, certificate: bytes, authority: bytes, mutual: bool = True
) -> grpc.ServerCredentials:
    """TLS for the coordinator's ports (all PEM). `mutual`: a caller must hold a certificate of the authority.

    The enrolment port is the one with `mutual` False. Both present the authority after the leaf, which is
    what `connect_for_enrolment` pins.
    """
    chain = certificate.rstrip() + b"\n" + authority
    if not mutual:
        return grpc.ssl_server_credentials([(tls_key, chain)])
    return grpc.ssl_server_credentials([(tls_key, chain)], authority, require_client_auth=True)


def connect(seat: Seat, *, alone: bool = False) -> grpc.Channel:
    """A channel to the coordinator's mutual-TLS port; connects when first used, reconnects by itself.

    `alone`: over a TCP connection that no other channel shares.

    The server must be the consortium's coordinator, whatever address it has. Proxies are taken from the
    environment (``https_proxy``, ``no_proxy``), as gRPC does.
    """
    credentials = grpc.ssl_channel_credentials(seat.authority, seat.tls_key, seat.certificate)
    options = [("grpc.use_local_subchannel_pool", 1)] if alone else []
    return _open(seat.address, credentials, seat.consortium, options)


def connect_for_enrolment(address: str, ca_fingerprint: Digest) -> grpc.Channel:
    """A channel to the enrolment port, whose server must prove to be the invite's before it is told anything.

    Raises Unreachable when nobody answers, HansaError when the server shows another authority.
    """
    chain = presented_chain(address)
    pinned = next((der for der in chain if fingerprint_der(der) == ca_fingerprint), None)
    if pinned is None:
        raise HansaError(
            f"the server at {address} is not the one the invite names: expected authority {ca_fingerprint}, "
            f"it shows {', '.join(map(fingerprint_der, chain)) or 'none'}; nothing was sent; "
            "ask the coordinator's operator, over another way, for its authority's fingerprint"
        )
    authority = ssl.DER_cert_to_PEM_cert(pinned).encode()
    return _open(address, grpc.ssl_channel_credentials(authority), consortium_of(authority))


def _open(
    address: str,
    credentials: grpc.ChannelCredentials,
    consortium: str,
    options: Sequence[tuple[str, int]] = (),
) -> grpc.Channel:
    name = ("grpc.ssl_target_name_override", coordinator_name(consortium))
    return grpc.secure_channel(address, credentials, options=[*CHANNEL_OPTIONS, *options, name])


def caller(context: grpc.ServicerContext) -> Subject:
    """Who calls, by the certificate gRPC has verified; ends the call with `not_authorised` if nobody does."""
    found = _caller(context)
    if isinstance(found, Refusal):
        refuse(context, found)
    return found


def _caller(context: grpc.ServicerContext) -> Subject | Refusal:
    certificates = context.auth_context().get("x509_pem_cert", ())
    if not certificates:
        return Refusal(
            Code.NOT_AUTHORISED, "the caller shows no certificate; it must join the consortium first"
        )
    try:
        return _subject(bytes(next(iter(certificates))))
    except CertificateError as wrong:
        return Refusal(Code.NOT_AUTHORISED, f"{wrong}; the caller's operator must join again")


@functools.lru_cache(maxsize=1024)
def _subject(certificate: bytes) -> Subject:
    return subject_of(certificate)[1]


class Authz(grpc.ServerInterceptor):  # type: ignore[type-arg]  # generic in the stubs only
    """Refuses every call the table `ROLES` does not allow, before its handler runs.

    `enrolment` is True on the enrolment port: nobody there has a certificate, only `ANYONE`'s methods exist.
    """

    def __init__(self, *, enrolment: bool = False) -> None:
        self._enrolment = enrolment

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Handler | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        method = handler_call_details.method
        roles = ROLES.get(method)
        if roles is None:
            return _denial(Refusal(Code.NOT_AUTHORISED, f"there is no call {method[:200]!r} on this port"))
        handler = continuation(handler_call_details)
        if handler is None:
            return _denial(Refusal(Code.NOT_AUTHORISED, f"call {method!r} is not served on this port"))
        return _wrapped(handler, lambda behaviour: self._guarded(method, roles, behaviour))

    def _guarded(self, method: str, roles: frozenset[str], behaviour: Behaviour) -> Behaviour:
        def guarded(request: Any, context: grpc.ServicerContext) -> Any:
            if refusal := self._refusal(method, roles, context):
                refuse(context, refusal)
            try:
                answer = behaviour(request, context)
            except HansaError as failed:
                _fail(context, failed)
            return _watched(answer, context) if isinstance(answer, Iterator) else answer

        return guarded

    def _refusal(self, method: str, roles: frozenset[str], context: grpc.ServicerContext) -> Refusal | None:
        if self._enrolment:
            if ANYONE in roles:
                return None
            return Refusal(Code.NOT_AUTHORISED, f"call {method!r} is not for the enrolment port")
        found = _caller(context)
        if isinstance(found, Refusal):
            return found
        if found.role in roles:
            return None
        allowed = ", ".join(sorted(roles))
        return Refusal(Code.NOT_AUTHORISED, f"{found} may not call {method}; it is for: {allowed}")


def _watched(answers: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
    try:
        yield from answers
    except HansaError as failed:
        _fail(context, failed)


def _fail(context: grpc.ServicerContext, failed: HansaError) -> NoReturn:
    """A disk of the coordinator failed, or it is stopping: the caller tries again, nobody has refused anything."""
    if isinstance(failed, Refused):
        refuse(context, failed.refusal)
    log.error("a call failed: %s", failed)
    context.abort(grpc.StatusCode.UNAVAILABLE, str(failed)[:_MESSAGE_CHARS_MAX])


def _denial(refusal: Refusal) -> Handler:
    """Answers any call, unary or streaming, with the refusal, without reading it."""

    def denied(requests: Any, context: grpc.ServicerContext) -> Any:
        refuse(context, refusal)

    return grpc.stream_stream_rpc_method_handler(denied)


class _Handler(Protocol):
    """What gRPC's own method handlers hold (`grpc.RpcMethodHandler` does not declare it)."""

    request_streaming: bool
    response_streaming: bool
    request_deserializer: Callable[[bytes], Any] | None
    response_serializer: Serialiser | None
    unary_unary: Behaviour | None
    unary_stream: Behaviour | None
    stream_unary: Behaviour | None
    stream_stream: Behaviour | None


def _wrapped(handler: Handler, wrap: Callable[[Behaviour], Behaviour]) -> Handler:
    inner = cast(_Handler, handler)
    make: Callable[..., Handler]
    match inner.request_streaming, inner.response_streaming:
        case False, False:
            make, behaviour = grpc.unary_unary_rpc_method_handler, inner.unary_unary
        case False, True:
            make, behaviour = grpc.unary_stream_rpc_method_handler, inner.unary_stream
        case True, False:
            make, behaviour = grpc.stream_unary_rpc_method_handler, inner.stream_unary
        case _:
            make, behaviour = grpc.stream_stream_rpc_method_handler, inner.stream_stream
    assert behaviour is not None
    return make(wrap(behaviour), inner.request_deserializer, inner.response_serializer)


def refuse(context: grpc.ServicerContext, refusal: Refusal) -> NoReturn:
    """End the call with the refusal: its gRPC status, code and details in the trailing metadata."""
    metadata: list[tuple[str, str | bytes]] = [("hansa-code", str(refusal.code))]
    details = canonical_json(refusal.details)
    if refusal.details and len(details) <= _DETAILS_BYTES_MAX:
        metadata.append(("hansa-details-bin", details))
    context.set_trailing_metadata(tuple(metadata))
    context.abort(grpc.StatusCode[GRPC_STATUS[refusal.code]], refusal.message[:_MESSAGE_CHARS_MAX])
    raise AssertionError("abort returns never")


def as_refusal(error: grpc.RpcError) -> Refusal | None:
    """The refusal a failed call carries; None when it failed for another reason."""
    call = cast(grpc.Call, error)
    metadata: dict[str, str | bytes] = dict(call.trailing_metadata() or ())
    try:
        code = Code(str(metadata.get("hansa-code", "")))
    except ValueError:
        return None
    try:
        details = json.loads(metadata.get("hansa-details-bin", b"{}"))
    except ValueError:
        details = {}
    return Refusal(code, str(call.details() or ""), details if isinstance(details, dict) else {})


def translate(error: grpc.RpcError, address: str = "") -> HansaError:
    """What to raise for a failed call: Refused, Unreachable, or a HansaError that says who acts next."""
    if refusal := as_refusal(error):
        return Refused(refusal)
    call = cast(grpc.Call, error)
    why = f"{call.code().name}: {call.details()}"
    server = f"the coordinator at {address}" if address else "the coordinator"
    match call.code():
        case grpc.StatusCode.UNAVAILABLE if "handshake" in why.lower():
            return Unreachable(
                f"{server} and this seat do not accept each other's certificates ({why}); check that the "
                "seat is of this consortium and has not expired, or ask the operator for a new invite"
            )
        case grpc.StatusCode.UNAVAILABLE if "socket closed" in why.lower():  # TLS 1.3 tells a client no more
            return Unreachable(
                f"{server} closed the connection ({why}): it is stopping, or it does not accept this seat's "
                "certificate; try again, then ask its operator"
            )
        case grpc.StatusCode.UNAVAILABLE | grpc.StatusCode.DEADLINE_EXCEEDED | grpc.StatusCode.CANCELLED:
            return Unreachable(
                f"{server} does not answer ({why}); trying again may help, else ask its operator"
            )
        case grpc.StatusCode.UNIMPLEMENTED:
            return HansaError(
                f"{server} does not know this call ({why}); both sides need versions that match"
            )
        case grpc.StatusCode.RESOURCE_EXHAUSTED:
            return HansaError(f"{server} takes no message this large ({why}); make it smaller")
        case _:
            return HansaError(f"{server} failed ({why}); its operator finds the reason in its log")


def raw_upload(channel: grpc.Channel) -> grpc.StreamStreamMultiCallable[bytes, bytes]:
    """SiteLink.Upload without serialisation: an iterator of bytes up, an iterator of bytes back."""
    return channel.stream_stream(UPLOAD, None, None)


def raw_fetch(channel: grpc.Channel) -> grpc.UnaryStreamMultiCallable[bytes, bytes]:
    """SiteLink.Fetch without serialisation: bytes up, an iterator of bytes back."""
    return channel.unary_stream(FETCH, None, None)


def add_raw_handlers(
    server: grpc.Server,
    *,
    upload: Callable[[Any, grpc.ServicerContext], Any],
    fetch: Callable[[bytes, grpc.ServicerContext], Any],
) -> None:
    """Serve SiteLink.Upload and .Fetch on raw bytes. Call it last: it replaces what the stubs registered."""
    handlers = {
        "Upload": grpc.stream_stream_rpc_method_handler(upload, None, None),
        "Fetch": grpc.unary_stream_rpc_method_handler(fetch, None, None),
    }
    service = f"{PACKAGE}.SiteLink"
    server.add_registered_method_handlers(service, handlers)  # type: ignore[attr-defined]  # newer than the stubs
