"""Keys, certificates, seats and invites: what belongs together can be used, what does not cannot."""

from __future__ import annotations

import datetime
import os
import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from commons.certificates import AUTHORITY_DAYS
from commons.errors import HansaError
from commons.identity import (
    CertificateError,
    Invite,
    Role,
    Seat,
    Subject,
    check_issued,
    create_authority,
    csr,
    fingerprint,
    issue,
    load_authority,
    load_signer,
    new_token,
    save_authority,
    save_signer,
    subject_of,
    tls_key_digest,
    tls_keypair,
    write_file,
)
from commons.notes import NoteError, Signer, open_note, parse

DEMO = create_authority("demo")
OTHER = create_authority("demo")
LOG = Signer.generate("demo")
BERLIN = Subject("site", "acme", "berlin")
ACME = Subject("member", "acme")
TLS_KEY = tls_keypair()
REQUEST = csr(TLS_KEY)
SUBJECTS = {
    BERLIN: "spiffe://demo/partner/acme/site/berlin",
    ACME: "spiffe://demo/partner/acme",
    Subject("operator"): "spiffe://demo/operator",
    Subject("coordinator"): "spiffe://demo/coordinator",
}
DAY_MS = 86_400_000


def extension(certificate: bytes, kind: type) -> object:
    return x509.load_pem_x509_certificate(certificate).extensions.get_extension_for_class(kind).value


@pytest.mark.parametrize(("subject", "uri"), SUBJECTS.items(), ids=[s.role for s in SUBJECTS])
def test_a_subject_is_named_by_its_uri(subject: Subject, uri: str) -> None:
    assert subject.uri("demo") == uri
    assert Subject.from_uri(uri) == ("demo", subject)


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "spiffe://",
        "spiffe://demo",
        "spiffe://demo/",
        "spiffe:///operator",
        "https://demo/operator",
        "demo/operator",
        "spiffe://demo/operator/",
        "spiffe://demo/boss",
        "spiffe://demo/partner/",
        "spiffe://demo/partner/acme/",
        "spiffe://demo/partner/acme/site",
        "spiffe://demo/partner/acme/site/",
        "spiffe://demo/partner//site/berlin",
        "spiffe://demo/partner/acme/site/berlin/x",
        "spiffe://spiffe://demo/operator",
    ],
)
def test_a_uri_that_names_nobody_is_refused(uri: str) -> None:
    with pytest.raises(CertificateError):
        Subject.from_uri(uri)


@pytest.mark.parametrize("subject", SUBJECTS, ids=[s.role for s in SUBJECTS])
def test_a_certificate_speaks_for_its_subject_and_was_issued_by_the_authority(subject: Subject) -> None:
    certificate = issue(DEMO, REQUEST, subject)
    assert subject_of(certificate) == ("demo", subject)
    assert tls_key_digest(certificate) == tls_key_digest(TLS_KEY) == tls_key_digest(REQUEST)
    check_issued(certificate, DEMO.certificate)
    with pytest.raises(CertificateError, match="not issued by"):
        check_issued(certificate, OTHER.certificate)


def test_only_the_coordinator_can_serve_and_it_has_a_name_every_client_expects() -> None:
    served = issue(DEMO, REQUEST, Subject("coordinator"), dns=["hansa.example"], ips=["127.0.0.1", "::1"])
    names = extension(served, x509.SubjectAlternativeName)
    assert isinstance(names, x509.SubjectAlternativeName)
    assert names.get_values_for_type(x509.DNSName) == ["coordinator.demo", "hansa.example"]
    assert [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1", "::1"]
    usage = x509.ExtendedKeyUsage
    assert extension(served, usage) == usage([ExtendedKeyUsageOID.SERVER_AUTH])
    assert extension(issue(DEMO, REQUEST, BERLIN), usage) == usage([ExtendedKeyUsageOID.CLIENT_AUTH])


def test_what_a_request_asks_for_beyond_its_key_is_ignored() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    greedy = (
        x509.CertificateSigningRequestBuilder(
            x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "operator")])
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier("spiffe://demo/operator")]),
            critical=False,
        )
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )
    certificate = issue(DEMO, greedy, BERLIN)
    assert subject_of(certificate) == ("demo", BERLIN)
    assert extension(certificate, x509.BasicConstraints) == x509.BasicConstraints(ca=False, path_length=None)


