"""`hansa member`: take a member's seat."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hansa.options import SEAT, Json
from hansa.output import answer

app = typer.Typer(no_args_is_help=True)


@app.callback()
def members() -> None:
    """Take a member's seat: watch runs, see budgets, propose and vote."""


@app.command("join")
def join(
    invite: Annotated[Path, typer.Argument(help="The invite the coordinator's operator gave you.")],
    key: Annotated[
        Path, typer.Option("--key", help="Your secret key; proposals and ballots are signed with it.")
    ],
    seat: Annotated[Path, typer.Option("--seat", envvar="HANSA_SEAT", help="Folder to write.")] = SEAT,
    as_json: Json = False,
) -> None:
    """Join as a member: exchange an invite for a seat folder. Nothing is sent before the server proves itself.

    \b
    Example:
      hansa member join home/invites/member-alder.invite --key keys/alder.key --seat alder/seat
    """
    from hansa.joining import join_as_member

    made = join_as_member(invite, key, seat)
    text = f"{made.subject.partner} has a seat in {seat}. Try: hansa budget show --seat {seat}"
    answer(
        {"seat": seat, "partner": made.subject.partner, "consortium": made.consortium}, text, as_json=as_json
    )
