"""What is said about a site's work, as typed notes: assignment, update, usage, evaluation.

Owns the fields and their writing; who signed and whether it is true is for the reader to check. Fields stand
in the note in the order of the dataclass, ``_`` written as ``-``; an absent value is ``-``.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, fields
from typing import ClassVar, Literal

from typing_extensions import Self

from commons.names import Digest
from commons.notes import Note, NoteError, compose, digest, read

_INTEGER = re.compile(r"0|[1-9][0-9]{0,18}")
_DECIMAL = re.compile(r"[0-9]{1,12}(\.[0-9]{1,18})?(e-?[0-9]{1,3})?")


@dataclass(frozen=True, kw_only=True)
class _Words:
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
class AssignmentNote(_Words):
    """The coordinator's order to one site, signed by the log key. The same order has the same bytes."""

    KIND = "hansa-assignment/v1"
    consortium: str
    run: str
    round: int
    work: Literal["train", "evaluate"]
    site: str
    base: str
    """State to start from, or to evaluate."""
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
class UpdateNote(_Words):
    """A site's update, signed by the site key."""

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
    loss: float
    """Mean training loss, nats per byte."""
    held_out_loss: float | None
    """Of the base state, on the site's held-out text."""


@dataclass(frozen=True, kw_only=True)
class UsageNote(_Words):
    """What a round took at a site, signed by the site key."""

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
    """Digest of the update's payload."""


@dataclass(frozen=True, kw_only=True)
class EvaluationNote(_Words):
    """Held-out loss of a state as one site measured it, signed by the site key."""

    KIND = "hansa-evaluation/v1"
    consortium: str
    run: str
    site: str
    state: str
    domain: str
    bytes: int
    loss: float


def _written(value: object) -> str:
    match value:
        case None:
            return "-"
        case float():
            if not math.isfinite(value) or value < 0:
                raise NoteError(f"a loss of {value} cannot be stated")
            return f"{value:.9f}"
        case _:
            return str(value)


def _value(name: str, kind: str, text: str) -> object:
    if kind == "int":
        if not _INTEGER.fullmatch(text):
            raise NoteError(f"field {name!r} is no whole number: {text[:40]!r}")
        return int(text)
    if kind.startswith("float"):
        if text == "-" and kind.endswith("None"):
            return None
        if not _DECIMAL.fullmatch(text):
            raise NoteError(f"field {name!r} is no decimal number: {text[:40]!r}")
        return float(text)
    if kind.startswith("Literal") and repr(text) not in kind:
        raise NoteError(f"field {name!r} cannot be {text[:40]!r}")
    return text
