"""`hansa proposal` and `hansa vote`: change the charter by vote."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hansa.options import SEAT, Json, Key, PrintNote, Seat, Submit
from hansa.output import answer

if TYPE_CHECKING:
    from commons.views import ProposalView
    from governance.quoting import Preview
    from hansa.chamber import Chamber
    from hansa.signing import Signing
    from hansa.voting import MotionName, Wish

app = typer.Typer(no_args_is_help=True)

Which = Annotated[str, typer.Argument(help="Number (1), P-0001, or id of a proposal.")]
Reason = Annotated[str, typer.Option("--reason", help="Why, in a line; it is recorded with it.")]


@app.callback()
def proposals() -> None:
    """Change the charter by vote: propose, vote, see what was decided."""


@app.command("open")
def open_(
    feature: Annotated[
        str,
        typer.Argument(
            help="What to change, e.g. uplink-codec, inner-steps, grant (`hansa proposal features`)."
        ),
    ],
    parameter: Annotated[
        list[str] | None, typer.Option("--set", "-s", help="A parameter of the feature, NAME=VALUE; repeat.")
    ] = None,
    title: Annotated[str, typer.Option(help="One line for the others.")] = "",
    effective_round: Annotated[
        int, typer.Option("--round", min=1, help="Earliest round that trains under it.")
    ] = 1,
    needs: Annotated[
        str,
        typer.Option(
            help="Carried out only with pledges of so much, e.g. '5 EUR' (`hansa proposal pledge`)."
        ),
    ] = "",
    patch: Annotated[
        Path | None, typer.Option("--patch", help="For config-patch: a file of RFC 6902 operations.")
    ] = None,
    print_note: PrintNote = False,
    submit: Submit = None,
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
      hansa proposal open inner-steps -s steps=60 --needs 5EUR
    """
    from hansa.settings import split_settings
    from hansa.signing import Signing
    from hansa.voting import Wish

    wish = Wish(feature, split_settings(parameter or []), title, effective_round, needs, patch)
    open_with(Signing(seat, key, print_note, submit), wish, as_json=as_json)


def open_with(signing: Signing, wish: Wish, *, as_json: bool) -> None:
    """Show what it would do, sign, hand in, answer."""
    from dataclasses import asdict

    from hansa.chamber import Chamber
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
            typer.echo("\n".join([*changes, "", *cost, ""]).lstrip("\n"), err=signing.print_note)

    with Chamber.at(signing.seat) as chamber:
        view = open_proposal(chamber, signing, wish, tell)
    if isinstance(view, str):
        show_note(view, as_json=as_json)
        return
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


def show_note(text: str, *, as_json: bool) -> None:
    """The very text to sign, and nothing else, so that it can go into a file."""
    answer({"note": text}, text.removesuffix("\n"), as_json=as_json)


@app.command("features")
def features_(
    feature: Annotated[str, typer.Argument(help="One of them, for its parameters; empty: all.")] = "",
    as_json: Json = False,
) -> None:
    """List what a vote can change: each feature, the type it is voted as, and the parts of the charter it may touch.

    \b
    Example:
      hansa proposal features
      hansa proposal features uplink-codec
    """
    from hansa.registry import feature_facts, feature_text

    facts = feature_facts(feature)
    answer(facts, feature_text(facts, whole=bool(feature)), as_json=as_json)


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
    print_note: PrintNote = False,
    submit: Submit = None,
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
    from governance.casting import ballot_text
    from hansa.signing import Signing

    _say_on(
        Signing(seat, key, print_note, submit),
        proposal,
        lambda chamber, member, view: ballot_text(
            chamber.seat.consortium, member, view, choice, reason=reason
        ),
        lambda view: f"Your ballot on P-{view.number:04d} counts: {choice}. It is {view.state}.",
        as_json=as_json,
    )


@app.command("pledge")
def pledge(
    proposal: Which,
    amount: Annotated[str, typer.Argument(help="What you pay if it becomes law, e.g. '5 EUR'.")],
    to: Annotated[str, typer.Option(help="Member whose budget gets it; none: the proposer's.")] = "",
    days: Annotated[int, typer.Option(min=1, max=3650, help="It is given back after so many days.")] = 90,
    print_note: PrintNote = False,
    submit: Submit = None,
    seat: Seat = SEAT,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Pledge money for a proposal: held of your budget at once, paid if it becomes law, else given back.

    It cannot be taken back before its time, as others vote on the strength of it.

    \b
    Example:
      hansa proposal pledge 3 5EUR --to birch --seat alder/seat
    """
    from commons.written import money
    from hansa.signing import Signing
    from hansa.voting import pledge_text

    _say_on(
        Signing(seat, key, print_note, submit),
        proposal,
        lambda chamber, member, view: pledge_text(chamber, member, view, amount=amount, to=to, days=days),
        lambda view: (
            f"Held for P-{view.number:04d}. Its pledges come to {money(view.pledged_micro)}"
            + (f" of the {money(view.needs_micro)} it needs." if view.needs_micro else ".")
        ),
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


_MOTIONS: tuple[tuple[MotionName, str, str], ...] = (
    (
        "withdraw",
        "Withdraw your own proposal, before voting on it begins.",
        'hansa proposal withdraw 3 --reason "A better one follows." --seat alder/seat',
    ),
    (
        "discuss",
        "Call for a discussion. Once two members have, the vote pauses, at most for as long as its window, once.",
        'hansa proposal discuss 3 --reason "What does it do to birch\'s experts?" --seat birch/seat',
    ),
    (
        "resume",
        "End the discussion you called for; the vote goes on.",
        "hansa proposal resume 3 --seat birch/seat",
    ),
    (
        "veto",
        "Veto a queued proposal, as a safety officer, for a reason. The members can override it by a vote.",
        'hansa proposal veto 3 --reason "Its norm gate lets a poisoned update through." --seat coop/seat',
    ),
)


def _motion(motion: MotionName) -> Callable[..., None]:
    def move(
        proposal: Which,
        reason: Reason = "",
        print_note: PrintNote = False,
        submit: Submit = None,
        seat: Seat = SEAT,
        key: Key = None,
        as_json: Json = False,
    ) -> None:
        from hansa.signing import Signing
        from hansa.voting import motion_text

        _say_on(
            Signing(seat, key, print_note, submit),
            proposal,
            lambda chamber, member, view: motion_text(chamber, member, view, motion, reason),
            lambda view: f"P-{view.number:04d} is {view.state}.",
            as_json=as_json,
        )

    return move


for _name, _help, _example in _MOTIONS:
    app.command(_name, help=f"{_help}\n\n\b\nExample:\n  {_example}")(_motion(_name))


def _say_on(
    signing: Signing,
    proposal: str,
    make: Callable[[Chamber, str, ProposalView], str],
    told: Callable[[ProposalView], str],
    *,
    as_json: bool,
) -> None:
    """Sign and hand in what `make` composes for a member on a proposal; tell how that stands, or show what to sign."""
    from commons.views import ProposalView
    from hansa.chamber import Chamber
    from hansa.signing import say
    from hansa.voting import find_proposal

    with Chamber.at(signing.seat) as chamber:
        view = find_proposal(chamber, proposal)
        said = say(chamber, signing, lambda member: make(chamber, member, view))
        if isinstance(said, str):
            show_note(said, as_json=as_json)
            return
        view = chamber.read(ProposalView, view.id)
    answer(view, told(view), as_json=as_json)


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
    from hansa.signing import member_key
    from hansa.voting import cast

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
