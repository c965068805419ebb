"""Signing in to the dashboard with a seat's certificate, over real TLS; and clients that take their time."""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from commons.certificates import Subject, create_authority, csr, fingerprint, issue, tls_keypair
from governance.dashboard.door import Door, DoorFile, Origin
from governance.dashboard.door.certificate import CertificateWay
from governance.dashboard.door.settings import Tls
from tests.support.door import Time, app_of, served

DAY_S = 86_400
ACME, BETA, OPERATOR = Subject("member", "acme"), Subject("member", "beta"), Subject("operator")


class Wicket:
    """A dashboard with TLS of its own, and seats of consortium `demo` that come to it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.authority = folder, create_authority("demo")
        self.today, self.members = Time(), {"acme", "beta"}
        self.today.now_s = time.time()
        self.turns = Time()
        (folder / "ca.crt").write_bytes(self.authority.certificate)
        self.revoked = folder / "revoked.txt"
        self.revoked.write_text("# nobody yet\n")
        self.server = self.paper(Subject("coordinator"), ips=("127.0.0.1",))
        way = CertificateWay(self.authority.certificate, self.today, self.revoked)
        self.door = Door(way, Origin("https", "127.0.0.1", 443), lambda: frozenset(self.members), self.turns)
        self.port = 0
        self.browsers: list[Browser] = []

    def paper(
        self, subject: Subject, *, days: int = 90, ips: tuple[str, ...] = (), of: str = "demo"
    ) -> tuple[Path, Path]:
        """Files of a certificate and its key."""
        authority = self.authority if of == "demo" else create_authority(of)
        key = tls_keypair()
        crt = issue(authority, csr(key), subject, days=days, ips=ips)
        name = f"{subject.role}-{subject.partner}-{len(list(self.folder.iterdir()))}"
        (self.folder / f"{name}.crt").write_bytes(crt)
        (self.folder / f"{name}.key").write_bytes(key)
        return self.folder / f"{name}.crt", self.folder / f"{name}.key"

    def browser(self, paper: tuple[Path, Path] | None) -> Browser:
        self.browsers.append(Browser(self, paper))
        return self.browsers[-1]


class Browser:
    """One connection that is kept open, with one cookie."""

    def __init__(self, wicket: Wicket, paper: tuple[Path, Path] | None) -> None:
        context = ssl.create_default_context(cafile=str(wicket.folder / "ca.crt"))
        if paper:
            context.load_cert_chain(*map(str, paper))
        self._connection = http.client.HTTPSConnection("127.0.0.1", wicket.port, context=context, timeout=10)
        self.cookie = ""

    def ask(self, path: str, method: str = "GET", **headers: str) -> tuple[int, str]:
        if method == "POST":
            headers["Origin"] = f"https://127.0.0.1:{self._connection.port}"
        if self.cookie:
            headers["Cookie"] = self.cookie
        self._connection.request(method, path, headers={"Accept": "text/html", **headers})
        answer = self._connection.getresponse()
        text = answer.read().decode()
        if set_cookie := answer.getheader("set-cookie"):
            self.cookie = set_cookie.partition(";")[0]
        return answer.status, text

    def close(self) -> None:
        self._connection.close()

    def sign_in(self) -> Browser:
        status, text = self.ask("/sign-in/certificate", "POST")
        assert status == 303, text
        return self


@pytest.fixture
def wicket(tmp_path: Path) -> Iterator[Wicket]:
    found = Wicket(tmp_path)
    certificate, key = found.server
    file = DoorFile(way="certificate", tls=Tls(certificate=str(certificate), key=str(key)))
    with served(app_of(found.door), file, tmp_path / "ca.crt") as port:
        found.port = port
        yield found
        for browser in found.browsers:
            browser.close()


def test_a_certificate_says_who_one_is(wicket: Wicket) -> None:
    acme = wicket.browser(wicket.paper(ACME))
    assert "Sign in as member acme" in acme.ask("/sign-in")[1]
    assert '"partner":"acme","roles":["accountant","reader","voter"]' in acme.sign_in().ask("/me")[1]
    assert '"roles":["operator","reader"]' in wicket.browser(wicket.paper(OPERATOR)).sign_in().ask("/me")[1]
    site = wicket.paper(Subject("site", "beta", "turin"))
    assert (
        '"name":"turin","partner":"beta","roles":["reader"]' in wicket.browser(site).sign_in().ask("/me")[1]
    )


def test_a_certificate_that_expires_in_mid_session_ends_it(wicket: Wicket) -> None:
    browser = wicket.browser(wicket.paper(ACME, days=2)).sign_in()
    wicket.today.now_s += 2 * DAY_S - 60
    assert browser.ask("/me")[0] == 200
    wicket.today.now_s += 61
    status, text = browser.ask("/me")
    assert status == 401 and "expired on" in text, "on the very connection that was opened before"
    wicket.today.now_s -= DAY_S
    assert browser.ask("/bill/acme", Accept="application/json")[0] == 401, "the session does not come back"


def test_a_certificate_that_is_revoked_in_mid_session_ends_it(wicket: Wicket) -> None:
    paper = wicket.paper(ACME)
    acme, beta = wicket.browser(paper).sign_in(), wicket.browser(wicket.paper(BETA)).sign_in()
    assert acme.ask("/me")[0] == beta.ask("/me")[0] == 200
    print_ = fingerprint(paper[0].read_bytes()).removeprefix("sha256:").upper()
    pairs = ":".join(print_[n : n + 2] for n in range(0, 64, 2))
    wicket.revoked.write_text(f"sha256 Fingerprint={pairs}  # lost with a laptop\n")
    assert (acme.ask("/me")[0], beta.ask("/me")[0]) == (401, 200)
    status, text = acme.ask("/sign-in/certificate", "POST")
    assert status == 403 and "revoked" in text
    wicket.revoked.write_text("certainly no fingerprint\n")
    status, text = beta.ask("/me")
    assert status == 503 and "revoked.txt:1" in text, "a list that nobody can read lets nobody in"


def test_who_is_expelled_from_the_consortium_is_out_within_seconds(wicket: Wicket) -> None:
    beta = wicket.browser(wicket.paper(BETA)).sign_in()
    wicket.members.remove("beta")
    wicket.turns.now_s += 6
    status, text = beta.ask("/me")
    assert status == 401 and "no member" in text
    assert beta.ask("/sign-in/certificate", "POST")[0] == 403


def test_a_cookie_is_worth_nothing_with_another_certificate_or_with_none(wicket: Wicket) -> None:
    acme, beta, nobody = (
        wicket.browser(wicket.paper(ACME)),
        wicket.browser(wicket.paper(BETA)),
        wicket.browser(None),
    )
    assert acme.sign_in().cookie.startswith("__Host-hansa-session-443=")
    assert acme.ask("/me")[0] == 200
    nobody.cookie = acme.cookie
    assert nobody.ask("/me")[0] == 401
    again = wicket.browser(wicket.paper(ACME))
    again.sign_in()
    beta.cookie = again.cookie
    assert beta.ask("/me")[0] == 401


def test_a_browser_without_a_certificate_is_told_which_one_is_missing(wicket: Wicket) -> None:
    assert "no certificate of consortium demo" in wicket.browser(None).ask("/sign-in")[1]
    assert wicket.browser(None).ask("/sign-in/certificate", "POST")[0] == 403
    for foreign in (wicket.paper(ACME, of="elsewhere"), wicket.paper(ACME, days=-1)):
        with pytest.raises((ssl.SSLError, ConnectionError)):
            wicket.browser(foreign).ask("/sign-in")


def test_signing_in_is_nothing_that_another_site_can_make_a_browser_do(wicket: Wicket) -> None:
    browser = wicket.browser(wicket.paper(ACME))
    for headers in ({"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "none"}):
        assert browser.ask("/sign-in/certificate", "POST", **headers)[0] == 403
    assert browser.ask("/sign-in/certificate")[0] == 405, "a link or an image signs nobody in"
    assert browser.cookie == ""


_PART = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX-"


@pytest.mark.parametrize(("asked", "said"), [(False, b""), (False, _PART), (True, _PART)])
def test_a_client_that_does_not_say_what_it_wants_is_let_go(
    wicket: Wicket, monkeypatch: pytest.MonkeyPatch, asked: bool, said: bytes
) -> None:
    monkeypatch.setattr("governance.dashboard.door.serving.HEAD_S", 0.2)
    context = ssl.create_default_context(cafile=str(wicket.folder / "ca.crt"))
    with socket.create_connection(("127.0.0.1", wicket.port), 30) as plain:
        secure = context.wrap_socket(plain, server_hostname="127.0.0.1")
        if asked:
            secure.sendall(b"HEAD /me HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            assert secure.recv(4096).startswith(b"HTTP/1.1 401")
        secure.sendall(said)
        with contextlib.suppress(ConnectionError):
            assert secure.recv(4096) == b""


def test_a_body_that_does_not_arrive_is_not_waited_for(
    wicket: Wicket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("governance.dashboard.door.guard.FORM_S", 0.2)
    acme = wicket.paper(ACME)
    cookie = wicket.browser(acme).sign_in().cookie.encode()
    context = ssl.create_default_context(cafile=str(wicket.folder / "ca.crt"))
    context.load_cert_chain(*map(str, acme))
    with socket.create_connection(("127.0.0.1", wicket.port), 10) as plain:
        secure = context.wrap_socket(plain, server_hostname="127.0.0.1")
        head = b"POST /echo HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9\r\nCookie: " + cookie
        secure.sendall(head + b"\r\n\r\nslow")
        assert secure.recv(4096).startswith(b"HTTP/1.1 408")


def test_a_head_without_end_is_refused_before_it_fills_memory(wicket: Wicket) -> None:
    context = ssl.create_default_context(cafile=str(wicket.folder / "ca.crt"))
    with socket.create_connection(("127.0.0.1", wicket.port), 10) as plain:
        secure = context.wrap_socket(plain, server_hostname="127.0.0.1")
        secure.sendall(b"GET / HTTP/1.1\r\nX: " + b"x" * 40_000)
        assert secure.recv(4096).startswith(b"HTTP/1.1 400")
