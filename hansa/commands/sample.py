"""`hansa sample`: real texts to try things with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from commons.written import size
from hansa.options import Json
from hansa.output import answer, table

app = typer.Typer(no_args_is_help=True)


@app.callback()
def samples() -> None:
    """Get real sample texts to try things with; nothing is downloaded."""


@app.command("write")
def write(
    folder: Annotated[Path, typer.Argument(help="Where to write DOMAIN.txt and public.txt.")] = Path("texts"),
    sites: Annotated[int, typer.Option(min=1, max=8, help="How many domains.")] = 4,
    as_json: Json = False,
) -> None:
    """Write texts of different domains from packages that are installed, and a public one.

    \b
    Example:
      hansa sample write texts --sites 2
    """
    from commons.errors import StoreError
    from hansa.samples import SamplesError, write_samples

    try:
        made = write_samples(folder, sites=sites)
    except SamplesError as error:
        raise StoreError(str(error)) from None
    rows = [(s.domain, size(s.bytes), s.path, s.data_statement) for s in made]
    facts = [
        {
            "domain": s.domain,
            "path": s.path,
            "bytes": s.bytes,
            "sha256": s.sha256,
            "data_statement": s.data_statement,
        }
        for s in made
    ]
    answer(facts, table(("domain", "size", "file", "from"), rows), as_json=as_json)
