"""`hansa member`: take a member's seat; propose who is a member."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from hansa.options import SEAT, Json, Key, PrintNote, Seat, Submit
from hansa.output import answer

app = typer.Typer(no_args_is_help=True)


@app.callback()
def members() -> None:
    """Take a member's seat; propose to admit, suspend, readmit or expel members."""


@app.command("join")
def join(
    invite: Annotated[Path, typer.Argument(help="The invite the coordinator's operator gave you.")],
    key: Annotated[
        Path, typer.Option("--key", help="Your secret key; proposals and ballots are signed with it.")
    ],
    seat: Annotated[Path, typer.Option("--seat", envvar="HANSA_SEAT", help="Folder to write.")] = SEAT,
    as_json: Json = False,
) -> None:
    """Join as a member: exchange an invite for a seat folder. Nothing is sent before the server proves itself.

    \b
    Example:
      hansa member join home/invites/member-alder.invite --key keys/alder.key --seat alder/seat
    """
    from hansa.joining import join_as_member

    made = join_as_member(invite, key, seat)
    text = f"{made.subject.partner} has a seat in {seat}. Try: hansa budget show --seat {seat}"
    answer(
        {"seat": seat, "partner": made.subject.partner, "consortium": made.consortium}, text, as_json=as_json
    )


Who = Annotated[str, typer.Argument(help="The member's name.")]


@app.command("list")
def list_(seat: Seat = SEAT, as_json: Json = False) -> None:
    """List the members of the charter in force: group, budget, whether suspended or a safety officer.

    \b
    Example:
      hansa member list --seat alder/seat
    """
    from commons.written import money
    from governance.quoting import charter_in_force
    from hansa.chamber import Chamber
    from hansa.output import table

    with Chamber.at(seat) as chamber:
        charter = charter_in_force(chamber)
    rows = [
        (m.name, m.group or m.name, money(m.budget_micro), "suspended" if m.suspended else "member",
         "safety officer" if m.name in charter.voting.officers else "")
        for m in charter.members
    ]  # fmt: skip
    answer(charter.members, table(("name", "group", "budget", "state", "office"), rows), as_json=as_json)


@app.command("admit")
def admit(
    public: Annotated[Path, typer.Argument(help="The candidate's public key (NAME.pub).")],
    budget: Annotated[float, typer.Option(min=0, help="What it may spend, in the currency.")] = 0.0,
    group: Annotated[str, typer.Option(help="Member or group whose affiliate it is; none: its own.")] = "",
    title: Annotated[str, typer.Option(help="One line for the others.")] = "",
    print_note: PrintNote = False,
    submit: Submit = None,
    seat: Seat = SEAT,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Propose to admit a member. Two thirds of the members have to vote for it.

    \b
    Example:
      hansa member admit keys/elm.pub --budget 10 --seat alder/seat
    """
    from hansa.commands.proposal import open_with
    from hansa.keys import read_public
    from hansa.signing import Signing
    from hansa.voting import Wish

    candidate = read_public(public)
    settings = [("name", candidate.name), ("key", candidate.vkey), ("budget_micro", str(round(budget * 1e6)))]
    settings += [("group", group)] if group else []
    wish = Wish("member-admit", settings, title or f"Admit {candidate.name}")
    open_with(Signing(seat, key, print_note, submit), wish, as_json=as_json)


_CHANGES = (
    (
        "suspend",
        "Propose to suspend a member: no vote, no orders to its sites. It has no vote on it.",
        'hansa member suspend birch --reason "Its site repeats old updates." --seat alder/seat',
    ),
    (
        "readmit",
        "Propose to give a suspended member its vote back.",
        "hansa member readmit birch --seat alder/seat",
    ),
    (
        "expel",
        "Propose to expel a member that has no site and pays for none. It has no vote on it.",
        'hansa member expel birch --reason "It left." --seat alder/seat',
    ),
)


def _change(what: str) -> Callable[..., None]:
    def propose(
        member: Annotated[str, typer.Argument(help="The member's name.")],
        reason: Annotated[str, typer.Option("--reason", help="Why; the others read it.")] = "",
        print_note: PrintNote = False,
        submit: Submit = None,
        seat: Seat = SEAT,
        key: Key = None,
        as_json: Json = False,
    ) -> None:
        from hansa.commands.proposal import open_with
        from hansa.signing import Signing
        from hansa.voting import Wish

        settings = [("name", member), *([("reason", reason)] if reason else [])]
        wish = Wish(f"member-{what}", settings, f"{what.capitalize()} {member}")
        open_with(Signing(seat, key, print_note, submit), wish, as_json=as_json)

    return propose


for _name, _help, _example in _CHANGES:
    app.command(_name, help=f"{_help}\n\n\b\nExample:\n  {_example}")(_change(_name))


@app.command("ballot-key")
def ballot_key(
    public: Annotated[
        Path, typer.Argument(help="Public key that may sign your ballots, made for MEMBER/ballot.")
    ],
    days: Annotated[int, typer.Option(min=0, max=3650, help="For how long; 0 takes it away.")] = 90,
    print_note: PrintNote = False,
    submit: Submit = None,
    seat: Seat = SEAT,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Let another key sign your ballots, and nothing else; it takes the place of the one before.

    \b
    Example:
      hansa member ballot-key keys/birch-ballot.pub --days 90 --seat birch/seat
    """
    import time

    from commons.ballot_weights import DAY_MS
    from hansa.chamber import Chamber
    from hansa.commands.proposal import show_note
    from hansa.keys import read_public
    from hansa.signing import Signing, say
    from hansa.voting import ballot_key_text

    own, expires_ms = read_public(public), time.time_ns() // 1_000_000 + days * DAY_MS
    with Chamber.at(seat) as chamber:
        said = say(
            chamber,
            Signing(seat, key, print_note, submit),
            lambda member: ballot_key_text(chamber, member, own, expires_ms),
        )
    if isinstance(said, str):
        show_note(said, as_json=as_json)
        return
    text = (
        f"It may sign your ballots for {days} days (journal record {said})."
        if days
        else f"Taken away (journal record {said})."
    )
    answer({"index": said, "expires_ms": expires_ms}, text, as_json=as_json)
