"""`hansa coordinator`: the one program that every site calls."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hansa.options import HOME, Home, Json

app = typer.Typer(no_args_is_help=True)


@app.callback()
def coordinators() -> None:
    """Run the program that every site calls: it keeps the journal, combines updates, settles the bill."""


Dashboard = Annotated[
    str,
    typer.Option(
        "--dashboard-url",
        envvar="HANSA_DASHBOARD_URL",
        help="Address of the dashboard, https://…: runs in MLflow link to their pages there.",
    ),
]


@app.command("start")
def start(
    home: Home = HOME,
    charter: Annotated[Path, typer.Option(help="The charter; read at the first start only.")] = Path(
        "charter.toml"
    ),
    founding: Annotated[
        Path, typer.Option(help="Folder of the founders' signatures; read at the first start only.")
    ] = Path("founding"),
    log_key: Annotated[
        Path | None, typer.Option("--log-key", help="Secret key of the consortium's log; first start only.")
    ] = None,
    listen: Annotated[
        str, typer.Option(envvar="HANSA_LISTEN", help="Host and port for members and sites (mutual TLS).")
    ] = "127.0.0.1:7443",
    enrolment: Annotated[
        str,
        typer.Option(
            envvar="HANSA_ENROLMENT", help="Host and port for enrolment; empty: the port after --listen's."
        ),
    ] = "",
    store: Annotated[
        str,
        typer.Option(
            envvar="HANSA_STORE", help="Journal store: empty for SQLite in home, or postgresql+psycopg://…"
        ),
    ] = "",
    states: Annotated[
        str,
        typer.Option(
            envvar="HANSA_STATES",
            help="Model states: empty for a folder in home, s3://BUCKET/PREFIX, a folder.",
        ),
    ] = "",
    mlflow: Annotated[
        str,
        typer.Option(
            envvar="HANSA_MLFLOW", help="MLflow tracking URI: empty for SQLite in home, http://…, or none."
        ),
    ] = "",
    dashboard: Dashboard = "",
    as_json: Json = False,
) -> None:
    """Start the coordinator and stay; Ctrl-C stops it. Started again, it goes on where it was.

    At the first start it founds the consortium from the signed charter and writes an invite for
    every member and site to HOME/invites.

    \b
    Example:
      hansa coordinator start --charter charter.toml --log-key keys/quay.key
    """
    from hansa.hosting import serve

    serve(home, charter=charter, founding=founding, log_key=log_key, listen=listen, enrolment=enrolment, store=store,
          states=states, mlflow=mlflow, dashboard=dashboard, as_json=as_json)  # fmt: skip
