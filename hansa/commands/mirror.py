"""`hansa mirror`: whether MLflow shows what the journal says, and making it so."""

from __future__ import annotations

from typing import Annotated

import typer

from hansa.options import HOME, Home, Json
from hansa.output import answer

app = typer.Typer(no_args_is_help=True)
FINDINGS = 5

Store = Annotated[
    str,
    typer.Option(
        envvar="HANSA_STORE", help="Journal store: empty for SQLite in home, or postgresql+psycopg://…"
    ),
]
Mlflow = Annotated[
    str,
    typer.Option(
        envvar="HANSA_MLFLOW", help="MLflow tracking URI: empty for the one the coordinator writes to."
    ),
]


@app.callback()
def mirrors() -> None:
    """Check MLflow, which mirrors runs, votes, books and releases, against the journal, or make it anew."""


@app.command("verify")
def verify(home: Home = HOME, store: Store = "", mlflow: Mlflow = "", as_json: Json = False) -> None:
    """Compare everything MLflow shows with the journal: missing, twice, different, or not from here.

    Changes nothing, and may run beside the coordinator. Ends with exit code 5 when there are findings.

    \b
    Example:
      hansa mirror verify
      hansa mirror verify --mlflow http://127.0.0.1:5000 --json
    """
    from hansa import mirroring

    report = mirroring.verify(home, store, mlflow)
    answer(mirroring.facts(report), mirroring.text(report), as_json=as_json)
    if report.findings:
        raise typer.Exit(FINDINGS)


@app.command("rebuild")
def rebuild(home: Home = HOME, store: Store = "", mlflow: Mlflow = "", as_json: Json = False) -> None:
    """Drop what MLflow has of this consortium and write all of it anew from the journal.

    Also runs that people made in the mirror's experiments go to MLflow's deleted ones, from where they can be
    restored. Interrupted, it goes on with the coordinator or when it is asked again.

    \b
    Example:
      hansa mirror rebuild
    """
    from hansa import mirroring

    written = mirroring.rebuild(home, store, mlflow)
    text = (
        f"Wrote {written} records of the journal to MLflow anew. Check it: hansa mirror verify --home {home}"
    )
    answer({"written": written}, text, as_json=as_json)
