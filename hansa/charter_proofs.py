"""What `hansa charter` does with proofs: fetch one, check one from anywhere, vouch for what it proves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from commons import charter_file
from commons.anchors import Anchor
from commons.chain import VerifiedCharter, Wanted
from commons.chain_file import FILE_BYTES_MAX, ChainFile
from commons.charter import Charter
from commons.errors import ConfigError, HansaError, Refusal, Refused
from commons.identity import write_file
from commons.lodging import LodgedBallot
from hansa.chamber import Chamber
from hansa.charters import load_charter
from hansa.signing import member_key


@dataclass(frozen=True)
class Checked:
    """What a proof file comes to."""

    verified: VerifiedCharter | None
    refusal: Refusal | None
    convicts: bool
    """The coordinator's key has signed what was refused: the file is evidence against it."""
    founding: str
    """Digest of the founding charter it begins with."""

    @property
    def facts(self) -> dict[str, Any]:
        found = self.verified
        return {
            "holds": found is not None,
            "founding": self.founding,
            "version": found.version if found else None,
            "digest": found.digest if found else None,
            "steps": list(found.steps) if found else [],
            "refused": str(self.refusal) if self.refusal else None,
            "evidence": self.convicts,
        }


def fetch_proof(
    seat: Path, out: Path | None, *, whole: bool, lodged: Sequence[Path] = ()
) -> tuple[ChainFile, VerifiedCharter]:
    """Ask the coordinator for its proof, check it from the founding charter in the seat, keep it in `out`.

    `lodged`: files of ballots that sites keep, which its votes have to show. Raises Refused when it does not hold; it is kept
    all the same.
    """
    with Chamber.at(seat) as chamber:
        file = replace(chamber.chain(Wanted(whole=whole)), lodged=_lodged(lodged))
    if out is not None:
        write_file(out, file.dump())
    verified = file.verify()
    if isinstance(verified, Refusal):
        raise Refused(verified)
    return file, verified


def _lodged(paths: Sequence[Path]) -> tuple[LodgedBallot, ...]:
    found = []
    for path in paths:
        try:
            found.append(LodgedBallot.load(path.read_bytes()))
        except OSError as error:
            raise ConfigError([f"{path}: {error.strerror}"]) from None
        except ValueError as error:
            raise ConfigError([f"{path}: {error}"]) from None
    return tuple(LodgedBallot.together(found))


def check_proof(path: Path, founding: Path | None) -> Checked:
    """Check a proof file offline. `founding`: the founding charter one trusts (TOML or canonical JSON); none: the one in
    the file, whose digest is told. Raises ConfigError when the file is none or begins with another charter."""
    try:
        data = path.read_bytes() if path.stat().st_size <= FILE_BYTES_MAX else b""
        file = ChainFile.load(data)
        answer = file.verify()
    except OSError as error:
        raise ConfigError([f"{path}: {error.strerror}"]) from None
    except ValueError as error:
        raise ConfigError([f"{path}: {error}"]) from None
    digest = charter_file.digest(file.founding)
    if founding is not None and charter_file.digest(_trusted(founding)) != digest:
        raise ConfigError(
            [
                f"{path} begins with charter {digest}, {founding} is another one: trust neither it nor its proof"
            ]
        )
    if isinstance(answer, VerifiedCharter):
        return Checked(answer, None, False, digest)
    return Checked(None, answer, file.signed() is not None, digest)


def vouch(seat: Path, key: Path | None) -> tuple[int, VerifiedCharter]:
    """Recount every vote since the founding, then sign and hand in an anchor of the charter in force; its index."""
    _, verified = fetch_proof(seat, None, whole=True)
    with Chamber.at(seat) as chamber:
        signer = member_key(seat, key)
        note = Anchor(
            consortium=chamber.seat.consortium,
            member=signer.name,
            charter_version=verified.version,
            charter=verified.digest,
        )
        return chamber.submit(signer.sign(note.text)), verified


def versions(seat: Path, old: str, new: str) -> tuple[Charter, Charter]:
    """Two charters to compare, each a file or a version number; `new` empty: in force; `old` empty: the one before it."""
    latest = _version(seat, new) if new else _version(seat, "")
    before = old or (str(latest.version - 1) if latest.version > 1 else "1")
    return _version(seat, before), latest


def _version(seat: Path, which: str) -> Charter:
    from governance.quoting import charter_in_force

    if which and not which.isdecimal():
        return load_charter(Path(which))
    with Chamber.at(seat) as chamber:
        return charter_in_force(chamber, int(which) if which else None)


def _trusted(founding: Path) -> Charter:
    if founding.suffix != ".json":
        return load_charter(founding)
    try:
        return charter_file.from_canonical(founding.read_bytes())
    except (OSError, ValueError) as error:
        raise HansaError(f"{founding}: {error}") from None
