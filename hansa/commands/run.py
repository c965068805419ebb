"""`hansa run`: start, watch and stop a training run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hansa.options import HOME, SEAT, Home, Json, Key, PrintNote, Seat, Submit
from hansa.output import answer

app = typer.Typer(no_args_is_help=True)


@app.callback()
def runs() -> None:
    """Start, watch and stop a training run."""


@app.command("start")
def start(
    home: Home = HOME,
    seed: Annotated[Path, typer.Option(help="The model to start from (`hansa seed make`).")] = Path("seed"),
    run: Annotated[str, typer.Option(help="Name of the run; empty: the number after the last one.")] = "",
    as_json: Json = False,
) -> None:
    """Start a run, as the coordinator's operator. The first round begins when the charter's sites are there.

    \b
    Example:
      hansa run start --seed seed
    """
    from hansa.chamber import Chamber
    from hansa.hosting import operator_seat

    with Chamber.at(operator_seat(home)) as chamber:
        started = chamber.start_run(seed, run)
    answer({"run": started}, f"Run {started} is open. Watch it: hansa run watch", as_json=as_json)


@app.command("watch")
def watch(
    run: Annotated[str, typer.Argument(help="The run; empty: the current one.")] = "",
    seat: Seat = SEAT,
    once: Annotated[bool, typer.Option("--once", help="Show it once and leave.")] = False,
    as_json: Json = False,
) -> None:
    """Watch a run live until it ends: each site's state, speed, loss, traffic and spend left.

    In a pipe it prints a line whenever something changes; with --json a JSON object per change.

    \b
    Example:
      hansa run watch --seat alder/seat
    """
    from hansa.watching import watch_run

    raise typer.Exit(watch_run(seat, run, once=once, as_json=as_json))


@app.command("contribution")
def contribution(
    run: Annotated[str, typer.Argument(help="The run; empty: the current one.")] = "",
    seat: Seat = SEAT,
    as_json: Json = False,
) -> None:
    """Show what each site's updates and each expert were worth on the charter's probe.

    \b
    Example:
      hansa run contribution --seat alder/seat
    """
    from hansa.worth import show_worth

    show_worth(seat, run, as_json=as_json)


@app.command("stop")
def stop(
    run: Annotated[str, typer.Argument(help="The run; empty: the current one.")] = "",
    home: Home = HOME,
    reason: Annotated[str, typer.Option(help="Why; written into the journal.")] = "stopped by the operator",
    as_json: Json = False,
) -> None:
    """Stop a run, as the coordinator's operator. The last combined model stays.

    \b
    Example:
      hansa run stop --reason "wrong text at a site"
    """
    from hansa.chamber import Chamber
    from hansa.hosting import operator_seat

    with Chamber.at(operator_seat(home)) as chamber:
        chamber.stop_run(run, reason)
    answer({"run": run, "reason": reason}, f"Stopped: {reason}", as_json=as_json)


@app.command("pause")
def pause(
    reason: Annotated[str, typer.Option("--reason", help="Why; the others read it.")],
    print_note: PrintNote = False,
    submit: Submit = None,
    seat: Seat = SEAT,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Open no further round, at once, as a safety officer. It lapses unless the members vote for it.

    \b
    Example:
      hansa run pause --reason "A site uploads nonsense." --seat coop/seat
    """
    from hansa.chamber import Chamber
    from hansa.commands.proposal import show_note
    from hansa.signing import Signing, say
    from hansa.voting import pause_text

    with Chamber.at(seat) as chamber:
        signing = Signing(seat, key, print_note, submit)
        said = say(chamber, signing, lambda member: pause_text(chamber, member, reason))
    if isinstance(said, str):
        show_note(said, as_json=as_json)
        return
    text = (
        f"No further round opens (journal record {said}). The members make it last: hansa proposal open pause"
    )
    answer({"index": said}, text, as_json=as_json)
