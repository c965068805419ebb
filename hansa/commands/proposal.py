"""`hansa proposal` and `hansa vote`: change the charter by vote."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hansa.options import SEAT, Json, Seat
from hansa.output import answer

if TYPE_CHECKING:
    from hansa.voting import MotionName

app = typer.Typer(no_args_is_help=True)

Key = Annotated[
    Path | None, typer.Option("--key", help="Your secret key; without it: member.key in the seat folder.")
]
Which = Annotated[str, typer.Argument(help="Number (1), P-0001, or id of a proposal.")]
Reason = Annotated[str, typer.Option("--reason", help="Why, in a line; it is recorded with it.")]


@app.callback()
def proposals() -> None:
    """Change the charter by vote: propose, vote, see what was decided."""


@app.command("open")
def open_(
    feature: Annotated[
        str, typer.Argument(help="What to change, e.g. uplink-codec, inner-steps, grant, rates, roadmap.")
    ],
    parameter: Annotated[
        list[str] | None, typer.Option("--set", "-s", help="A parameter of the feature, NAME=VALUE; repeat.")
    ] = None,
    title: Annotated[str, typer.Option(help="One line for the others.")] = "",
    effective_round: Annotated[
        int, typer.Option("--round", min=1, help="Earliest round that trains under it.")
    ] = 1,
    patch: Annotated[
        Path | None, typer.Option("--patch", help="For config-patch: a file of RFC 6902 operations.")
    ] = None,
    seat: Seat = SEAT,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Propose a change, signed with your key. It takes effect once enough members voted for it.

    What it changes and costs is shown before it is signed (`hansa budget quote` shows the cost without proposing).
    Dates, hours and money are written as people do: expires=2027-01-31, amount=40h, amount=12.50EUR.

    \b
    Example:
      hansa proposal open uplink-codec -s trunk=int8 -s expert=int8 --seat alder/seat
      hansa proposal open grant -s name=spring -s member=birch -s amount=5EUR -s expires=2027-07-01
      hansa proposal open roadmap -s 'candidates=["fp8","int4","lean"]'
      hansa proposal open config-patch --patch smaller-steps.json
    """
    open_with(
        seat, key, feature=feature, settings=parameter or [], title=title, effective_round=effective_round,
        patch=patch, as_json=as_json,
    )  # fmt: skip


def open_with(
    seat: Path,
    key: Path | None,
    *,
    feature: str,
    settings: list[str],
    as_json: bool,
    title: str = "",
    effective_round: int = 1,
    patch: Path | None = None,
) -> None:
    """Show what it would do, sign, hand in, answer."""
    from dataclasses import asdict

    from governance.quoting import Preview
    from hansa.output import plain
    from hansa.proposal_text import diff_text, rules_text
    from hansa.statements import quote_text
    from hansa.voting import open_proposal

    previews: list[Preview] = []

    def tell(shown: Preview) -> None:
        previews.append(shown)
        if not as_json:
            changes = ["It would change:", *diff_text(shown.changes)] if shown.quote else []
            cost = [quote_text(shown.quote)] if shown.quote else ["It changes no charter and costs nothing."]
            typer.echo("\n".join([*changes, "", *cost, ""]).lstrip("\n"))

    view = open_proposal(
        seat, key, feature=feature, settings=settings, title=title, effective_round=effective_round,
        before_signing=tell, patch=patch,
    )  # fmt: skip
    text = [
        f"P-{view.number:04d} is open and {view.state}; it {rules_text(view)}.",
        f"Members vote with: hansa proposal vote {view.number} for --seat THEIR/seat",
    ]
    shown = previews[0]
    facts = {
        **plain(view),
        "quote": asdict(shown.quote) if shown.quote else None,
        "changes": [{"path": at, "old": old, "new": new} for at, old, new in shown.changes],
    }
    answer(facts, text, as_json=as_json)


@app.command("list")
def list_(seat: Seat = SEAT, as_json: Json = False) -> None:
    """List all proposals and how they stand.

    \b
    Example:
      hansa proposal list --seat alder/seat
    """
    from commons.views import ProposalsView
    from hansa.chamber import Chamber
    from hansa.proposal_text import proposal_table

    with Chamber.at(seat) as chamber:
        view = chamber.read(ProposalsView)
    text = proposal_table(view.proposals) if view.proposals else "No proposals yet: hansa proposal open -h"
    answer(view.proposals, text, as_json=as_json)