@pytest.mark.parametrize(
    "subject",
    [
        Subject("member", "acme/site/berlin"),
        Subject("member"),
        Subject("site", "acme"),
        Subject("site", "acme", ""),
        Subject("operator", "acme"),
    ],
)
def test_a_subject_its_uri_would_not_name_gets_no_certificate(subject: Subject) -> None:
    with pytest.raises(CertificateError):
        issue(DEMO, REQUEST, subject)


def request_for(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    request = x509.CertificateSigningRequestBuilder(x509.Name([])).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM)


def ed25519_request() -> bytes:
    request = x509.CertificateSigningRequestBuilder(x509.Name([])).sign(
        ed25519.Ed25519PrivateKey.generate(), None
    )
    return request.public_bytes(serialization.Encoding.PEM)


def forged_request() -> bytes:
    der = bytearray(x509.load_pem_x509_csr(REQUEST).public_bytes(serialization.Encoding.DER))
    der[-1] ^= 1
    return x509.load_der_x509_csr(bytes(der)).public_bytes(serialization.Encoding.PEM)


REFUSED_REQUESTS = {
    "nothing": (b"", "not a certificate request"),
    "a certificate": (DEMO.certificate, "not a certificate request"),
    "too large": (REQUEST + b"\n" * 8192, "the limit is 8192"),
    "Ed25519": (ed25519_request(), "must be ECDSA P-256"),
    "RSA": (request_for(rsa.generate_private_key(65537, 2048)), "must be ECDSA P-256"),
    "P-384": (request_for(ec.generate_private_key(ec.SECP384R1())), "must be ECDSA P-256"),
    "forged": (forged_request(), "not signed by the key"),
}


@pytest.mark.parametrize(("request_pem", "reason"), REFUSED_REQUESTS.values(), ids=REFUSED_REQUESTS.keys())
def test_an_unacceptable_request_gets_no_certificate(request_pem: bytes, reason: str) -> None:
    with pytest.raises(CertificateError, match=reason):
        issue(DEMO, request_pem, BERLIN)


