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
        str,
        typer.Argument(
            help="The partner's name, NAME/ballot for its ballots, or the consortium's name for its log key."
        ),
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

    made = new_key(name, folder, stem=name.replace("/", "-"))
    text = [
        f"Wrote {made.secret} (secret: never give it away) and {made.public}.",
        f"Public key: {made.vkey}",
    ]
    answer(
        {"name": name, "key": made.secret, "public": made.public, "vkey": made.vkey}, text, as_json=as_json
    )


@app.command("sign")
def sign(
    text: Annotated[
        Path, typer.Argument(help="The text to sign, e.g. of `hansa proposal vote --print-note`.")
    ],
    key: Annotated[Path, typer.Option("--key", help="Your secret key (NAME.key).")],
    out: Annotated[
        Path | None, typer.Option("--out", help="Where to write the note; none: beside the text.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Sign a text on a machine that holds the key and needs no network; it is shown before it is signed.

    \b
    Example:
      hansa key sign ballot.txt --key keys/birch.key
    """
    from hansa.keys import sign_text

    note, shown = sign_text(text, key, out or text.with_suffix(".note"))
    answer({"note": note, "text": shown}, [shown, f"Signed: {note}"], as_json=as_json)
