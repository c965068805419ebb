"""A partner's statement as whoever reads it has it: fetched through a seat and checked, and written in a format.

What the coordinator says is believed only when every check of `commons.statement_proof` holds and each charge fits its
rate card. Amounts are micro.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar

from commons.errors import HansaError
from commons.notes import NoteError, Verifier, parse
from commons.statement import Line, StatementNote
from commons.statement_proof import Bundle, Check, LinesView, ProofView, StatementView, verify
from commons.views import View
from governance.statements import reading
from governance.statements.statement import Statement

PRICED = "each charge is no more than its rate card says"
V = TypeVar("V", bound=View)


class Reader(Protocol):
    """A seat that reads views. Raises HansaError."""

    def read(self, kind: type[V], key: str = "") -> V: ...


@dataclass(frozen=True)
class Examined:
    """What came of checking a statement, in order; a check that does not hold is the last one."""

    note: StatementNote
    checks: tuple[Check, ...]
    countersigned: bool

    @property
    def problem(self) -> str:
        """Empty: all of it holds."""
        return self.checks[-1].problem


def fetch_bundle(seat: Reader, log: Verifier, partner: str, period: str) -> Bundle:
    """The whole statement. PERIOD may be `current` or `last`.

    Raises Refused as the coordinator does, and HansaError when what it sends is no statement or does not hold.
    """
    view = seat.read(StatementView, f"{partner}/{period}")
    try:
        note = StatementNote.from_note(parse(view.statement.encode()))
    except NoteError as wrong:
        raise HansaError(f"the coordinator's answer is no statement ({wrong}); tell its operator") from wrong
    if note.partner != partner or period not in (note.period, "current", "last"):
        raise HansaError(f"asked for {partner}, {period}, the coordinator sent {note.partner}, {note.period}")
    asked = f"{partner}/{note.period}/{note.journal_size}"
    bundle = Bundle(
        **dict(view),
        format="hansa-statement-bundle/v1",
        lines=tuple(_lines(seat, f"{asked}/lines", note.lines)),
        earlier=tuple(_lines(seat, f"{asked}/earlier", note.earlier)),
        proof=seat.read(ProofView, asked).proof,
    )
    found = examine(bundle, log)
    if found.problem:
        raise HansaError(
            f"the coordinator's statement of {partner} for {note.period} does not hold: {found.problem}; "
            "nothing was written; tell the other members"
        )
    return bundle


def examine(bundle: Bundle, log: Verifier) -> Examined:
    """Check everything offline, to the first thing that does not hold. The bundle has a note that can be read."""
    checks = [*verify(bundle, log)]
    if not checks[-1].problem:
        checks.append(_prices(bundle))
    return Examined(bundle.note, tuple(checks), bundle.countersign is not None)


def read_statement(bundle: Bundle) -> Statement:
    """Raises HansaError when the lines are no complete statement."""
    try:
        return reading.read_statement(bundle.note, bundle.lines, bundle.earlier)
    except (LookupError, TypeError, ValueError) as wrong:
        raise HansaError(f"the lines of the statement cannot be read: {wrong!r}") from wrong


def _lines(seat: Reader, key: str, count: int) -> Iterator[Line]:
    """All pages; ends with an error when the coordinator sends more lines than it signed, or none."""
    start: int | None = 0
    while start is not None:
        page = seat.read(LinesView, f"{key}/{start}")
        yield from page.lines
        reached = start + len(page.lines)
        if reached > count or page.following not in (None, reached) or page.following == start:
            raise HansaError(f"the coordinator signed {count} records and sends others; tell its operator")
        start = page.following


def _prices(bundle: Bundle) -> Check:
    try:
        found = read_statement(bundle).problems()
    except (HansaError, ValueError) as wrong:
        return Check(PRICED, str(wrong))
    return Check(PRICED, "; ".join(found[:5]))


def as_json(bundle: Bundle) -> str:
    """The file that `verify` and `countersign` read."""
    return bundle.data.decode()


def as_note(bundle: Bundle) -> str:
    """The signed note, and the statement for a person under it."""
    from governance.statements.note_page import statement_page

    page = statement_page(read_statement(bundle)).strip("\n")
    if bundle.note.closed == "no":
        agreed = "Not to be countersigned yet: the period goes on."
    else:
        agreed = f"Countersigned by {bundle.note.partner}: {'yes' if bundle.countersign else 'no'}."
    return f"{bundle.statement}\n{page}\n\n{agreed}\n"


def as_focus(bundle: Bundle) -> str:
    """FinOps FOCUS, as CSV."""
    from governance.statements.focus import focus_csv

    return focus_csv(read_statement(bundle))


def as_hledger(bundle: Bundle) -> str:
    """An hledger journal with balance assertions."""
    from governance.statements.hledger import hledger_journal

    return hledger_journal(read_statement(bundle))


def as_beancount(bundle: Bundle) -> str:
    """A beancount file with balance assertions."""
    from governance.statements.beancount import beancount_file

    return beancount_file(read_statement(bundle))


FORMATS = {
    "note": as_note,
    "focus": as_focus,
    "hledger": as_hledger,
    "beancount": as_beancount,
    "json": as_json,
}


def summary(note: StatementNote, *, countersigned: bool) -> dict[str, object]:
    """The statement's facts, for a program."""
    return {**vars(note), "statement": note.digest, "countersigned": countersigned}
