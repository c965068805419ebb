"""TLS certificates of one consortium: its authority, the leaves it issues, and who a leaf speaks for.

ECDSA P-256 throughout: gRPC's TLS library refuses Ed25519 certificates. A subject is named by the one URI
of its certificate (SPIFFE X509-SVID). Bytes in, bytes out: files are `commons.identity`'s.
"""

from __future__ import annotations

import datetime
import hashlib
import ipaddress
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from commons.names import Digest

Role = Literal["site", "member", "operator", "coordinator"]
CSR_BYTES_MAX = 8192
AUTHORITY_DAYS = 3650
_BACKDATED = datetime.timedelta(minutes=10)
"""A partner's clock may be this far behind the coordinator's."""


class CertificateError(ValueError):
    """A certificate or a request for one is not acceptable; the text says why."""


@dataclass(frozen=True)
class Subject:
    """Who a certificate speaks for. `partner` is empty for the operator and the coordinator."""

    role: Role
    partner: str = ""
    site: str | None = None

    def uri(self, consortium: str) -> str:
        match self.role:
            case "site":
                return f"spiffe://{consortium}/partner/{self.partner}/site/{self.site}"
            case "member":
                return f"spiffe://{consortium}/partner/{self.partner}"
            case _:
                return f"spiffe://{consortium}/{self.role}"

    @classmethod
    def from_uri(cls, uri: str) -> tuple[str, Subject]:
        """The consortium and the subject of a URI that `uri` wrote; anything else raises CertificateError."""
        consortium, _, path = uri.removeprefix("spiffe://").partition("/")
        match path.split("/"):
            case ["partner", partner, "site", site]:
                subject = cls("site", partner, site)
            case ["partner", partner]:
                subject = cls("member", partner)
            case ["operator" | "coordinator" as role]:
                subject = cls(role)
            case _:
                raise CertificateError(f"{uri[:200]!r} names no site, member, operator or coordinator")
        if subject.uri(consortium) != uri or "" in (consortium, *path.split("/")):
            raise CertificateError(f"{uri[:200]!r} names no site, member, operator or coordinator")
        return consortium, subject

    def __str__(self) -> str:
        named = {"site": f"site {self.site} of {self.partner}", "member": f"member {self.partner}"}
        return named.get(self.role, f"the {self.role}")


@dataclass(frozen=True)
class Authority:
    """The consortium's certificate authority. The coordinator keeps it; it signs TLS certificates only."""

    consortium: str
    certificate: bytes
    """PEM."""
    key: bytes = field(repr=False)
    """PEM; secret."""


def create_authority(consortium: str, *, now_ms: int | None = None) -> Authority:
    """A new authority, valid ten years, that can certify leaves only."""
    key = ec.generate_private_key(ec.SECP256R1())
    public = key.public_key()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, consortium)])
    window = _window(now_ms, AUTHORITY_DAYS)
    builder = x509.CertificateBuilder(name, name, public, x509.random_serial_number(), *window)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage(signs_certificates=True), critical=True)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    return Authority(consortium, _pem(builder.sign(key, hashes.SHA256())), _key_pem(key))


def tls_keypair() -> bytes:
    """A new TLS private key, PEM. ECDSA P-256, as gRPC's TLS library takes no Ed25519 certificates."""
    return _key_pem(ec.generate_private_key(ec.SECP256R1()))


def csr(tls_key: bytes) -> bytes:
    """A request (PEM) that proves possession of the key. It names nobody: the invite says who it is for."""
    key = _load_key(tls_key)
    request = x509.CertificateSigningRequestBuilder(x509.Name([])).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM)


def issue(
    authority: Authority,
    csr_pem: bytes,
    subject: Subject,
    *,
    dns: Sequence[str] = (),
    ips: Sequence[str] = (),
    days: int = 90,
    now_ms: int | None = None,
) -> bytes:
    """A certificate (PEM) for the request's key, with `subject` as its one URI.

    Whatever else the request asks for is ignored. Only the coordinator's may serve, and it always carries the
    DNS name `coordinator_name`; everybody else's can only call. Raises CertificateError for a request that is
    not PEM, larger than 8 KiB, not ECDSA P-256 or not signed by its own key, or a subject no URI can name.
    """
    public = _requested_key(csr_pem)
    if Subject.from_uri(subject.uri(authority.consortium)) != (authority.consortium, subject):
        raise CertificateError(f"{subject} has a name that would be read as another's")
    serves = subject.role == "coordinator"
    assert serves or not (dns or ips), "only the coordinator has an address"
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(subject.uri(authority.consortium))]
    hosts = dict.fromkeys([coordinator_name(authority.consortium), *dns] if serves else [])
    names += [x509.DNSName(name) for name in hosts]
    names += [x509.IPAddress(ipaddress.ip_address(ip)) for ip in ips]
    extended = ExtendedKeyUsageOID.SERVER_AUTH if serves else ExtendedKeyUsageOID.CLIENT_AUTH
    common = x509.Name(
        [x509.NameAttribute(NameOID.COMMON_NAME, subject.site or subject.partner or subject.role)]
    )
    ca = load_certificate(authority.certificate)
    ca_key = _load_key(authority.key)
    window = _window(now_ms, days)
    builder = x509.CertificateBuilder(ca.subject, common, public, x509.random_serial_number(), *window)
    for extension, critical in (
        (x509.BasicConstraints(ca=False, path_length=None), True),
        (_usage(signs_certificates=False), True),
        (x509.ExtendedKeyUsage([extended]), False),
        (x509.SubjectAlternativeName(names), False),
        (x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), False),
    ):
        builder = builder.add_extension(extension, critical=critical)
    return _pem(builder.sign(ca_key, hashes.SHA256()))


