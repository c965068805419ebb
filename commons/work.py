"""What is said about a site's work, as typed notes: assignment, update, usage, evaluation, measurement.

Owns the fields and their writing; who signed and whether it is true is for the reader to check. Fields stand
in the note in the order of the dataclass, ``_`` written as ``-``; an absent value is ``-``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import ClassVar, Literal

from typing_extensions import Self

from commons.judging import PARTS_MAX
from commons.names import Digest
from commons.notes import Note, NoteError, compose, digest, read

_INTEGER = re.compile(r"0|[1-9][0-9]{0,18}")
_DECIMAL = re.compile(r"[0-9]{1,12}(\.[0-9]{1,18})?(e-?[0-9]{1,3})?")
_LOSS_BELOW = 1e12
"""Views add losses up and show them; what no number can hold would stop them for everybody."""


@dataclass(frozen=True, kw_only=True)
class Words:
    KIND: ClassVar[str]

    @property
    def text(self) -> str:
        """What is signed. Raises NoteError for a value no note can hold."""
        named = [(f.name.replace("_", "-"), _written(getattr(self, f.name))) for f in fields(self)]
        return compose(self.KIND, named)

    @property
    def digest(self) -> Digest:
        """SHA-256 of the signed text, whoever signed it."""
        return digest(self.text.encode())

    @classmethod
    def from_note(cls, note: Note) -> Self:
        """Read a note of this kind. Raises NoteError naming the field that cannot be."""
        found = read(note, cls.KIND, [f.name.replace("_", "-") for f in fields(cls)])
        values = {f.name: _value(f.name, str(f.type), found[f.name.replace("_", "-")]) for f in fields(cls)}
        return cls(**values)


@dataclass(frozen=True, kw_only=True)
class AssignmentNote(Words):
    """The coordinator's order to one site, signed by the log key. The same order has the same bytes."""

    KIND = "hansa-assignment/v1"
    consortium: str
    run: str
    round: int
    work: Literal["train", "evaluate", "probe"]
    site: str
    base: str
    """State to start from, to evaluate, or to measure on the probe."""
    charter_version: int
    charter: str
    expert_map: str
    rounds: int
    lease: str
    lease_until: int
    """Unix ms."""
    hold: str
    """Hold id; `-` when nothing is charged."""
    hold_micro: int


@dataclass(frozen=True, kw_only=True)
class UpdateNote(Words):
    """A site's update, signed by the site key."""

    KIND = "hansa-update/v2"
    consortium: str
    run: str
    round: int
    site: str
    base: str
    manifest: str
    payload: str
    payload_bytes: int
    steps: int
    tokens: int
    loss: float | None
    """Mean training loss, nats per byte; withheld, as the other, where updates are noised."""
    held_out_loss: float | None
    """Of the base state, on the site's held-out text."""
    routed: str = "-"
    """Tokens given to each expert in the round, summed over layers (`routed_text`); withheld where updates are noised or
    masked."""

    @classmethod
    def from_note(cls, note: Note) -> UpdateNote:
        """Also reads `hansa-update/v1`, which older journals hold."""
        if not note.text.startswith(f"{_UpdateNoteV1.KIND}\n"):
            return super().from_note(note)
        return _OldUpdate(**vars(_UpdateNoteV1.from_note(note)))


@dataclass(frozen=True, kw_only=True)
class _UpdateNoteV1(Words):
    KIND = "hansa-update/v1"
    consortium: str
    run: str
    round: int
    site: str
    base: str
    manifest: str
    payload: str
    payload_bytes: int
    steps: int
    tokens: int
    loss: float | None
    held_out_loss: float | None


@dataclass(frozen=True, kw_only=True)
class _OldUpdate(UpdateNote):
    """A first-version note with the fields of the second; its text and digest are those that were signed."""

    @property
    def text(self) -> str:
        return _UpdateNoteV1(**{f.name: getattr(self, f.name) for f in fields(_UpdateNoteV1)}).text


