"""Key files as the commands name them: NAME.key (secret) and NAME.pub (one line, the verifier key)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from commons.errors import ConfigError, StoreError
from commons.identity import load_signer, save_signer, write_file
from commons.notes import NOTE_BYTES_MAX, NoteError, Signer, Verifier, parse


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


def sign_text(text: Path, key: Path, out: Path) -> tuple[Path, str]:
    """Sign exactly the bytes of a file: the note's path, and what was signed. Raises ConfigError, naming what no note can
    hold: other line ends, a byte order mark, invisible characters."""
    try:
        data = text.read_bytes() if text.stat().st_size <= NOTE_BYTES_MAX else b""
        words = data.decode("utf-8")
        if not words or words.startswith("\ufeff"):
            raise NoteError("it is empty, too large, or begins with a byte order mark")
        note = load_signer(key).sign(words)
        parse(note)
    except OSError as error:
        raise ConfigError([f"{text}: {error.strerror}"]) from None
    except ValueError as error:
        raise ConfigError([f"{text} cannot be signed: {error}"]) from None
    write_file(out, note)
    return out, words
