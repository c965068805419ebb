"""Connections on loopback with real certificates: who gets in, who may call what, how a refusal travels."""

from __future__ import annotations

import datetime
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from commons.certificates import Subject, create_authority, csr, fingerprint, issue, tls_keypair
from commons.errors import Code, HansaError, Refusal, Refused, Unreachable
from commons.wire import channel
from commons.wire.presented import presented_chain
from commons.wire.v1 import consortium_pb2 as wire
from commons.wire.v1 import consortium_pb2_grpc as services
from tests.support.loopback import (
    DEMO,
    MEMBER,
    OPERATOR,
    SITE,
    TIMEOUT_S,
    Chamber,
    Enrolment,
    Ports,
    credentials,
    loopback,
    seat,
    serve,
)
from tests.support.tcp_proxy import TcpProxy, proxied

CALLERS = {"site": SITE, "member": MEMBER, "operator": OPERATOR}


@pytest.fixture(scope="module")
def ports() -> Iterator[Ports]:
    with loopback() as opened:
        yield opened


@pytest.fixture(scope="module")
def channels(ports: Ports) -> Iterator[dict[str, grpc.Channel]]:
    opened = {role: channel.connect(seat(ports.partners, subject)) for role, subject in CALLERS.items()}
    yield opened
    for each in opened.values():
        each.close()


def raw_call(opened: grpc.Channel, method: str) -> grpc.RpcError | None:
    """Call any method with an empty message; None when it answered."""
    try:
        list(opened.stream_stream(method, None, None)(iter([b""]), timeout=TIMEOUT_S))
    except grpc.RpcError as error:
        return error
    return None


def refused(error: grpc.RpcError | None) -> bool:
    return (
        error is not None
        and (found := channel.as_refusal(error)) is not None
        and found.code == Code.NOT_AUTHORISED
    )


METHODS = [
    f"/{service.full_name}/{method.name}"
    for service in wire.DESCRIPTOR.services_by_name.values()
    for method in service.methods
]


def test_every_method_of_the_wire_has_a_rule_and_every_rule_a_method() -> None:
    assert sorted(channel.ROLES) == sorted(METHODS)
    known = {"site", "member", "operator", channel.ANYONE}
    assert all(roles and roles <= known for roles in channel.ROLES.values())


@pytest.mark.parametrize("role", CALLERS)
@pytest.mark.parametrize("method", METHODS)
def test_a_caller_gets_exactly_the_methods_of_its_role(
    channels: dict[str, grpc.Channel], method: str, role: str
) -> None:
    assert refused(raw_call(channels[role], method)) == (
        role not in channel.ROLES[method] or method.endswith("/Enrol")
    )


@pytest.mark.parametrize("method", METHODS)
def test_the_enrolment_port_knows_enrolment_alone(ports: Ports, method: str) -> None:
    with channel.connect_for_enrolment(ports.enrolment, fingerprint(DEMO.certificate)) as opened:
        assert refused(raw_call(opened, method)) == (not method.endswith("/Enrol"))


def test_a_certificate_opens_nothing_more_on_the_enrolment_port(ports: Ports) -> None:
    with channel.connect(seat(ports.enrolment, OPERATOR)) as opened:
        assert refused(raw_call(opened, "/commons.wire.v1.Operator/StartRun"))


@pytest.mark.parametrize("method", ["/hansa.Forgotten/Call", "/commons.wire.v1.Chamber/Rule", "/x/y"])
def test_a_method_without_a_rule_is_denied_even_when_it_is_served(
    channels: dict[str, grpc.Channel], method: str
) -> None:
    for opened in channels.values():
        assert refused(raw_call(opened, method))
    with pytest.raises(grpc.RpcError) as caught:
        channels["operator"].unary_unary(method, None, None)(b"", timeout=TIMEOUT_S)
    assert refused(caught.value)


def test_the_refusal_of_a_role_names_the_caller_and_who_may(channels: dict[str, grpc.Channel]) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        services.OperatorStub(channels["member"]).StartRun(wire.StartRunRequest(), timeout=TIMEOUT_S)
    assert caught.value.code() == grpc.StatusCode.PERMISSION_DENIED
    assert "member acme may not call /commons.wire.v1.Operator/StartRun; it is for: operator" in str(
        channel.translate(caught.value)
    )


def test_the_server_knows_its_caller_in_unary_and_streamed_calls(channels: dict[str, grpc.Channel]) -> None:
    for role, named in (
        ("site", b"site berlin of acme"),
        ("member", b"member acme"),
        ("operator", b"the operator"),
    ):
        chamber = services.ChamberStub(channels[role])
        assert chamber.Read(wire.ReadRequest(), timeout=TIMEOUT_S).json == named
        assert [reply.json for reply in chamber.Watch(wire.ReadRequest(), timeout=TIMEOUT_S)] == [named] * 3


