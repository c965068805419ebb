"""Options that many commands share, said once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")]

Seat = Annotated[
    Path,
    typer.Option(
        "--seat",
        envvar="HANSA_SEAT",
        show_default=True,
        help="Folder that lets you speak to the coordinator; made by `hansa member join` or `hansa site join`.",
    ),
]
SEAT = Path("seat")

Home = Annotated[
    Path,
    typer.Option("--home", envvar="HANSA_HOME", help="The coordinator's folder; holds the operator's seat."),
]
HOME = Path("home")

Key = Annotated[
    Path | None, typer.Option("--key", help="Your secret key; without it: member.key in the seat folder.")
]
PrintNote = Annotated[
    bool, typer.Option("--print-note", help="Print the text to sign on another machine, and send nothing.")
]
Submit = Annotated[Path | None, typer.Option("--submit", help="Hand in the note that was signed there.")]
