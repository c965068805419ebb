"""`hansa expert`: which experts the model has and whose they are; add, retire and transfer them by vote."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hansa.options import SEAT, Json, Seat
from hansa.output import answer

app = typer.Typer(no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="The expert's name.")]
Title = Annotated[str, typer.Option(help="One line for the others.")]
Round = Annotated[int, typer.Option("--round", min=1, help="Earliest round that trains under it.")]
Key = Annotated[
    Path | None, typer.Option("--key", help="Your secret key; without it: member.key in the seat folder.")
]


@app.callback()
def experts() -> None:
    """See whose the model's experts are; add, retire and transfer them by vote (docs/experts.md)."""


@app.command("list")
def list_(seat: Seat = SEAT, as_json: Json = False) -> None:
    """List the experts of the charter in force: index, owner, size, since when, and what went through each.

    Tokens are counted over all layers and rounds of the latest run.

    \b
    Example:
      hansa expert list --seat alder/seat
    """
    from commons.views import ExpertsView
    from hansa.chamber import Chamber
    from hansa.statements import expert_table

    with Chamber.at(seat) as chamber:
        view = chamber.read(ExpertsView)
    answer(view, expert_table(view), as_json=as_json)


@app.command("add")
def add(
    expert: Name,
    site: Annotated[str, typer.Option(help="Your site that is to train it.")],
    like: Annotated[
        str,
        typer.Option(help="Begin as a copy of this expert of another site; empty: weights by the seed rule."),
    ] = "",
    title: Title = "",
    effective_round: Round = 1,
    seat: Seat = SEAT,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Propose that a site of yours trains one more expert. What it costs is shown before it is signed.

    \b
    Example:
      hansa expert add law-2 --site alder-site --like code-0 --seat alder/seat
    """
    _propose(
        "expert-add",
        {"expert": expert, "site": site} | ({"like": like} if like else {}),
        title or f"{site} trains another expert, {expert}",
        effective_round,
        seat,
        key,
        as_json,
    )


@app.command("retire")
def retire(
    expert: Name,
    title: Title = "",
    effective_round: Round = 1,
    seat: Seat = SEAT,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Propose to take an expert of yours, or one in escrow, out of the model for good.

    Its weights, its rows of every router and all that is remembered of them go. What the trunk learned beside it stays:
    measure that with `hansa expert opt-out-report`.

    \b
    Example:
      hansa expert retire law-2 --seat alder/seat
    """
    _propose(
        "expert-retire",
        {"expert": expert},
        title or f"Retire expert {expert}",
        effective_round,
        seat,
        key,
        as_json,
    )


@app.command("transfer")
def transfer(
    expert: Name,
    to: Annotated[str, typer.Option(help="The site that trains it from then on.")],
    title: Title = "",
    effective_round: Round = 1,
    seat: Seat = SEAT,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Propose to give an expert of yours, or one in escrow, to another site. No weight changes.

    \b
    Example:
      hansa expert transfer law-2 --to birch-site --seat alder/seat
    """
    _propose(
        "expert-transfer",
        {"expert": expert, "to": to},
        title or f"Give expert {expert} to {to}",
        effective_round,
        seat,
        key,
        as_json,
    )


def _propose(
    feature: str,
    parameters: dict[str, str],
    title: str,
    effective_round: int,
    seat: Path,
    key: Path | None,
    as_json: bool,
) -> None:
    from dataclasses import asdict

    from governance.quotes import Quote
    from hansa.output import plain
    from hansa.statements import quote_text
    from hansa.voting import open_change

    quotes: list[Quote] = []

    def tell(quote: Quote) -> None:
        quotes.append(quote)
        if not as_json:
            typer.echo(f"{quote_text(quote)}\n")

    view = open_change(
        seat, key, feature=feature, parameters=parameters, title=title, effective_round=effective_round,
        before_signing=tell,
    )  # fmt: skip
    text = f"P-{view.number:04d} is open. Members vote with: hansa proposal vote {view.number} for --seat THEIR/seat"
    answer({**plain(view), "quote": asdict(quotes[0])}, text, as_json=as_json)
