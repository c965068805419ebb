"""The coordinator's folder: what founds a consortium, and the keys and certificates it is served with."""

from __future__ import annotations

import fcntl
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from commons import charter_file
from commons.charter import Charter
from commons.errors import HansaError, Refusal, Refused, StoreError
from commons.experts.tokenizer import FILE, read_named
from commons.identity import (
    Authority,
    Seat,
    Subject,
    create_authority,
    csr,
    issue,
    load_authority,
    load_signer,
    read_file,
    save_authority,
    tls_keypair,
)
from commons.notes import Signer
from governance.consortium import Consortium
from governance.ledger import decide_grants

SERVED_DAYS = 365


@dataclass(frozen=True)
class Served:
    """TLS identity of the coordinator's ports, PEM. Made anew at each start; clients trust the authority."""

    tls_key: bytes
    certificate: bytes
    authority: bytes


@dataclass(frozen=True)
class Home:
    folder: Path
    charter: Charter
    founding: tuple[bytes, ...]
    signer: Signer
    authority: Authority
    tokenizer: Path | None
    """The charter's tokenizer.json, where it names one."""

    @classmethod
    def open(cls, folder: Path) -> Home:
        """Read the home, and make the authority at the first start. Raises HansaError naming what is missing."""
        charter = charter_file.load(folder / "charter.toml")
        signer = load_signer(folder / "log.key")
        asked = "each member signs the charter with `hansa charter sign`"
        notes = tuple(read_file(file, asked) for file in sorted((folder / "founding").glob("*.note")))
        if not (folder / "ca" / "ca.key").exists():
            save_authority(folder / "ca", create_authority(charter.consortium.name))
        return cls(folder, charter, notes, signer, load_authority(folder / "ca"), _tokenizer(folder, charter))

    def found(self, consortium: Consortium) -> None:
        """Write the first records; nothing when they stand already. Raises Refused when the charter does not hold."""
        key = self.signer.vkey
        done = consortium.commit(
            lambda now_ms: consortium.members.decide_found(self.charter, self.founding, key, now_ms)
        )
        if isinstance(done, Refusal):
            raise Refused(done)
        consortium.commit(lambda now_ms: decide_grants(consortium.ledger, consortium.charter, now_ms))

    def served(self) -> Served:
        key = tls_keypair()
        certificate = issue(self.authority, csr(key), Subject("coordinator"), days=SERVED_DAYS)
        return Served(key, certificate, self.authority.certificate)

    def write_operator_seat(self, address: str) -> Seat:
        """The seat by which this machine's operator speaks; made anew at each start."""
        key = tls_keypair()
        return Seat.write(
            self.folder / "operator",
            consortium=self.charter.consortium.name,
            address=address,
            subject=Subject("operator"),
            log_key=self.signer.vkey,
            tls_key=key,
            certificate=issue(self.authority, csr(key), Subject("operator"), days=SERVED_DAYS),
            authority=self.authority.certificate,
            charter=charter_file.canonical(self.charter),
            founding=self.founding,
        )


def _tokenizer(folder: Path, charter: Charter) -> Path | None:
    if not charter.model.tokenizer.file:
        return None
    read_named(folder / FILE, charter.model.tokenizer, "the operator puts the charter's there")
    return folder / FILE


class HomeLock:
    """One coordinator per home: held as long as the process lives."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "coordinator.lock"
        self._file: IO[str] | None = None

    def acquire(self) -> None:
        """Raises StoreError when another process holds it, HansaError when the folder cannot be used."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("a")
        except OSError as error:
            raise HansaError(
                f"cannot use {self._path.parent}: {error.strerror}; choose another home"
            ) from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.release()
            where = self._path.parent
            raise StoreError(
                f"another coordinator runs in {where}; stop it, or choose another home"
            ) from None

    def release(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