def handmade(uris: list[str], *, ca: bool = False) -> bytes:
    """A certificate the authority's own `issue` would never write."""
    key = serialization.load_pem_private_key(DEMO.key, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    now = datetime.datetime.now(datetime.timezone.utc)
    issuer = x509.load_pem_x509_certificate(DEMO.certificate).subject
    names = x509.SubjectAlternativeName([x509.DNSName("x"), *map(x509.UniformResourceIdentifier, uris)])
    leaf = (
        x509.CertificateBuilder(
            issuer, x509.Name([]), key.public_key(), 1, now, now + datetime.timedelta(days=1)
        )
        .add_extension(names, critical=True)
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    return leaf.public_bytes(serialization.Encoding.PEM)


def test_a_certificate_with_no_uri_or_several_or_of_an_authority_speaks_for_nobody() -> None:
    site = BERLIN.uri("demo")
    assert subject_of(handmade([site])) == ("demo", BERLIN)
    for wrong in (handmade([]), handmade([site, "spiffe://demo/operator"]), handmade([site], ca=True)):
        with pytest.raises(CertificateError):
            subject_of(wrong)
    with pytest.raises(CertificateError):
        subject_of(DEMO.certificate)


def test_a_certificate_expires_and_is_good_for_partners_whose_clock_is_slow() -> None:
    now = 1_800_000_000_000
    authority = create_authority("demo", now_ms=now)
    certificate = issue(authority, REQUEST, BERLIN, days=90, now_ms=now)
    check_issued(certificate, authority.certificate, now_ms=now - 500_000)
    check_issued(certificate, authority.certificate, now_ms=now + 90 * DAY_MS)
    with pytest.raises(CertificateError, match="valid only from"):
        check_issued(certificate, authority.certificate, now_ms=now - 700_000)
    with pytest.raises(CertificateError, match="expired on 2027"):
        check_issued(certificate, authority.certificate, now_ms=now + 90 * DAY_MS + 1000)
    lasting = x509.load_pem_x509_certificate(authority.certificate).not_valid_after_utc
    assert lasting.timestamp() == now / 1000 + AUTHORITY_DAYS * 86_400


def test_a_signing_key_file_is_private_and_never_overwritten(tmp_path: Path) -> None:
    path, signer = tmp_path / "keys" / "acme.key", Signer.generate("acme")
    save_signer(path, signer)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert load_signer(path).vkey == signer.vkey
    with pytest.raises(HansaError, match="never overwritten"):
        save_signer(path, Signer.generate("acme"))
    assert load_signer(path).vkey == signer.vkey


def test_a_key_file_that_cannot_be_used_says_where_and_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "acme.key"
    with pytest.raises(HansaError, match=r"acme\.key does not exist; .*hansa key new"):
        load_signer(path)
    save_signer(path, Signer.generate("acme"))
    for mode in (0o640, 0o604, 0o666):
        path.chmod(mode)
        with pytest.raises(HansaError, match=r"run `chmod 600 .*acme\.key`"):
            load_signer(path)
    for content in (b"", b"\xff\xfe", b"PRIVATE+KEY+acme+00000000+AAAA\n"):
        write_file(path, content, private=True)
        with pytest.raises(HansaError, match=r"acme\.key holds no private key"):
            load_signer(path)


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ca.crt"
    write_file(path, b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(HansaError, match=r"ca\.crt: No space left on device"):
        write_file(path, b"new")
    assert [p.name for p in tmp_path.iterdir()] == ["ca.crt"]
    assert path.read_bytes() == b"old"


def test_an_authority_comes_back_and_is_made_once(tmp_path: Path) -> None:
    save_authority(tmp_path, DEMO)
    assert load_authority(tmp_path) == DEMO
    assert stat.S_IMODE((tmp_path / "ca.key").stat().st_mode) == 0o600
    assert "PRIVATE" not in repr(DEMO)
    with pytest.raises(HansaError, match="made once"):
        save_authority(tmp_path, OTHER)
    write_file(tmp_path / "ca.crt", OTHER.certificate)
    with pytest.raises(HansaError, match=r"ca\.key is not the key of ca\.crt"):
        load_authority(tmp_path)


def seat_at(folder: Path, **changed: object) -> Seat:
    parts: dict[str, object] = {
        "consortium": "demo",
        "address": "127.0.0.1:7400",
        "subject": BERLIN,
        "log_key": LOG.vkey,
        "tls_key": TLS_KEY,
        "certificate": issue(DEMO, REQUEST, BERLIN),
        "authority": DEMO.certificate,
        "charter": b'{"version":1}',
        "founding": (b"first", b"second"),
    }
    return Seat.write(folder, **(parts | changed))  # type: ignore[arg-type]


def test_a_seat_comes_back_as_written(tmp_path: Path) -> None:
    written = seat_at(tmp_path / "seat")
    assert Seat.load(tmp_path / "seat") == written
    assert written.log_verifier == LOG.verifier
    assert stat.S_IMODE((tmp_path / "seat" / "tls.key").stat().st_mode) == 0o600
    assert "PRIVATE" not in repr(written)
    assert sorted(str(p.relative_to(tmp_path / "seat")) for p in (tmp_path / "seat").rglob("*")) == [
        "ca.crt", "charter.json", "founding", "founding/000.note", "founding/001.note",
        "seat.toml", "tls.crt", "tls.key",
    ]  # fmt: skip


def test_a_seat_written_again_leaves_nothing_of_the_first(tmp_path: Path) -> None:
    seat_at(tmp_path)
    again = seat_at(tmp_path, founding=(b"only",), address="hansa.example:7400")
    assert Seat.load(tmp_path) == again


def test_an_interrupted_write_leaves_no_seat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace = os.replace

    def killed(source: str, target: Path) -> None:
        if target.name == "charter.json":
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        seat_at(tmp_path)
    with pytest.raises(HansaError, match=r"seat\.toml does not exist; this folder holds no seat"):
        Seat.load(tmp_path)


MISMATCHES: dict[str, tuple[dict[str, object], str]] = {
    "foreign authority": ({"authority": OTHER.certificate}, "not issued by"),
    "another consortium": (
        {"consortium": "hanse", "log_key": Signer.generate("hanse").vkey},
        "is the authority of",
    ),
    "another's log": ({"log_key": Signer.generate("hanse").vkey}, "the log key is 'hanse'"),
    "no log key": ({"log_key": ""}, "not a verifier key"),
    "another's certificate": ({"subject": ACME}, "speaks for site berlin of acme, not member acme"),
    "another key": ({"tls_key": tls_keypair()}, r"tls\.key is not the key of tls\.crt"),
    "no address": ({"address": ""}, "no address"),
}


@pytest.mark.parametrize(("changed", "reason"), MISMATCHES.values(), ids=MISMATCHES.keys())
def test_parts_that_do_not_belong_together_make_no_seat(
    tmp_path: Path, changed: dict[str, object], reason: str
) -> None:
    with pytest.raises(HansaError, match=reason):
        seat_at(tmp_path / "seat", **changed)
    assert not (tmp_path / "seat").exists()


def test_a_broken_seat_names_the_part_and_who_acts(tmp_path: Path) -> None:
    seat_at(tmp_path)
    with pytest.raises(
        HansaError, match=r"expired on .* join again .* new invite from the coordinator's operator"
    ):
        Seat.load(tmp_path, now_ms=int(datetime.datetime.now().timestamp() * 1000) + 91 * DAY_MS)
    (tmp_path / "tls.key").chmod(0o644)
    with pytest.raises(HansaError, match="chmod 600"):
        Seat.load(tmp_path)
    (tmp_path / "tls.key").unlink()
    with pytest.raises(HansaError, match=r"tls\.key does not exist; join again"):
        Seat.load(tmp_path)
    for text in ("address = ", 'address = "a:1"', "address = 3\nconsortium = 1\nsubject = 2\nlog_key = 4"):
        (tmp_path / "seat.toml").write_text(text)
        with pytest.raises(HansaError, match=r"cannot be used: seat\.toml"):
            Seat.load(tmp_path)


def invite(subject: Subject = BERLIN, **changed: object) -> Invite:
    parts: dict[str, object] = {
        "consortium": "demo",
        "address": "hansa.example:7400",
        "enrolment": "hansa.example:7401",
        "ca_fingerprint": fingerprint(DEMO.certificate),
        "subject": subject,
        "token": new_token(),
        "expires_s": 1_800_000_000,
    }
    return Invite(**(parts | changed))  # type: ignore[arg-type]


@pytest.mark.parametrize("role", ["site", "member"])
def test_an_invite_comes_back_from_its_note(role: Role) -> None:
    invited = invite(BERLIN if role == "site" else ACME)
    note = open_note(LOG.sign(invited.compose()), [LOG.verifier])
    assert Invite.from_note(note) == invited
    assert invited.token not in repr(invited)
    assert len(invited.token) == 64


def test_an_invite_that_contradicts_itself_is_refused() -> None:
    text = invite().compose()
    for old, new in (
        ("consortium demo", "consortium hanse"),
        ("spiffe://demo/partner/acme/site/berlin", "spiffe://demo/partner"),
        ("expires 1800000000", "expires soon"),
        ("hansa-invite/v1", "hansa-invite/v2"),
    ):
        assert old in text
        with pytest.raises(NoteError):
            Invite.from_note(parse(LOG.sign(text.replace(old, new))))
