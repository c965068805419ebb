"""`hansa dashboard`: the consortium in a browser, from one's own seat."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hansa.options import SEAT, Json, Seat


def dashboard(
    seat: Seat = SEAT,
    listen: Annotated[
        str, typer.Option(envvar="HANSA_DASHBOARD", help="Host and port for browsers.")
    ] = "127.0.0.1:8080",
    door: Annotated[
        Path | None,
        typer.Option(help="File that says how people sign in; without it: a link that is printed here."),
    ] = None,
    mlflow_url: Annotated[
        str,
        typer.Option(
            envvar="HANSA_MLFLOW_URL", help="Of MLflow as browsers reach it; pages link to its runs."
        ),
    ] = "",
    ray_url: Annotated[
        str,
        typer.Option(envvar="HANSA_RAY_URL", help="Of the Ray dashboard of your own site; pages link to it."),
    ] = "",
    compared_with: Annotated[
        Path | None,
        typer.Option(
            "--compared-with",
            help="JSON with losses of models that partners trained alone and of one on all texts in one place, as "
            "`hansa demo --json` writes them; the curves show both.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show the consortium in a browser and stay; Ctrl-C stops it.

    It reads what the seat may read and hands in only what a member has signed. Any partner can run its own.
    Without --door it listens on this machine only and prints a link that signs in, once.

    \b
    Example:
      hansa dashboard --seat alder/seat
      hansa dashboard --seat home/operator --listen 127.0.0.1:8081 --mlflow-url http://127.0.0.1:5000
      hansa dashboard --seat alder/seat --listen board.example:443 --door door.toml
    """
    from hansa.dashboard import serve

    serve(
        seat,
        listen,
        door=door,
        mlflow_url=mlflow_url,
        ray_url=ray_url,
        compared_with=compared_with,
        as_json=as_json,
    )