def coordinator_name(consortium: str) -> str:
    """The DNS name every client expects in the coordinator's certificate, wherever it listens."""
    return f"coordinator.{consortium}"


def subject_of(certificate: bytes) -> tuple[str, Subject]:
    """Consortium and subject of a leaf certificate (PEM).

    Raises CertificateError unless it has exactly one URI and is no authority. Does not check who issued it.
    """
    leaf = load_certificate(certificate)
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        constraints = leaf.extensions.get_extension_for_class(x509.BasicConstraints).value
    except x509.ExtensionNotFound as wrong:
        raise CertificateError(f"the certificate lacks an extension: {wrong}") from wrong
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    if len(uris) != 1:
        raise CertificateError(f"the certificate has {len(uris)} URIs, exactly one says who it speaks for")
    if constraints.ca:
        raise CertificateError("an authority's certificate speaks for nobody")
    return Subject.from_uri(uris[0])


def fingerprint(certificate: bytes) -> Digest:
    """SHA-256 of a PEM certificate's DER bytes."""
    return fingerprint_der(load_certificate(certificate).public_bytes(serialization.Encoding.DER))


def fingerprint_der(certificate: bytes) -> Digest:
    return Digest("sha256:" + hashlib.sha256(certificate).hexdigest())


def tls_key_digest(pem: bytes) -> Digest:
    """SHA-256 of the SubjectPublicKeyInfo (DER) of a private key, a request or a certificate, all PEM."""
    if b"PRIVATE KEY" in pem:
        public = _load_key(pem).public_key()
    elif b"CERTIFICATE REQUEST" in pem:
        public = _requested_key(pem)
    else:
        public = _p256(load_certificate(pem).public_key())
    spki = serialization.PublicFormat.SubjectPublicKeyInfo
    return fingerprint_der(public.public_bytes(serialization.Encoding.DER, spki))


def check_issued(certificate: bytes, authority: bytes, *, now_ms: int | None = None) -> None:
    """Raise CertificateError unless this leaf was issued by this authority (both PEM) and is valid now."""
    leaf, ca = load_certificate(certificate), load_certificate(authority)
    try:
        leaf.verify_directly_issued_by(ca)
    except (ValueError, TypeError, InvalidSignature) as wrong:
        raise CertificateError("the certificate was not issued by the consortium's authority") from wrong
    now = _time(now_ms)
    if now < leaf.not_valid_before_utc:
        raise CertificateError(
            f"the certificate is valid only from {leaf.not_valid_before_utc:%Y-%m-%d %H:%M} UTC"
        )
    if now > leaf.not_valid_after_utc:
        raise CertificateError(f"the certificate expired on {leaf.not_valid_after_utc:%Y-%m-%d %H:%M} UTC")


def ends_ms(certificate: bytes) -> int:
    """When a certificate (PEM) expires, Unix ms."""
    return int(load_certificate(certificate).not_valid_after_utc.timestamp() * 1000)


def consortium_of(authority: bytes) -> str:
    """The consortium an authority's certificate (PEM) is for. Believe it only of a certificate you pinned."""
    names = load_certificate(authority).subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    if len(names) != 1:
        raise CertificateError("the authority's certificate names no consortium")
    return str(names[0].value)


def load_certificate(pem: bytes) -> x509.Certificate:
    """Raises CertificateError."""
    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError as wrong:
        raise CertificateError("not a certificate in PEM") from wrong


def _requested_key(csr_pem: bytes) -> ec.EllipticCurvePublicKey:
    if len(csr_pem) > CSR_BYTES_MAX:
        raise CertificateError(f"certificate request of {len(csr_pem)} bytes, the limit is {CSR_BYTES_MAX}")
    try:
        request = x509.load_pem_x509_csr(csr_pem)
        public = _p256(request.public_key())
        proven = request.is_signature_valid
    except CertificateError:
        raise
    except Exception as wrong:  # the parser's error types depend on what is broken
        raise CertificateError("not a certificate request in PEM") from wrong
    if not proven:
        raise CertificateError("the certificate request is not signed by the key it is for")
    return public


def _load_key(pem: bytes) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError) as wrong:
        raise CertificateError("not an unencrypted private key in PEM") from wrong
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise CertificateError("a TLS key must be ECDSA P-256")
    _p256(key.public_key())
    return key


def _p256(public: object) -> ec.EllipticCurvePublicKey:
    if not isinstance(public, ec.EllipticCurvePublicKey) or not isinstance(public.curve, ec.SECP256R1):
        raise CertificateError("a TLS key must be ECDSA P-256")
    return public


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _window(now_ms: int | None, days: int) -> tuple[datetime.datetime, datetime.datetime]:
    now = _time(now_ms)
    return now - _BACKDATED, now + datetime.timedelta(days=days)


def _time(now_ms: int | None) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(
        time.time() if now_ms is None else now_ms / 1000, datetime.timezone.utc
    )


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    form = serialization.PrivateFormat.PKCS8
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
