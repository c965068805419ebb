"""`hansa key`: the keys that partners, sites and the consortium's log sign with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hansa.options import Json
from hansa.output import answer

app = typer.Typer(no_args_is_help=True)


@app.callback()
def keys() -> None:
    """Make the keys a partner signs with."""


@app.command("new")
def new(
    name: Annotated[
        str, typer.Argument(help="The partner's name, or the consortium's name for its log key.")
    ],
    folder: Annotated[Path, typer.Option("--folder", help="Where to write NAME.key and NAME.pub.")] = Path(),
    as_json: Json = False,
) -> None:
    """Make a signing key: NAME.key (secret, keep it) and NAME.pub (give it to the others).

    \b
    Example:
      hansa key new alder
    """
    from hansa.keys import new_key

    made = new_key(name, folder)
    text = [
        f"Wrote {made.secret} (secret: never give it away) and {made.public}.",
        f"Public key: {made.vkey}",
    ]
    answer(
        {"name": name, "key": made.secret, "public": made.public, "vkey": made.vkey}, text, as_json=as_json
    )
