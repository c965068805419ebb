"""Flower in its deployment mode: one SuperLink, a SuperNode for each site, TLS between them.

Subprocess isolation, state in memory and its polling intervals are Flower's defaults. The SuperNodes reach the SuperLink
by an address of their own, so that what crosses from site to server can be told from what the server's own processes
and the command line say to it.
"""

from __future__ import annotations

import ipaddress
import os
import shlex
import shutil
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from benchmarks.link_bytes import LinkBytes
from benchmarks.peers.driving import Job, PeerError, Told, wait

PORT, SITE_PORTS = 8000, 9100
SERVER_SELF, SERVER_FOR_SITES = "127.0.0.1", "127.0.0.2"
APP = Path(__file__).parent / "flower_app"
ROLES = {
    "flower-superlink": "superlink",
    "flwr-serverapp": "serverapp",
    "flower-supernode": "supernode",
    "flwr-clientapp": "clientapp",
    "bin/flwr ": "command",
}
CONFIGURATION = "deployment mode, TLS, state in memory, subprocess isolation"


class Flower:
    name = "flower"
    package = "flwr"
    server = frozenset({"superlink", "superlink-executor", "serverapp"})

    def role(self, command: str) -> str:
        """Executors start the apps: each side has its own."""
        if "flower-superexec" in command:
            return "superlink-executor" if f":{PORT}" in command else "supernode-executor"
        return next((role for key, role in ROLES.items() if key in command), "other")

    def link(self) -> LinkBytes:
        return LinkBytes(address=SERVER_FOR_SITES)

    def drive(self, job: Job, check: Callable[[], None]) -> Told:
        authority, certificate, key = _certificates(job.work / "certificates")
        home = job.work / "home"
        _write_connection(home, authority)
        app = shutil.copytree(APP, job.work / "app")
        environment = {
            "FLWR_HOME": str(home),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "PATH": f"{job.environment / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "PYTHONUNBUFFERED": "1",
        }
        begun = time.time()
        tls = [
            "--ssl-ca-certfile",
            str(authority),
            "--ssl-certfile",
            str(certificate),
            "--ssl-keyfile",
            str(key),
        ]
        where = ["--host", "0.0.0.0", "--port", str(PORT), "--disable-runtime-dependency-installation"]
        job.start("superlink", [job.program("flower-superlink"), *tls, *where], environment)
        wait(job, lambda: _is_up(authority), "the start of the SuperLink", check)
        for site in range(job.sites):
            options = ["--root-certificates", str(authority), "--superlink", f"{SERVER_FOR_SITES}:{PORT}"]
            options += ["--port", str(SITE_PORTS + site), "--node-config", f"partition-id={site}"]
            job.start(f"supernode-{site}", [job.program("flower-supernode"), *options], environment)
        wait(job, lambda: _registered(job) == job.sites, "the registration of all SuperNodes", check)
        connected = time.time()
        config = {"rounds": job.rounds, "sites": job.sites, "mb": float(job.mb)}
        run_config = " ".join(
            [*(f"{k}={v}" for k, v in config.items()), f"events={shlex.quote(str(job.events))!r}"]
        )
        submitted = time.time()
        command = [job.program("flwr"), "run", str(app), "measured", "--run-config", run_config, "--stream"]
        client = job.start("flwr", command, environment)

        def ended() -> bool:
            if client.poll() is not None and not job.happened("done"):
                raise PeerError(f"`flwr run` ended with {client.returncode}; see {job.work / 'flwr.log'}")
            return bool(job.happened("done"))

        wait(job, ended, "the end of the run", check)
        return Told(CONFIGURATION, begun=begun, connected=connected, submitted=submitted)


def _is_up(authority: Path) -> bool:
    context = ssl.create_default_context(cafile=str(authority))
    try:
        with urllib.request.urlopen(f"https://{SERVER_SELF}:{PORT}/health", timeout=2, context=context):
            return True
    except (urllib.error.URLError, OSError):
        return False


def _registered(job: Job) -> int:
    return sum("Node ID" in (job.work / f"supernode-{site}.log").read_text() for site in range(job.sites))


def _write_connection(home: Path, authority: Path) -> None:
    home.mkdir(parents=True)
    (home / "config.toml").write_text(
        '[superlink]\ndefault = "measured"\n\n[superlink.measured]\n'
        f'address = "{SERVER_SELF}:{PORT}"\nroot-certificates = "{authority}"\n'
    )


def _certificates(folder: Path) -> tuple[Path, Path, Path]:
    """A certificate authority, the SuperLink's certificate and its key, as PEM files."""
    folder.mkdir(parents=True)
    now = datetime.now(timezone.utc)

    def build(subject: str, issuer: str, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(days=7))
        )

    authority_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    authority = (
        build("authority", "authority", authority_key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(authority_key, hashes.SHA256())
    )
    addresses = [x509.IPAddress(ipaddress.IPv4Address(a)) for a in (SERVER_SELF, SERVER_FOR_SITES)]
    certificate = (
        build("superlink", "authority", key)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost"), *addresses]), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    files = {
        "authority.pem": authority.public_bytes(pem),
        "superlink.pem": certificate.public_bytes(pem),
        "superlink.key": key.private_bytes(
            pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder / "authority.pem", folder / "superlink.pem", folder / "superlink.key"