@app.command("vote")
def vote(
    proposal: Which,
    choice: Annotated[
        str,
        typer.Argument(
            help="for, against or abstain; on a roadmap 'rank a > b' or 'credits a 3, b 1'. A later ballot replaces it."
        ),
    ],
    reason: Annotated[
        str, typer.Option("--reason", help="A text you keep; the ballot names its digest.")
    ] = "",
    print_note: Annotated[
        bool,
        typer.Option("--print-note", help="Print the text to sign on another machine, and send nothing."),
    ] = False,
    submit: Annotated[
        Path | None, typer.Option("--submit", help="Hand in the note that was signed there.")
    ] = None,
    seat: Seat = SEAT,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Cast your ballot, signed with your key, or with the key you delegated your ballots to.

    \b
    Example:
      hansa proposal vote 1 for --seat birch/seat
      hansa proposal vote 1 for --print-note > ballot.txt   (then, elsewhere: hansa key sign ballot.txt --key birch.key)
      hansa proposal vote 1 for --submit ballot.note
    """
    from hansa.chamber import Chamber
    from hansa.voting import cast_ballot, find_proposal, hand_in, unsigned_ballot

    if print_note:
        text = unsigned_ballot(seat, which=proposal, choice=choice, reason=reason)
        answer({"note": text}, text.removesuffix("\n"), as_json=as_json)
        return
    if submit is not None:
        hand_in(seat, submit)
        with Chamber.at(seat) as chamber:
            view = find_proposal(chamber, proposal)
    else:
        view = cast_ballot(seat, key, which=proposal, choice=choice, reason=reason)
    answer(view, f"Your ballot on P-{view.number:04d} counts: {choice}. It is {view.state}.", as_json=as_json)


@app.command("show")
def show(proposal: Which, seat: Seat = SEAT, as_json: Json = False) -> None:
    """Show one proposal: who voted how, the outcome, what it changes, what it costs.

    \b
    Example:
      hansa proposal show 1 --seat alder/seat
    """
    from dataclasses import asdict

    from commons.errors import Refused
    from governance.quoting import quote_proposal
    from hansa.chamber import Chamber
    from hansa.output import plain
    from hansa.proposal_text import proposal_text
    from hansa.statements import quote_text
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


@app.command("withdraw")
def withdraw(
    proposal: Which, reason: Reason = "", seat: Seat = SEAT, key: Key = None, as_json: Json = False
) -> None:
    """Withdraw your own proposal, before voting on it begins.

    \b
    Example:
      hansa proposal withdraw 3 --reason "A better one follows." --seat alder/seat
    """
    _move(seat, key, proposal, "withdraw", reason, as_json=as_json)


@app.command("discuss")
def discuss(
    proposal: Which, reason: Reason = "", seat: Seat = SEAT, key: Key = None, as_json: Json = False
) -> None:
    """Call for a discussion. Once two members have, the vote pauses, at most for as long as its window, once.

    \b
    Example:
      hansa proposal discuss 3 --reason "What does it do to birch's experts?" --seat birch/seat
    """
    _move(seat, key, proposal, "discuss", reason, as_json=as_json)


@app.command("resume")
def resume(
    proposal: Which, reason: Reason = "", seat: Seat = SEAT, key: Key = None, as_json: Json = False
) -> None:
    """End the discussion you called for; the vote goes on.

    \b
    Example:
      hansa proposal resume 3 --seat birch/seat
    """
    _move(seat, key, proposal, "resume", reason, as_json=as_json)


@app.command("veto")
def veto(
    proposal: Which,
    reason: Annotated[str, typer.Option("--reason", help="Why; it is recorded with the veto.")],
    seat: Seat = SEAT,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Veto a queued proposal, as a safety officer. The members can override it by a vote.

    \b
    Example:
      hansa proposal veto 3 --reason "Its norm gate lets a poisoned update through." --seat coop/seat
    """
    _move(seat, key, proposal, "veto", reason, as_json=as_json)


def _move(
    seat: Path, key: Path | None, which: str, motion: MotionName, reason: str, *, as_json: bool
) -> None:
    from hansa.voting import move

    view = move(seat, key, which=which, motion=motion, reason=reason)
    answer(view, f"P-{view.number:04d} is {view.state}.", as_json=as_json)


def vote_on_all(seat: Seat = SEAT, key: Key = None, as_json: Json = False) -> None:
    """Go through the proposals that wait for your ballot, one by one, and vote.

    \b
    Example:
      hansa vote --seat birch/seat
    """
    from commons.views import ProposalsView
    from hansa.chamber import Chamber
    from hansa.output import plain
    from hansa.proposal_text import proposal_text
    from hansa.voting import cast, member_key

    done = []
    with Chamber.at(seat) as chamber:
        signer = member_key(seat, key)
        me = signer.name.partition("/")[0]
        waiting = [
            p
            for p in chamber.read(ProposalsView).proposals
            if p.state == "active" and me in p.electorate and me not in {b.voter for b in p.ballots}
        ]
        for view in waiting:
            typer.echo(proposal_text(view), err=as_json)
            asked = "an order, or skip" if view.candidates else "for, against, abstain or skip"
            said = typer.prompt(f"Your choice ({asked})", default="skip", err=as_json)
            if said != "skip":
                done.append(cast(chamber, signer, view, said))
    text = [f"Your ballot on P-{view.number:04d} counts. It is {view.state}." for view in done]
    answer([plain(view) for view in done], text or ["No proposal waits for your ballot."], as_json=as_json)
