"""`hansa budget statement`, `verify` and `countersign`: a partner's bill, checked and agreed to."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from commons.words import Word
from hansa.options import SEAT, Json, Seat
from hansa.output import answer

File = Annotated[Path, typer.Argument(help="What `hansa budget statement --format json` wrote.")]


class Format(Word):
    NOTE = "note"
    FOCUS = "focus"
    HLEDGER = "hledger"
    BEANCOUNT = "beancount"
    JSON = "json"


def statement(
    partner: Annotated[str, typer.Argument(help="Whose; a partner reads its own, the operator any.")],
    period: Annotated[
        str, typer.Option("--period", help="2026-11, 2026-q4, current, or last: the latest that is over.")
    ] = "current",
    wanted: Annotated[
        Format,
        typer.Option(
            "--format",
            help="note: to read; focus: FinOps FOCUS as CSV; hledger, beancount: for the books; json: for verify.",
        ),
    ] = Format.NOTE,
    out: Annotated[Path | None, typer.Option("--out", help="Write it to this file.")] = None,
    seat: Seat = SEAT,
    as_json: Json = False,
) -> None:
    """Show a partner's statement.

    What a month or quarter brought and cost, signed by the consortium and checked before it is shown: every line against the journal, the sums, the balances and the prices.

    \b
    Example:
      hansa budget statement alder --period last --seat alder/seat
      hansa budget statement alder --period 2026-11 --format json --out november.json --seat alder/seat
    """
    from commons.identity import write_file
    from governance.statements.bill import FORMATS, fetch_bundle, summary
    from hansa.chamber import Chamber

    with Chamber.at(seat) as chamber:
        bundle = fetch_bundle(chamber, chamber.seat.log_verifier, partner, period)
    note = bundle.note
    text = FORMATS[wanted.value](bundle)
    if out is not None:
        write_file(out, text.encode())
        state = "closed" if note.closed == "yes" else "still open"
        text = f"Wrote {out}: the statement of {partner} for {note.period} ({state}), {note.lines} lines, all checked."
    facts = summary(note, countersigned=bundle.countersign is not None)
    answer({**facts, "file": out}, text.removesuffix("\n"), as_json=as_json)


def verify(
    file: File,
    key: Annotated[
        str,
        typer.Option("--key", help="The consortium's log key, or a file with it; from anybody you trust."),
    ] = "",
    seat: Annotated[Path | None, typer.Option("--seat", help="Or a seat, whose log key is taken.")] = None,
    as_json: Json = False,
) -> None:
    """Check a statement file offline.

    Who signed it, what its lines add up to, that balances and lines are the journal's, and the prices. Needs nothing but the file and the log's key; ends with code 1 when something does not hold.

    \b
    Example:
      hansa budget verify november.json --seat alder/seat
      hansa budget verify november.json --key "$(cat quay.pub)"
    """
    from governance.statements.bill import summary
    from hansa.billing import examine_file

    found = examine_file(file, key=key, seat=seat)
    note, problem = found.note, found.problem
    text = [
        f"{number}. {'does not hold' if check.problem else 'ok'}: {check.what}"
        for number, check in enumerate(found.checks, 1)
    ]
    text.append(
        f"{file} does NOT hold: {problem}" if problem else f"{file} holds: {note.partner}, {note.period}."
    )
    facts = {
        **summary(note, countersigned=found.countersigned),
        "verified": not problem,
        "checks": [{"what": check.what, "problem": check.problem} for check in found.checks],
    }
    answer(facts, text, as_json=as_json)
    if problem:
        raise typer.Exit(1)


def countersign(
    file: File,
    seat: Seat = SEAT,
    key: Annotated[
        Path | None, typer.Option("--key", help="Your secret key; without it: member.key in the seat folder.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Agree with a statement.

    Checks the file as `verify` does, signs agreement with your key and hands it in. Only for your own statement of a closed period; given again, it is the same agreement.

    \b
    Example:
      hansa budget countersign november.json --seat alder/seat
    """
    from governance.statements.bill import summary
    from hansa.billing import countersign as agree

    note, index = agree(seat, key, file)
    text = f"{note.partner} countersigned its statement for {note.period} (journal record {index})."
    answer({**summary(note, countersigned=True), "index": index}, text, as_json=as_json)
