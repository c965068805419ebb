"""Who speaks: note keys in files, seats and invites.

A partner holds two keys: Ed25519 for its words (`commons.notes`), ECDSA P-256 for its connections
(`commons.certificates`, whose names are this module's too). Private keys are made where they are used and
never travel. Every file is written whole or not at all.
"""

from __future__ import annotations

import os
import secrets
import stat
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import tomlkit
import tomlkit.exceptions

from commons.certificates import (
    Authority,
    CertificateError,
    Role,
    Subject,
    check_issued,
    consortium_of,
    coordinator_name,
    create_authority,
    csr,
    fingerprint,
    issue,
    subject_of,
    tls_key_digest,
    tls_keypair,
)
from commons.errors import HansaError, StoreError
from commons.names import Digest
from commons.notes import Note, NoteError, Signer, Verifier, compose, read

__all__ = [
    "Authority",
    "CertificateError",
    "Invite",
    "Role",
    "Seat",
    "Subject",
    "check_issued",
    "consortium_of",
    "coordinator_name",
    "create_authority",
    "csr",
    "fingerprint",
    "issue",
    "load_authority",
    "load_signer",
    "new_token",
    "read_file",
    "remove_file",
    "save_authority",
    "save_signer",
    "subject_of",
    "tls_key_digest",
    "tls_keypair",
    "write_file",
]


_SEAT_KEYS = ("consortium", "address", "subject", "log_key")


@dataclass(frozen=True)
class Seat:
    """A folder that lets a program speak in a consortium: address, TLS key, certificates, first charter."""

    folder: Path
    consortium: str
    address: str
    """host:port of the coordinator's mutual-TLS port."""
    subject: Subject
    log_key: str
    """The journal's verifier key (C2SP vkey)."""
    tls_key: bytes = field(repr=False)
    """PEM; secret."""
    certificate: bytes = field(repr=False)
    """PEM; its one URI is `subject`."""
    authority: bytes = field(repr=False)
    """PEM of the consortium's authority."""
    charter: bytes = field(repr=False)
    """Canonical JSON of charter version 1."""
    founding: tuple[bytes, ...] = field(repr=False)
    """The founders' notes over it."""

    @property
    def log_verifier(self) -> Verifier:
        return Verifier.from_vkey(self.log_key)

    @classmethod
    def load(cls, folder: Path, *, now_ms: int | None = None) -> Seat:
        """Read a seat and check that its parts belong together and have not expired.

        Raises HansaError naming the file, what is wrong with it and who acts next.
        """
        again = f"join again into {folder} with a new invite from the coordinator's operator"
        try:
            table = _load_table(folder / "seat.toml")
            seat = cls(
                folder=folder,
                consortium=table["consortium"],
                address=table["address"],
                subject=Subject.from_uri(table["subject"])[1],
                log_key=table["log_key"],
                tls_key=read_file(folder / "tls.key", again, private=True),
                certificate=read_file(folder / "tls.crt", again),
                authority=read_file(folder / "ca.crt", again),
                charter=read_file(folder / "charter.json", again),
                founding=tuple(
                    read_file(path, again) for path in sorted((folder / "founding").glob("*.note"))
                ),
            )
            seat._check(now_ms)
        except ValueError as wrong:
            raise HansaError(f"the seat in {folder} cannot be used: {wrong}; {again}") from wrong
        return seat

    @classmethod
    def write(
        cls,
        folder: Path,
        *,
        consortium: str,
        address: str,
        subject: Subject,
        log_key: str,
        tls_key: bytes,
        certificate: bytes,
        authority: bytes,
        charter: bytes,
        founding: tuple[bytes, ...],
        now_ms: int | None = None,
    ) -> Seat:
        """Check the parts and write them; `seat.toml` goes last, so an interrupted write leaves no seat.

        A seat already there is replaced. Raises HansaError when the parts do not belong together (then
        nothing is written) or the folder cannot be written.
        """
        seat = cls(
            folder, consortium, address, subject, log_key, tls_key, certificate, authority, charter, founding
        )
        try:
            seat._check(now_ms)
        except ValueError as wrong:
            raise HansaError(f"no seat was written to {folder}: {wrong}") from wrong
        remove_file(folder / "seat.toml")
        for old in (folder / "founding").glob("*.note"):
            remove_file(old)
        write_file(folder / "tls.key", tls_key, private=True)
        write_file(folder / "tls.crt", certificate)
        write_file(folder / "ca.crt", authority)
        write_file(folder / "charter.json", charter)
        for number, note in enumerate(founding):
            write_file(folder / "founding" / f"{number:03d}.note", note)
        table = (consortium, address, subject.uri(consortium), log_key)
        write_file(folder / "seat.toml", tomlkit.dumps(dict(zip(_SEAT_KEYS, table, strict=True))).encode())
        return seat

    def _check(self, now_ms: int | None) -> None:
        if not self.address:
            raise ValueError("seat.toml names no address")
        if self.log_verifier.name != self.consortium:
            raise ValueError(
                f"the log key is {self.log_verifier.name!r}'s, the consortium is {self.consortium!r}"
            )
        if consortium_of(self.authority) != self.consortium:
            raise ValueError(
                f"ca.crt is the authority of {consortium_of(self.authority)!r}, not {self.consortium!r}"
            )
        check_issued(self.certificate, self.authority, now_ms=now_ms)
        if subject_of(self.certificate) != (self.consortium, self.subject):
            raise ValueError(
                f"the certificate speaks for {subject_of(self.certificate)[1]}, not {self.subject}"
            )
        if tls_key_digest(self.tls_key) != tls_key_digest(self.certificate):
            raise ValueError("tls.key is not the key of tls.crt")


