"""`hansa release`: publish a run's model, and check one that was published."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hansa.options import HOME, Home, Json
from hansa.output import answer

app = typer.Typer(no_args_is_help=True)


@app.callback()
def releases() -> None:
    """Publish a run's model, and check one that was published."""


@app.command("make")
def make(
    folder: Annotated[Path, typer.Argument(help="Where to write it; must not exist.")] = Path("release"),
    run: Annotated[str, typer.Option(help="The run; empty: the current one.")] = "",
    home: Home = HOME,
    as_json: Json = False,
) -> None:
    """Write a run's model as a Hugging Face folder, with hashes, charter, data statements and a signature.

    \b
    Example:
      hansa release make release
    """
    from hansa.chamber import Chamber
    from hansa.hosting import operator_seat

    with Chamber.at(operator_seat(home)) as chamber:
        path, digest = chamber.make_release(folder, run)
    text = f"Wrote {path} (manifest {digest}). Anyone can check it: hansa release verify {path}"
    answer({"path": path, "manifest": digest}, text, as_json=as_json)


@app.command("verify")
def verify(folder: Annotated[Path, typer.Argument(help="The release.")], as_json: Json = False) -> None:
    """Check a release offline: every byte, the signatures, and its place in the consortium's log.

    Exit code 1 when anything is wrong; every problem is named.

    \b
    Example:
      hansa release verify release
    """
    from orchestrator.release import verify as verify_release

    problems = verify_release(folder)
    text = [f"{folder}: INVALID", *(f"  {p}" for p in problems)] if problems else [f"{folder}: valid"]
    answer({"path": folder, "valid": not problems, "problems": problems}, text, as_json=as_json)
    raise typer.Exit(1 if problems else 0)
