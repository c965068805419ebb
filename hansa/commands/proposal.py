"""`hansa proposal`: change the charter by vote."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from commons.words import Word
from hansa.options import SEAT, Json, Seat
from hansa.output import answer

if TYPE_CHECKING:
    from commons.views import ProposalView

app = typer.Typer(no_args_is_help=True)

Key = Annotated[
    Path | None, typer.Option("--key", help="Your secret key; without it: member.key in the seat folder.")
]
Which = Annotated[str, typer.Argument(help="Number (1), P-0001, or id of a proposal.")]


class Choice(Word):
    FOR = "for"
    AGAINST = "against"
    ABSTAIN = "abstain"


@app.callback()
def proposals() -> None:
    """Change the charter by vote: propose, vote, see what was decided."""


@app.command("open")
def open_(
    feature: Annotated[
        str, typer.Argument(help="What to change, e.g. uplink-codec, inner-steps, grant, rates, sponsor.")
    ],
    parameter: Annotated[
        list[str] | None, typer.Option("--set", "-s", help="A parameter of the feature, NAME=VALUE; repeat.")
    ] = None,
    title: Annotated[str, typer.Option(help="One line for the others.")] = "",
    effective_round: Annotated[
        int, typer.Option("--round", min=1, help="Earliest round that trains under it.")
    ] = 1,
    seat: Seat = SEAT,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Propose a change, signed with your key. It takes effect once enough members voted for it.

    What it costs is shown before it is signed (`hansa budget quote` shows it without proposing anything).
    Dates, hours and money are written as people do: expires=2027-01-31, amount=40h, amount=12.50EUR.

    \b
    Example:
      hansa proposal open uplink-codec -s trunk=int8 -s expert=int8 --seat alder/seat
      hansa proposal open grant -s name=spring -s member=birch -s amount=5EUR -s expires=2027-07-01
    """
    from functools import partial

    from hansa.voting import open_proposal

    opening = partial(
        open_proposal, seat, key, feature=feature, settings=parameter or [], title=title,
        effective_round=effective_round,
    )  # fmt: skip
    answer_opened(opening, as_json=as_json)


def answer_opened(opening: Callable[..., ProposalView], *, as_json: bool) -> None:
    """Call `opening` with what tells a person the quote before anything is signed, and answer what it opened."""
    from dataclasses import asdict

    from governance.quotes import Quote
    from hansa.output import plain
    from hansa.statements import quote_text

    quotes: list[Quote] = []

    def tell(quote: Quote) -> None:
        quotes.append(quote)
        if not as_json:
            typer.echo(f"{quote_text(quote)}\n")

    view = opening(before_signing=tell)
    text = f"P-{view.number:04d} is open. Members vote with: hansa proposal vote {view.number} for --seat THEIR/seat"
    answer({**plain(view), "quote": asdict(quotes[0])}, text, as_json=as_json)


@app.command("list")
def list_(seat: Seat = SEAT, as_json: Json = False) -> None:
    """List all proposals and how they stand.

    \b
    Example:
      hansa proposal list --seat alder/seat
    """
    from commons.views import ProposalsView
    from hansa.chamber import Chamber
    from hansa.statements import proposal_table

    with Chamber.at(seat) as chamber:
        view = chamber.read(ProposalsView)
    text = proposal_table(view.proposals) if view.proposals else "No proposals yet: hansa proposal open -h"
    answer(view.proposals, text, as_json=as_json)


@app.command("vote")
def vote(
    proposal: Which,
    choice: Annotated[Choice, typer.Argument(help="Your choice; a later ballot of yours replaces it.")],
    seat: Seat = SEAT,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Cast your ballot, signed with your key.

    \b
    Example:
      hansa proposal vote 1 for --seat birch/seat
    """
    from hansa.voting import cast_ballot

    view = cast_ballot(seat, key, which=proposal, choice=choice.value)
    answer(
        view,
        f"Your ballot on P-{view.number:04d} counts: {choice.value}. It is {view.state}.",
        as_json=as_json,
    )


@app.command("show")
def show(proposal: Which, seat: Seat = SEAT, as_json: Json = False) -> None:
    """Show one proposal: who voted how, the outcome, what it changes, what it costs.

    \b
    Example:
      hansa proposal show 1 --seat alder/seat
    """
    from dataclasses import asdict

    from commons.errors import Refused
    from hansa.chamber import Chamber
    from hansa.output import plain
    from hansa.quoting import quote_proposal
    from hansa.statements import proposal_text, quote_text
    from hansa.voting import find_proposal

    with Chamber.at(seat) as chamber:
        view = find_proposal(chamber, proposal)
        try:
            quote, shown = quote_proposal(chamber, view), ""
        except Refused as refused:
            quote, shown = None, f"no quote: {refused.refusal.message}"
    if quote:
        shown = quote_text(quote, is_law=view.state == "executed")
    facts = {**plain(view), "quote": asdict(quote) if quote else None}
    answer(facts, [proposal_text(view), "", shown], as_json=as_json)
