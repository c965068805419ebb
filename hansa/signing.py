"""How a member's words come to be signed: here, with the key in the seat or another one, or on another machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from commons.errors import ConfigError, HansaError
from commons.identity import load_signer
from commons.notes import NOTE_BYTES_MAX, Note, NoteError, Signer, parse
from hansa.chamber import Chamber
from hansa.joining import MEMBER_KEY


@dataclass(frozen=True)
class Signing:
    seat: Path
    key: Path | None = None
    """None: the seat's."""
    print_note: bool = False
    """Nothing is signed or sent: the text is shown, to be signed elsewhere."""
    submit: Path | None = None
    """A note that was signed elsewhere."""


def say(chamber: Chamber, signing: Signing, make: Callable[[str], str]) -> int | str:
    """Journal index of the note, or its text where that is to be shown. `make` composes it for a member, by name.

    Raises ConfigError for words that no note can hold, and for a file that is no signed note, or says something else
    than the command.
    """
    if signing.submit is not None:
        note = parse(read_note(signing.submit))
        _check_says(note, make(note.signatures[0].name.partition("/")[0]), signing.submit)
        return chamber.submit(note.data)
    try:
        if signing.print_note:
            return make(chamber.seat.subject.partner)
        signer = member_key(signing.seat, signing.key)
        return chamber.submit(signer.sign(make(signer.name.partition("/")[0])))
    except NoteError as error:
        raise ConfigError([f"it cannot be written down: {error}"]) from None


_WHAT = ("proposal", "choice", "motion", "to", "amount-micro", "feature", "parameters")
"""Fields of notes that the words of a command decide; others, such as the nonce, are new each time."""


def _check_says(note: Note, wanted: str, file: Path) -> None:
    has, asked = _fields(note.text), _fields(wanted)
    for key in _WHAT:
        if key in has and key in asked and has[key] != asked[key]:
            raise ConfigError(
                [
                    f"{file} says {key} {has[key]!r}, the command {asked[key]!r}: nothing is handed in; give the words it was signed for"
                ]
            )


def _fields(text: str) -> dict[str, str]:
    return {key: value for key, _, value in (line.partition(" ") for line in text.splitlines())}


def read_note(file: Path) -> bytes:
    """Raises ConfigError when the file is no signed note."""
    try:
        data = file.read_bytes() if file.stat().st_size <= NOTE_BYTES_MAX else b""
        parse(data)
    except OSError as error:
        raise ConfigError([f"{file}: {error.strerror}"]) from None
    except NoteError as error:
        raise ConfigError([f"{file}: {error} (sign the text with `hansa key sign`)"]) from None
    return data


def member_key(seat: Path, key: Path | None) -> Signer:
    """The key given, or the one kept in the seat. Raises HansaError when there is neither."""
    if key is None and not (seat / MEMBER_KEY).exists():
        raise HansaError(
            f"{seat} holds no {MEMBER_KEY}: only members sign proposals and ballots; name yours with --key"
        )
    return load_signer(key or seat / MEMBER_KEY)
