"""What the dashboard needs of a seat: to read views, to watch them, to hand in notes. `hansa.dashboard` gives it one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar

from commons.certificates import Subject
from commons.log import Proof
from commons.views import View

V = TypeVar("V", bound=View)


@dataclass(frozen=True)
class Receipt:
    """That a note stands in the journal: the proof was checked against the log's key before it came here."""

    proof: Proof
    leaf: bytes
    """The record; its body is the note."""


class Office(Protocol):
    """One seat, to be called from any thread. Every call raises Refused, or Unreachable while nobody answers."""

    @property
    def consortium(self) -> str: ...

    @property
    def subject(self) -> Subject:
        """Whose seat it is: the views are what that member, or the operator, is shown."""

    @property
    def log_key(self) -> str:
        """The journal's verifier key (C2SP vkey)."""

    def read(self, kind: type[V], key: str = "") -> V: ...

    def watch(self, kind: type[V], key: str = "") -> Iterator[V]:
        """The view now and each time it changes."""

    def submit(self, note: bytes) -> Receipt: ...