@dataclass(frozen=True, kw_only=True)
class UsageNote(Words):
    """What a round took at a site, signed by the site key."""

    KIND = "hansa-usage/v2"
    consortium: str
    run: str
    round: int
    site: str
    lease: str
    device: str
    """Kind of device, as the rate card names it."""
    device_ids: str
    """The devices themselves, comma-separated: no two records may claim one of them for the same time."""
    precision: str
    started_ms: int
    ended_ms: int
    """Of the work under this lease, by the site's clock, Unix ms; the site never lets one record begin before
    its last one ended."""
    device_ms: int
    """Summed over the devices."""
    steps: int
    tokens: int
    gflop: int
    energy_j: int | None
    """Where the device tells."""
    update: str
    """Digest of the update's payload."""

    @classmethod
    def from_note(cls, note: Note) -> UsageNote:
        """Also reads `hansa-usage/v1`, which older journals hold; a site may no longer sign one."""
        if not note.text.startswith(f"{_UsageNoteV1.KIND}\n"):
            return super().from_note(note)
        old = _UsageNoteV1.from_note(note)
        return _OldUsage(**vars(old), device_ids="-", precision="any", energy_j=None)


@dataclass(frozen=True, kw_only=True)
class _UsageNoteV1(Words):
    KIND = "hansa-usage/v1"
    consortium: str
    run: str
    round: int
    site: str
    lease: str
    device: str
    started_ms: int
    ended_ms: int
    device_ms: int
    steps: int
    tokens: int
    gflop: int
    update: str


@dataclass(frozen=True, kw_only=True)
class _OldUsage(UsageNote):
    """A first-version record with the fields of the second; its text and digest are those that were signed."""

    @property
    def text(self) -> str:
        return _UsageNoteV1(**{f.name: getattr(self, f.name) for f in fields(_UsageNoteV1)}).text


@dataclass(frozen=True, kw_only=True)
class EvaluationNote(Words):
    """Held-out loss of a state as one site measured it, signed by the site key."""

    KIND = "hansa-evaluation/v1"
    consortium: str
    run: str
    site: str
    state: str
    domain: str
    bytes: int
    loss: float


@dataclass(frozen=True, kw_only=True)
class ProbeNote(Words):
    """Loss of a state on the charter's probe as one site measured it, signed by the site key.

    With lean routing it is that of the trunk and the site's own experts.
    """

    KIND = "hansa-probe/v1"
    consortium: str
    run: str
    round: int
    """The open round in which it was asked for."""
    site: str
    probe: str
    """Digest of the text."""
    state: str
    losses: tuple[float, ...]
    """One for each part of the probe."""

    @property
    def loss(self) -> float:
        """Over all parts, which have as many rows each."""
        return sum(self.losses) / len(self.losses)


ROUTED_CHARS_MAX = 6000
"""An update note fits into its message; counts of more experts than that are withheld."""


def routed_text(tokens: Mapping[str, int]) -> str:
    """``expert=tokens``, comma-separated in order of the experts' names; `-` for none, or too many."""
    text = ",".join(f"{expert}={count}" for expert, count in sorted(tokens.items()))
    return text if 0 < len(text) <= ROUTED_CHARS_MAX else "-"


def routed_tokens(text: str) -> dict[str, int]:
    """Back from `routed_text`. Raises NoteError when it is none."""
    if text == "-":
        return {}
    pairs = [entry.partition("=")[::2] for entry in text.split(",")]
    if len(text) > ROUTED_CHARS_MAX or not all(_INTEGER.fullmatch(count) for _, count in pairs):
        raise NoteError(f"field 'routed' holds no counts: {text[:40]!r}")
    found = {expert: int(count) for expert, count in pairs}
    if routed_text(found) != text:
        raise NoteError(f"field 'routed' is not in order: {text[:40]!r}")
    return found


def _written(value: object) -> str:
    match value:
        case None:
            return "-"
        case float():
            if not math.isfinite(value) or value < 0:
                raise NoteError(f"a loss of {value} cannot be stated")
            return f"{value:.9f}"
        case tuple():
            return ",".join(_written(one) for one in value)
        case _:
            return str(value)


def _value(name: str, kind: str, text: str) -> object:
    if text == "-" and kind.endswith("None"):
        return None
    if kind.startswith("int"):
        if not _INTEGER.fullmatch(text):
            raise NoteError(f"field {name!r} is no whole number: {text[:40]!r}")
        return int(text)
    if kind.startswith("float"):
        if not _DECIMAL.fullmatch(text):
            raise NoteError(f"field {name!r} is no decimal number: {text[:40]!r}")
        if not (value := float(text)) < _LOSS_BELOW:
            raise NoteError(f"field {name!r} is out of all bounds: {text[:40]!r}")
        return value
    if kind.startswith("tuple"):
        return tuple(_value(name, "float", one) for one in text.split(",", PARTS_MAX))
    if kind.startswith("Literal") and repr(text) not in kind:
        raise NoteError(f"field {name!r} cannot be {text[:40]!r}")
    return text
