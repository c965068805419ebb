"""`hansa budget`: what each partner may spend, what was charged, what changes cost, and how mistakes are corrected."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from commons.words import Word
from hansa.commands import budget_statement
from hansa.options import HOME, SEAT, Home, Json, Seat
from hansa.output import answer

app = typer.Typer(no_args_is_help=True)

Key = Annotated[
    Path | None, typer.Option("--key", help="Your secret key; without it: member.key in the seat folder.")
]
Charge = Annotated[
    str, typer.Argument(help="The charge as `hansa budget show --charges` names it, e.g. run-1/3/alder-site.")
]
Amount = Annotated[
    str, typer.Option("--amount", help="Whole micro, money like 0.25EUR, or all that is left of the charge.")
]


class Reason(Word):
    METERING_ERROR = "metering_error"
    HARDWARE_FAULT = "hardware_fault"
    DUPLICATE = "duplicate"
    RATE_ERROR = "rate_error"


@app.callback()
def budgets() -> None:
    """See budgets and charges, ask what a change costs, put mistakes right."""


@app.command("show")
def show(
    seat: Seat = SEAT,
    charges: Annotated[bool, typer.Option("--charges", help="List the latest charges too.")] = False,
    grants: Annotated[bool, typer.Option("--grants", help="List what budgets are made of too.")] = False,
    rates: Annotated[bool, typer.Option("--rates", help="List the prices and since when too.")] = False,
    as_json: Json = False,
) -> None:
    """Show every partner's budget.

    Granted, held for rounds under way, spent, still available, and what its work contributed; what came
    back, is disputed, expired or begins later, where there is any.

    \b
    Example:
      hansa budget show --seat alder/seat --charges
    """
    from commons.views import BudgetsView
    from hansa.chamber import Chamber
    from hansa.statements import budget_table, charge_table, grant_table, pledge_table, rate_table

    with Chamber.at(seat) as chamber:
        view = chamber.read(BudgetsView)
    text = [budget_table(view.budgets, view.currency)]
    if view.pledges and any(p.amount_ms for p in view.pledges):
        text += ["", pledge_table(view.pledges)]
    if grants:
        text += ["", grant_table(view.budgets)]
    if rates:
        text += ["", rate_table(view.cards)]
    if charges:
        text += ["", charge_table(view.charges)]
        older = view.charges_total - len(view.charges)
        text += [f"{older} older ones stand in the statements"] if older > 0 else []
    answer(view, text, as_json=as_json)


@app.command("forecast")
def forecast(
    partner: Annotated[str, typer.Argument(help="Whose budget; empty: all, on one line each.")] = "",
    seat: Seat = SEAT,
    as_json: Json = False,
) -> None:
    """Show how long budgets last.

    At the pace of the last rounds: for how many more, until when, and whether the running run is paid for.

    \b
    Example:
      hansa budget forecast alder --seat alder/seat
    """
    from dataclasses import asdict

    from hansa.budgets import forecasts
    from hansa.burndown import chart
    from hansa.chamber import Chamber
    from hansa.statements import forecast_table, forecast_text

    with Chamber.at(seat) as chamber:
        found, currency = forecasts(chamber, partner)
    if partner:
        text = [*forecast_text(found[0], currency), "", chart(found[0], currency)]
    else:
        text = [forecast_table(found, currency)]
    facts = {"currency": currency, "forecasts": [asdict(f) for f in found]}
    answer(facts, "\n".join(text).rstrip(), as_json=as_json)


@app.command("quote")
def quote(
    feature: Annotated[
        str, typer.Option("--feature", help="What would change, e.g. inner-steps, rates, grant, sponsor.")
    ] = "",
    parameter: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", "--parameters", help="A parameter of the feature, NAME=VALUE; repeat."),
    ] = None,
    proposal: Annotated[str, typer.Option("--proposal", help="Or a proposal: 1, P-0001 or its id.")] = "",
    effective_round: Annotated[int, typer.Option("--round", min=1, help="Earliest round under it.")] = 1,
    seat: Seat = SEAT,
    as_json: Json = False,
) -> None:
    """Show what a change would cost.

    Per payer, before and after the change of the charter, and who would lack budget from which round. It is a bound: every site takes part in every round, at its device's dearest precision.

    \b
    Example:
      hansa budget quote --feature inner-steps -s steps=40 --seat alder/seat
      hansa budget quote --proposal 3
    """
    from dataclasses import asdict

    from commons.errors import ConfigError
    from governance.quoting import quote_change, quote_proposal
    from hansa.chamber import Chamber
    from hansa.settings import read_settings, split_settings
    from hansa.statements import quote_text
    from hansa.voting import currency_of, find_proposal

    if bool(feature) == bool(proposal):
        raise ConfigError(["name what would change: --feature with its parameters, or --proposal"])
    pairs = split_settings(parameter or [])
    with Chamber.at(seat) as chamber:
        if proposal:
            made = quote_proposal(chamber, find_proposal(chamber, proposal))
        else:
            wanted = read_settings(feature, pairs, currency_of(chamber))
            made = quote_change(chamber, feature, wanted, effective_round=effective_round)
    answer(asdict(made), quote_text(made), as_json=as_json)


@app.command("disputes")
def disputes(seat: Seat = SEAT, as_json: Json = False) -> None:
    """List the disputes about charges.

    Who raised them and why, who may concede them, and how they ended.

    \b
    Example:
      hansa budget disputes --seat alder/seat
    """
    from commons.views import DisputesView
    from hansa.chamber import Chamber
    from hansa.statements import dispute_table

    with Chamber.at(seat) as chamber:
        view = chamber.read(DisputesView)
    text = dispute_table(view.disputes) if view.disputes else "No disputes: every charge stands."
    answer(view, text, as_json=as_json)


@app.command("dispute")
def dispute(
    charge: Charge,
    reason: Annotated[Reason, typer.Option("--reason", help="What kind of mistake it is.")],
    why: Annotated[str, typer.Option("--why", help="What happened, in your words; the others read it.")],
    amount: Amount = "all",
    seat: Seat = SEAT,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Dispute a charge to your budget.

    Signed with your key; the amount rests in suspense until the dispute ends. Said again in the same words, it is the same dispute.

    \b
    Example:
      hansa budget dispute run-1/3/alder-site --reason hardware_fault --why "The device had failed." --seat alder/seat
    """
    from hansa.budgets import raise_dispute
    from hansa.statements import dispute_text

    made, currency = raise_dispute(seat, key, charge=charge, amount=amount, reason=reason.value, why=why)
    answer(made, dispute_text(made, currency), as_json=as_json)