def test_bytes_pass_unchanged_through_the_raw_calls(channels: dict[str, grpc.Channel]) -> None:
    frames = [b"\x00\xff", b"x" * 2**20]
    [reply] = channel.raw_upload(channels["site"])(iter(frames), timeout=TIMEOUT_S)
    assert reply == b"|".join(frames) + b"|site berlin of acme"
    assert list(channel.raw_fetch(channels["site"])(b"\xfe", timeout=TIMEOUT_S)) == [b"\xfe", b"\xff\x00"]


def test_a_refusal_comes_out_as_it_went_in(channels: dict[str, grpc.Channel]) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        services.ChamberStub(channels["site"]).Submit(wire.NoteRequest(), timeout=TIMEOUT_S)
    assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    expected = Refusal(
        Code.EXCEEDS_BUDGET,
        "acme lacks 2 µEUR – its budget is 3",
        {"lacking": {"acme": {"needs": 5, "available": 3}}},
    )
    assert channel.as_refusal(caught.value) == expected
    translated = channel.translate(caught.value)
    assert isinstance(translated, Refused) and translated.refusal == expected


def test_a_mistake_of_the_server_is_no_refusal(channels: dict[str, grpc.Channel]) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        services.ChamberStub(channels["site"]).Read(wire.ReadRequest(view="bug"), timeout=TIMEOUT_S)
    assert channel.as_refusal(caught.value) is None
    assert "its operator finds the reason in its log" in str(channel.translate(caught.value))


def test_a_failing_disk_of_the_server_is_a_reason_to_try_again(channels: dict[str, grpc.Channel]) -> None:
    chamber, request = services.ChamberStub(channels["site"]), wire.ReadRequest(view="disk")
    with pytest.raises(grpc.RpcError) as asked:
        chamber.Read(request, timeout=TIMEOUT_S)
    with pytest.raises(grpc.RpcError) as watched:
        list(chamber.Watch(request, timeout=TIMEOUT_S))
    for caught in (asked, watched):
        translated = channel.translate(caught.value)
        assert isinstance(translated, Unreachable) and "the disk is full" in str(translated)


def failure(opened: grpc.Channel) -> HansaError:
    """What a caller is told by a channel that must not work."""
    with opened, pytest.raises(grpc.RpcError) as caught:
        services.ChamberStub(opened).Read(wire.ReadRequest(), timeout=TIMEOUT_S)
    return channel.translate(caught.value, "hansa.example:7400")


def test_a_caller_without_a_certificate_is_not_let_in(ports: Ports) -> None:
    name = ("grpc.ssl_target_name_override", "coordinator.demo")
    anonymous = grpc.secure_channel(ports.partners, grpc.ssl_channel_credentials(DEMO.certificate), [name])
    assert isinstance(failure(anonymous), Unreachable)


def test_a_certificate_of_another_authority_is_not_let_in(ports: Ports) -> None:
    stranger = seat(ports.partners, OPERATOR, create_authority("demo"))
    assert isinstance(failure(channel.connect(replace(stranger, authority=DEMO.certificate))), Unreachable)


def test_an_expired_certificate_is_not_let_in(ports: Ports) -> None:
    key = tls_keypair()
    old = issue(DEMO, csr(key), OPERATOR, days=1, now_ms=1_700_000_000_000)
    expired = replace(seat(ports.partners, OPERATOR), tls_key=key, certificate=old)
    told = failure(channel.connect(expired))
    assert isinstance(told, Unreachable)
    assert "does not accept this seat's certificate" in str(told)


def test_the_coordinators_own_certificate_cannot_call(ports: Ports) -> None:
    assert isinstance(failure(channel.connect(seat(ports.partners, Subject("coordinator")))), Unreachable)


