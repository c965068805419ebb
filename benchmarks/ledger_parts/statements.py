"""How long a partner's statement over a long journal takes: the coordinator's own views, without the network.

The journal is one that `settle.fill` made: all its transfers are in one period, half of them concern the partner that
asks. Nothing is added to it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.ledger_parts.settle import Till
from commons import notes
from commons.certificates import Subject
from commons.errors import Refusal
from commons.notes import Signer
from commons.statement import Line, StatementNote
from commons.statement_proof import Bundle, LinesView, ProofView, StatementView
from commons.views import View
from governance.statements.issuing import PersonalReader, Statements

_PARTNER = "alder"
_TIMES = 5


@dataclass(frozen=True)
class Bundled:
    """A whole statement with all its lines, page by page, as `hansa budget statement --format json` asks for it."""

    lines: int
    megabytes: float
    """Of the file."""
    seconds: float
    """Until everything was there; the file is written and checked by whoever asked."""


def statement_s(url: str | Path) -> float:
    """Seconds for one partner's statement, the slowest of five: note, balances with their places, signature."""
    with _statements(url) as statements:
        return max(_timed(statements) for _ in range(_TIMES))


def bundle(url: str | Path) -> Bundled:
    """The statement, all pages of its lines and earlier records, and the proof that they are in the journal."""
    with _statements(url) as statements:
        began = time.perf_counter()
        view = _statement(statements)
        note = StatementNote.from_note(notes.parse(view.statement.encode()))
        asked = f"{_PARTNER}/{note.period}/{note.journal_size}"
        lines = _pages(statements, f"{asked}/lines")
        earlier = _pages(statements, f"{asked}/earlier")
        proof = _read(statements.read_proof, asked)
        taken = time.perf_counter() - began
        assert isinstance(proof, ProofView)
        whole = Bundle(
            **dict(view),
            format="hansa-statement-bundle/v1",
            lines=tuple(lines),
            earlier=tuple(earlier),
            proof=proof.proof,
        )
        return Bundled(note.lines, round(len(whole.data) / 1e6, 1), taken)


def _timed(statements: Statements) -> float:
    began = time.perf_counter()
    _statement(statements)
    return time.perf_counter() - began


def _statement(statements: Statements) -> StatementView:
    view = _read(statements.read, f"{_PARTNER}/current")
    assert isinstance(view, StatementView)
    return view


def _pages(statements: Statements, key: str) -> list[Line]:
    lines: list[Line] = []
    start: int | None = 0
    while start is not None:
        page = _read(statements.read_lines, f"{key}/{start}")
        assert isinstance(page, LinesView)
        lines += page.lines
        start = page.following
    return lines


def _read(reader: PersonalReader, key: str) -> View:
    found = reader(Subject("member", _PARTNER), key)
    assert not isinstance(found, Refusal), found
    return found


@contextmanager
def _statements(url: str | Path) -> Iterator[Statements]:
    till = Till(url)
    try:
        yield Statements(till.consortium, Signer("bench", bytes(32)))
    finally:
        till.close()