@app.command("rule")
def rule(
    which: Annotated[str, typer.Argument(metavar="DISPUTE", help="As `hansa budget disputes` names it.")],
    withdraw: Annotated[bool, typer.Option("--withdraw", help="It was yours; the charge stands.")] = False,
    concede: Annotated[
        bool, typer.Option("--concede", help="Your site was wrong; the payer is refunded.")
    ] = False,
    seat: Seat = SEAT,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Withdraw or concede a dispute.

    The payer who raised it withdraws it, or the owner of the site concedes it; signed with your key. If
    neither does, the members decide: hansa proposal open ruling.

    \b
    Example:
      hansa budget rule 3f2a91bc --concede --seat birch/seat
    """
    from commons.errors import ConfigError
    from hansa.budgets import rule_dispute
    from hansa.statements import dispute_text

    if withdraw == concede:
        raise ConfigError(["say how it ends: --withdraw (the payer) or --concede (the owner of the site)"])
    ended, currency = rule_dispute(seat, key, which=which, outcome="withdrawn" if withdraw else "conceded")
    answer(ended, dispute_text(ended, currency), as_json=as_json)


@app.command("convert")
def convert(
    device: Annotated[str, typer.Argument(help="The pledged device, as the rate card names it.")],
    hours: Annotated[str, typer.Argument(help="How many hours of it, e.g. 40 or 1.5.")],
    seat: Seat = SEAT,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Turn pledged device time into budget.

    At the price of a second that is in force, rounded down to a whole micro; signed with your key.
    If it fails halfway, give the same command again: it is the same conversion.

    \b
    Example:
      hansa budget convert gpu 40 --seat cedar/seat
    """
    from dataclasses import asdict
    from datetime import datetime

    from commons.written import money
    from hansa.budgets import convert as convert_time

    done = convert_time(seat, key, device=device, hours=hours)
    text = (
        f"{done.amount_ms / 3_600_000:g} h of {done.device} are budget now (journal record {done.index}): "
        f"{done.budget.partner} has {money(done.budget.available_micro, done.currency)} available."
    )
    if done.begun_s is not None:
        begun = datetime.fromtimestamp(done.begun_s).strftime("%Y-%m-%d %H:%M")
        text += f" This ended the conversion begun on {begun}; run it again for a further one."
    answer({**asdict(done), "budget": done.budget}, text, as_json=as_json)


@app.command("reverse")
def reverse(
    charge: Charge,
    reason: Annotated[Reason, typer.Option("--reason", help="What kind of mistake it was.")],
    amount: Amount = "all",
    token: Annotated[
        str, typer.Option("--token", help="Name of this reversal; empty: derived from the other arguments.")
    ] = "",
    home: Home = HOME,
    as_json: Json = False,
) -> None:
    """Give a charge back (operator).

    Some or all of it goes back to its payer, and the owner's contribution for it with it. The same command again is the same reversal, whatever became of the first answer. To give the same
    amount of the same charge back a second time, name another --token.

    \b
    Example:
      hansa budget reverse run-1/3/alder-site --amount 0.25EUR --reason metering_error --home home
    """
    from dataclasses import asdict

    from commons.written import money
    from hansa.budgets import reverse as reverse_charge

    done = reverse_charge(home, charge=charge, amount=amount, reason=reason.value, token=token)
    text = (
        f"{money(done.amount_micro, done.currency)} of {done.transfer} are given back "
        f"({done.id}, journal record {done.index})."
    )
    answer(asdict(done), text, as_json=as_json)


app.command("statement")(budget_statement.statement)
app.command("verify")(budget_statement.verify)
app.command("countersign")(budget_statement.countersign)