def test_a_certificate_with_two_uris_speaks_for_neither(ports: Ports) -> None:
    key = serialization.load_pem_private_key(tls_key := tls_keypair(), None)
    issuer_key = serialization.load_pem_private_key(DEMO.key, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(issuer_key, ec.EllipticCurvePrivateKey)
    now = datetime.datetime.now(datetime.timezone.utc)
    uris = [x509.UniformResourceIdentifier(subject.uri("demo")) for subject in (SITE, OPERATOR)]
    issuer = x509.load_pem_x509_certificate(DEMO.certificate).subject
    leaf = (
        x509.CertificateBuilder(
            issuer, x509.Name([]), key.public_key(), 7, now, now + datetime.timedelta(days=1)
        )
        .add_extension(x509.SubjectAlternativeName(uris), critical=True)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(issuer_key, hashes.SHA256())
    )
    two = leaf.public_bytes(serialization.Encoding.PEM)
    told = failure(channel.connect(replace(seat(ports.partners, SITE), tls_key=tls_key, certificate=two)))
    assert isinstance(told, Refused) and told.refusal.code == Code.NOT_AUTHORISED
    assert "the certificate has 2 URIs" in str(told)


def test_a_coordinator_of_another_authority_is_not_spoken_to(ports: Ports) -> None:
    told = failure(channel.connect(seat(ports.partners, SITE, create_authority("demo"))))
    assert isinstance(told, Unreachable)
    assert "hansa.example:7400 and this seat do not accept each other's certificates" in str(told)


def test_a_partner_cannot_pass_for_the_coordinator() -> None:
    key = tls_keypair()
    impostor = channel.server_credentials(
        tls_key=key, certificate=issue(DEMO, csr(key), SITE), authority=DEMO.certificate, mutual=False
    )
    chamber = [(impostor, channel.Authz(), lambda s: services.add_ChamberServicer_to_server(Chamber(), s))]
    servers, (address,) = serve(chamber)
    assert isinstance(failure(channel.connect(seat(address, MEMBER))), Unreachable)
    servers[0].stop(None).wait()


def test_nobody_at_the_address_is_unreachable_naming_it() -> None:
    told = failure(channel.connect(seat(f"127.0.0.1:{closed_port()}", SITE)))
    assert isinstance(told, Unreachable)
    assert "the coordinator at hansa.example:7400 does not answer" in str(told)


def closed_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def test_enrolment_goes_to_the_server_the_invite_names(ports: Ports) -> None:
    with channel.connect_for_enrolment(ports.enrolment, fingerprint(DEMO.certificate)) as opened:
        reply = services.EnrolmentStub(opened).Enrol(wire.EnrolRequest(), timeout=TIMEOUT_S)
    assert reply.authority == DEMO.certificate


def test_a_server_with_another_fingerprint_is_told_nothing(ports: Ports) -> None:
    before = ports.enroller.asked
    other = fingerprint(create_authority("demo").certificate)
    with pytest.raises(HansaError, match=rf"expected authority {other}.*nothing was sent"):
        channel.connect_for_enrolment(ports.enrolment, other)
    assert ports.enroller.asked == before


def test_showing_the_right_authority_without_its_certificate_is_not_enough() -> None:
    """A stranger can copy the public CA certificate into its chain, but cannot serve under it."""
    key, stranger, enroller = tls_keypair(), create_authority("demo"), Enrolment()
    own = issue(stranger, csr(key), Subject("coordinator"))
    shown = channel.server_credentials(tls_key=key, certificate=own, authority=DEMO.certificate, mutual=False)
    port = (
        shown,
        channel.Authz(enrolment=True),
        lambda s: services.add_EnrolmentServicer_to_server(enroller, s),
    )
    servers, (address,) = serve([port])
    opened = channel.connect_for_enrolment(address, fingerprint(DEMO.certificate))
    with opened, pytest.raises(grpc.RpcError) as caught:
        services.EnrolmentStub(opened).Enrol(wire.EnrolRequest(), timeout=TIMEOUT_S)
    assert isinstance(channel.translate(caught.value), Unreachable)
    assert enroller.asked == 0
    servers[0].stop(None).wait()


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.1:none", "", "closed"])
def test_enrolment_without_a_server_is_unreachable(address: str) -> None:
    address = f"127.0.0.1:{closed_port()}" if address == "closed" else address
    with pytest.raises(Unreachable, match="no TLS server answers at"):
        channel.connect_for_enrolment(address, fingerprint(DEMO.certificate))


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[TcpProxy]:
    for name in ("no_proxy", "no_grpc_proxy", "NO_PROXY", "grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    with proxied() as opened:
        monkeypatch.setenv("https_proxy", f"http://{opened.address}")
        yield opened


def test_enrolment_and_calls_go_through_an_http_proxy(
    ports: Ports, proxy: TcpProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    behind = f"hansa.example:{ports.enrolment.rpartition(':')[2]}"  # a name only the proxy can resolve
    with channel.connect_for_enrolment(behind, fingerprint(DEMO.certificate)) as opened:
        services.EnrolmentStub(opened).Enrol(wire.EnrolRequest(), timeout=TIMEOUT_S)
    assert proxy.tunnels == [behind, behind]
    monkeypatch.setenv("no_proxy", "other.example, .0.0.1")
    presented_chain(ports.enrolment)
    assert len(proxy.tunnels) == 2


def test_a_proxy_that_wants_to_know_who_calls_is_told(
    ports: Ports, proxy: TcpProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy.password = "berlin:p@ss:word"
    behind = f"hansa.example:{ports.enrolment.rpartition(':')[2]}"
    with pytest.raises(Unreachable, match="407"):
        channel.connect_for_enrolment(behind, fingerprint(DEMO.certificate))
    monkeypatch.setenv("https_proxy", f"http://berlin:p%40ss%3Aword@{proxy.address}")
    with channel.connect_for_enrolment(behind, fingerprint(DEMO.certificate)) as opened:
        services.EnrolmentStub(opened).Enrol(wire.EnrolRequest(), timeout=TIMEOUT_S)
    assert proxy.tunnels == [behind, behind]


def test_a_second_server_cannot_share_the_port(ports: Ports) -> None:
    second = grpc.server(ThreadPoolExecutor(max_workers=1), options=channel.SERVER_OPTIONS)
    with pytest.raises(RuntimeError):
        second.add_secure_port(ports.partners, credentials(DEMO, mutual=True))