_INVITE = "hansa-invite/v1"
_INVITE_FIELDS = ("consortium", "address", "enrolment", "ca-fingerprint", "subject", "token", "expires")


@dataclass(frozen=True)
class Invite:
    """One use, one subject, one server: what a partner is handed out of band to join; the log key signs."""

    consortium: str
    address: str
    """host:port for mutual TLS, written into the seat."""
    enrolment: str
    """host:port of the enrolment port."""
    ca_fingerprint: Digest
    subject: Subject
    token: str = field(repr=False)
    """Random hex; secret, good for one enrolment."""
    expires_s: int
    """Unix seconds."""

    def compose(self) -> str:
        values = (
            self.consortium,
            self.address,
            self.enrolment,
            self.ca_fingerprint,
            self.subject.uri(self.consortium),
            self.token,
            str(self.expires_s),
        )
        return compose(_INVITE, list(zip(_INVITE_FIELDS, values, strict=True)))

    @classmethod
    def from_note(cls, note: Note) -> Invite:
        """Read a note; whether its signature holds is for whoever has the log key. Raises NoteError."""
        fields = read(note, _INVITE, _INVITE_FIELDS)
        try:
            consortium, subject = Subject.from_uri(fields["subject"])
        except CertificateError as wrong:
            raise NoteError(f"invite for nobody: {wrong}") from wrong
        if consortium != fields["consortium"] or not fields["expires"].isdecimal():
            raise NoteError("invite whose fields contradict each other")
        return cls(
            consortium=consortium,
            address=fields["address"],
            enrolment=fields["enrolment"],
            ca_fingerprint=Digest(fields["ca-fingerprint"]),
            subject=subject,
            token=fields["token"],
            expires_s=int(fields["expires"]),
        )


def new_token() -> str:
    """256 random bits, hex: the secret of one invite."""
    return secrets.token_hex(32)


def save_signer(path: Path, signer: Signer) -> None:
    """Write a private note key, mode 0600. A file already there is never replaced (HansaError)."""
    if path.exists():
        raise HansaError(f"{path} exists and a key is never overwritten; choose another path or move it away")
    write_file(path, signer.to_text().encode(), private=True)


def load_signer(path: Path) -> Signer:
    """Raises HansaError when the file is missing, readable by others or no private key."""
    data = read_file(path, "its owner can make one with `hansa key new`", private=True)
    try:
        return Signer.from_text(data.decode())
    except ValueError as wrong:
        why = str(wrong) if isinstance(wrong, NoteError) else "it is not text"
        raise HansaError(
            f"{path} holds no private key ({why}); restore it from a copy or make a new one"
        ) from None


def save_authority(folder: Path, authority: Authority) -> None:
    """Write ``ca.crt`` and ``ca.key`` (0600); an authority already there is never replaced (HansaError)."""
    if (folder / "ca.key").exists():
        raise HansaError(f"{folder / 'ca.key'} exists: a consortium's authority is made once")
    write_file(folder / "ca.crt", authority.certificate)
    write_file(folder / "ca.key", authority.key, private=True)


def load_authority(folder: Path) -> Authority:
    restore = "the coordinator's operator must restore it from a backup"
    certificate = read_file(folder / "ca.crt", restore)
    key = read_file(folder / "ca.key", restore, private=True)
    try:
        if tls_key_digest(key) != tls_key_digest(certificate):
            raise CertificateError("ca.key is not the key of ca.crt")
        return Authority(consortium_of(certificate), certificate, key)
    except CertificateError as wrong:
        raise HansaError(f"the authority in {folder} cannot be used: {wrong}; {restore}") from wrong


def write_file(path: Path, data: bytes, *, private: bool = False) -> None:
    """Put `data` at `path`, whole and durable or not at all; mode 0600 when private, else 0644.

    Makes the folders (0700 for a private file). Raises StoreError when the disk refuses.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700 if private else 0o777)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fchmod(file.fileno(), 0o600 if private else 0o644)
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
        _sync_folder(path.parent)
    except OSError as failed:
        raise StoreError(
            f"cannot write {path}: {failed.strerror}; make room or fix its permissions"
        ) from failed


def remove_file(path: Path) -> None:
    """Remove a file durably; nothing happens when there is none. Raises StoreError."""
    try:
        if path.exists():
            path.unlink()
            _sync_folder(path.parent)
    except OSError as failed:
        raise StoreError(f"cannot remove {path}: {failed.strerror}; fix its permissions") from failed


def read_file(path: Path, otherwise: str, *, private: bool = False) -> bytes:
    """The bytes of a key or certificate file. HansaError names the file, what is wrong, and `otherwise`.

    A private file that its group or others may open is refused.
    """
    try:
        if private and stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise HansaError(f"{path} is secret but others may open it; run `chmod 600 {path}`")
        return path.read_bytes()
    except FileNotFoundError:
        raise HansaError(f"{path} does not exist; {otherwise}") from None
    except OSError as failed:
        raise HansaError(f"cannot read {path}: {failed.strerror}; fix its permissions") from failed


def _load_table(path: Path) -> dict[str, str]:
    data = read_file(path, "this folder holds no seat: join with an invite from the coordinator's operator")
    try:
        table = tomlkit.parse(data.decode()).unwrap()
    except tomlkit.exceptions.TOMLKitError as wrong:
        raise ValueError(f"seat.toml is not TOML: {wrong}") from None
    if set(table) != set(_SEAT_KEYS) or not all(isinstance(value, str) for value in table.values()):
        raise ValueError(f"seat.toml does not hold exactly the texts {', '.join(_SEAT_KEYS)}")
    return table


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
