"""Key files as the commands name them: NAME.key (secret) and NAME.pub (one line, the verifier key)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from commons.errors import ConfigError, StoreError
from commons.identity import load_signer, save_signer
from commons.notes import Signer, Verifier


@dataclass(frozen=True)
class KeyPair:
    secret: Path
    public: Path
    vkey: str


def new_key(name: str, folder: Path, *, stem: str = "") -> KeyPair:
    """Make a key pair; a key that exists is never overwritten (StoreError). `stem`: file name without ending."""
    secret, public = (folder / f"{stem or name}{ending}" for ending in (".key", ".pub"))
    for path in (secret, public):
        if path.exists():
            raise StoreError(f"{path} exists and was left as it is; move it away or choose another --folder")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        signer = Signer.generate(name)
    except ValueError as error:
        raise ConfigError([f"{name!r} cannot name a key: {error}"]) from None
    save_signer(secret, signer)
    public.write_text(signer.vkey + "\n")
    return KeyPair(secret, public, signer.vkey)


def read_public(path: Path) -> Verifier:
    """The verifier key in a .pub file, or of the .key file beside it. Raises ConfigError."""
    if path.suffix == ".key":
        return Verifier.from_vkey(load_signer(path).vkey)
    try:
        return Verifier.from_vkey(path.read_text().strip())
    except OSError as error:
        raise ConfigError([f"{path}: {error.strerror}; make it with `hansa key new {path.stem}`"]) from None
    except ValueError as error:
        raise ConfigError(
            [f"{path}: not a public key ({error}); ask its owner for the .pub file again"]
        ) from None
