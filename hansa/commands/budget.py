"""`hansa budget`: what each partner may still spend, and what was charged."""

from __future__ import annotations

from typing import Annotated

import typer

from hansa.options import SEAT, Json, Seat
from hansa.output import answer

app = typer.Typer(no_args_is_help=True)


@app.callback()
def budgets() -> None:
    """See what each partner may still spend, and what was charged."""


@app.command("show")
def show(
    seat: Seat = SEAT,
    charges: Annotated[bool, typer.Option("--charges", help="List every charge too.")] = False,
    as_json: Json = False,
) -> None:
    """Show every partner's budget: granted, held for rounds under way, spent, still free.

    \b
    Example:
      hansa budget show --seat alder/seat --charges
    """
    from commons.views import BudgetsView
    from hansa.chamber import Chamber
    from hansa.statements import budget_table, charge_table

    with Chamber.at(seat) as chamber:
        view = chamber.read(BudgetsView)
    text = [budget_table(view.budgets, view.currency)]
    if charges:
        text += ["", charge_table(view.charges)]
    answer(view, text, as_json=as_json)
