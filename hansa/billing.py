"""A partner's statement as a file on this side: verified offline, countersigned."""

from __future__ import annotations

from pathlib import Path

from commons.claims import CountersignNote
from commons.errors import HansaError
from commons.identity import read_file
from commons.notes import parse
from commons.statement import StatementNote
from commons.statement_proof import Bundle
from governance.statements.bill import Examined, examine
from hansa.chamber import Chamber
from hansa.journals import log_key, seat_key
from hansa.signing import member_key


def examine_file(file: Path, *, key: str, seat: Path | None) -> Examined:
    """Check a bundle file against a log's key (text or file) or a seat's. Raises HansaError when it is no bundle."""
    if not key and seat is None:
        raise HansaError(
            "whose statement? Give the consortium's log key (--key) or a seat that knows it (--seat)"
        )
    log = log_key(key) if key else seat_key(seat or Path())
    return examine(_read(file), log)


def countersign(seat: Path, key: Path | None, file: Path) -> tuple[StatementNote, int]:
    """Check the file, sign agreement with the statement of its closed period, hand it in; the journal index.

    Asked twice: the first index. Raises HansaError before anything is signed when the file does not hold, its period
    goes on, or it is another partner's.
    """
    with Chamber.at(seat) as chamber:
        signer, bundle = member_key(seat, key), _read(file)
        found = examine(bundle, chamber.seat.log_verifier)
        note = found.note
        if found.problem:
            raise HansaError(f"{file} does not hold: {found.problem}; nothing was signed")
        if note.closed != "yes":
            message = f"{note.period} goes on; a statement is countersigned when its period is closed"
            raise HansaError(f"{message}: fetch it again then")
        if note.partner != signer.name:
            raise HansaError(
                f"{file} is the statement of {note.partner}; {signer.name} cannot countersign it"
            )
        claim = CountersignNote(
            consortium=note.consortium, partner=note.partner, period=note.period, statement=note.digest
        )
        return note, chamber.submit(signer.sign(claim.text))


def _read(file: Path) -> Bundle:
    data = read_file(file, "give the file that `hansa budget statement --format json` wrote")
    try:
        bundle = Bundle.read(data)
        StatementNote.from_note(parse(bundle.statement.encode()))
    except ValueError as wrong:
        raise HansaError(
            f"{file} does not hold: {wrong}; whoever gave it to you must send another"
        ) from wrong
    return bundle
