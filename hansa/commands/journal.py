"""`hansa journal`: check the log that everything else follows from."""

from __future__ import annotations

from typing import Annotated

import typer

from hansa.options import HOME, Home, Json
from hansa.output import answer

app = typer.Typer(no_args_is_help=True)


@app.callback()
def journals() -> None:
    """Check the log that everything else follows from."""


@app.command("verify")
def verify(
    home: Home = HOME,
    store: Annotated[
        str, typer.Option(envvar="HANSA_STORE", help="Journal store, when it is not in home.")
    ] = "",
    as_json: Json = False,
) -> None:
    """Read the whole journal and recompute every hash, without changing it; the coordinator may be running.

    \b
    Example:
      hansa journal verify
    """
    from hansa.hosting import verify_journal

    found = verify_journal(home, store)
    text = f"The journal is intact: {found.size} records, root {found.root}"
    answer({"size": found.size, "root": found.root, "verified": True}, text, as_json=as_json)
