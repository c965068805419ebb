"""`hansa seed`: the model a run starts from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hansa.options import Json
from hansa.output import answer

app = typer.Typer(no_args_is_help=True)


@app.callback()
def seeds() -> None:
    """Make the model a run starts from."""


@app.command("make")
def make(
    folder: Annotated[Path, typer.Argument(help="Where to write the model.")] = Path("seed"),
    charter: Annotated[Path, typer.Option("--charter", help="The charter whose model it is.")] = Path(
        "charter.toml"
    ),
    text: Annotated[Path, typer.Option("--text", help="Public text to train it on.")] = Path(
        "texts/public.txt"
    ),
    steps: Annotated[int, typer.Option(min=0, help="Training steps; 0: random weights.")] = 100,
    whole: Annotated[
        bool,
        typer.Option(
            "--whole",
            help="With as many experts as each site owns: every site begins with copies of all of them.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Make a seed model from public text, as a Hugging Face folder. The same inputs give the same bytes.

    \b
    Example:
      hansa seed make seed --charter charter.toml --text texts/public.txt
    """
    from hansa.seeds import make_seed_model

    made = make_seed_model(folder, charter=charter, text=text, steps=steps, whole=whole)
    answer(made, f"Wrote {folder}. Start a run from it: hansa run start --seed {folder}", as_json=as_json)
