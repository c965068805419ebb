"""Signing in with the certificate of a seat, asked anew at each request."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import Scope

from commons.certificates import CertificateError, check_issued, consortium_of, fingerprint, subject_of
from commons.clock import Clock
from commons.errors import HansaError
from governance.dashboard.door.sessions import Session
from governance.dashboard.door.ways import Entry, Invitation
from governance.dashboard.viewer import Viewer

PATH = "/sign-in/certificate"


class CertificateWay:
    """`authority`: PEM of the consortium's. `revoked`: file of fingerprints, read again when it has changed."""

    def __init__(self, authority: bytes, clock: Clock, revoked: Path | None = None) -> None:
        self._authority, self._clock = authority, clock
        self._revoked = Revoked(revoked) if revoked else None

    def routes(self, entry: Entry) -> Sequence[BaseRoute]:
        async def sign_in(request: Request) -> Response:
            entry.attempt(request)
            certificate = shown(request.scope)
            viewer = await self._viewer(certificate, entry)
            if isinstance(viewer, str):
                raise HTTPException(403, f"You cannot sign in: {viewer}.")
            then = request.query_params.get("then", "/")
            return entry.admit(request, viewer, bound_to=fingerprint(certificate), then=then)

        return [Route(PATH, sign_in, methods=["POST"])]

    async def invite(self, request: Request) -> Invitation:
        certificate = shown(request.scope)
        consortium = consortium_of(self._authority)
        if not certificate:
            return Invitation(
                (
                    f"Your browser showed no certificate of consortium {consortium}.",
                    "Put the certificate and key of your seat into the browser (the guide says how) and load this page again.",
                )
            )
        try:
            subject = subject_of(certificate)[1]
        except CertificateError as wrong:
            return Invitation((f"Your browser's certificate cannot be used: {wrong}.",))
        return Invitation(
            (f"Your browser shows the certificate of {subject}.",), f"Sign in as {subject}", PATH
        )

    async def still(self, scope: Scope, session: Session, entry: Entry) -> str:
        certificate = shown(scope)
        if not certificate or fingerprint(certificate) != session.bound_to:
            return "the browser does not show the certificate that it began with"
        viewer = await self._viewer(certificate, entry)
        return viewer if isinstance(viewer, str) else ""

    async def _viewer(self, certificate: bytes, entry: Entry) -> Viewer | str:
        """Whom it lets in, or why nobody. Raises HansaError when the list of revoked ones cannot be read."""
        if not certificate:
            return "the browser showed no certificate"
        try:
            check_issued(certificate, self._authority, now_ms=self._clock.now_ms())
            consortium, subject = subject_of(certificate)
        except CertificateError as wrong:
            return str(wrong)
        if consortium != consortium_of(self._authority):
            return f"the certificate is for consortium {consortium}"
        if self._revoked and fingerprint(certificate) in self._revoked.fingerprints():
            return "the certificate was revoked"
        viewer = Viewer.of(subject)
        if viewer is None:
            return f"the certificate is of {subject}, who has nothing to look at"
        if viewer.partner and not await entry.is_member(viewer.partner):
            return f"{viewer.partner} is no member by the charter in force"
        return viewer


class Revoked:
    """Fingerprints in a file, one a line, as `openssl x509 -fingerprint -sha256` or Hansa write them; after ``#`` a note."""

    def __init__(self, path: Path) -> None:
        self._path, self._stamp, self._found = path, -1, frozenset[str]()

    def fingerprints(self) -> frozenset[str]:
        """As `commons.certificates.fingerprint` writes them. Raises HansaError: without the list nobody is let in."""
        try:
            stamp = self._path.stat().st_mtime_ns
            if stamp != self._stamp:
                self._found = frozenset(self._read(self._path.read_text()))
                self._stamp = stamp
        except (OSError, UnicodeDecodeError) as failed:
            raise HansaError(
                f"the list of revoked certificates {self._path} cannot be read ({failed}), so nobody is let in; "
                "whoever keeps the dashboard puts it back"
            ) from failed
        return self._found

    def _read(self, text: str) -> list[str]:
        found = []
        for number, line in enumerate(text.splitlines(), 1):
            written = line.partition("#")[0].strip().lower().rpartition("=")[2]
            written = written.removeprefix("sha256:").replace(":", "")
            if written and (len(written) != 64 or set(written) - set("0123456789abcdef")):
                raise HansaError(
                    f"{self._path}:{number}: {line[:80]!r} is no SHA-256 fingerprint, so nobody is let in; "
                    "whoever keeps the dashboard corrects it"
                )
            found += [f"sha256:{written}"] if written else []
        return found


def shown(scope: Scope) -> bytes:
    """PEM of the certificate that the connection was opened with (ASGI's TLS extension); empty: none."""
    chain = scope.get("extensions", {}).get("tls", {}).get("client_cert_chain") or ()
    return next(iter(chain), "").encode()
