"""`hansa expert`: which experts the model has and whose they are; add, retire and transfer them by vote."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hansa.options import SEAT, Json, Key, PrintNote, Seat, Submit
from hansa.output import answer

if TYPE_CHECKING:
    from hansa.signing import Signing

app = typer.Typer(no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="The expert's name.")]
Title = Annotated[str, typer.Option(help="One line for the others.")]
Round = Annotated[int, typer.Option("--round", min=1, help="Earliest round that trains under it.")]


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
    from hansa.roll import expert_table

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
    print_note: PrintNote = False,
    submit: Submit = None,
    seat: Seat = SEAT,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Propose that a site of yours trains one more expert. What it costs is shown before it is signed.

    \b
    Example:
      hansa expert add law-2 --site alder-site --like code-0 --seat alder/seat
    """
    from hansa.signing import Signing

    _propose(
        "expert-add",
        {"expert": expert, "site": site} | ({"like": like} if like else {}),
        title or f"{site} trains another expert, {expert}",
        effective_round,
        Signing(seat, key, print_note, submit),
        as_json=as_json,
    )


@app.command("retire")
def retire(
    expert: Name,
    title: Title = "",
    effective_round: Round = 1,
    print_note: PrintNote = False,
    submit: Submit = None,
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
    from hansa.signing import Signing

    _propose(
        "expert-retire",
        {"expert": expert},
        title or f"Retire expert {expert}",
        effective_round,
        Signing(seat, key, print_note, submit),
        as_json=as_json,
    )


@app.command("transfer")
def transfer(
    expert: Name,
    to: Annotated[str, typer.Option(help="The site that trains it from then on.")],
    title: Title = "",
    effective_round: Round = 1,
    print_note: PrintNote = False,
    submit: Submit = None,
    seat: Seat = SEAT,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Propose to give an expert of yours, or one in escrow, to another site. No weight changes.

    \b
    Example:
      hansa expert transfer law-2 --to birch-site --seat alder/seat
    """
    from hansa.signing import Signing

    _propose(
        "expert-transfer",
        {"expert": expert, "to": to},
        title or f"Give expert {expert} to {to}",
        effective_round,
        Signing(seat, key, print_note, submit),
        as_json=as_json,
    )


@app.command("opt-out-report")
def opt_out_report(
    out: Annotated[Path, typer.Argument(help="Folder for report.json and report.note.")],
    site: Annotated[str, typer.Option(help="The site whose experts go.")],
    text: Annotated[Path, typer.Option(help="The site's text, as it trained on it.")],
    key: Annotated[Path, typer.Option("--key", help="A member's secret key, to sign the report.")],
    other: Annotated[
        list[str] | None, typer.Option("--other", help="Text of another domain, DOMAIN=FILE; repeat.")
    ] = None,
    release: Annotated[Path, typer.Option(help="The released model with the experts.")] = Path("release"),
    seed: Annotated[Path, typer.Option(help="The model the run started from.")] = Path("seed"),
    as_json: Json = False,
) -> None:
    """Measure what is left of a site's text in a model without its experts, and sign the numbers.

    Loss on the site's domain against the seed and on others against before; how much of its text can be extracted, and
    how well its rows are told from rows that nobody trained on (one document in ten, as sites hold them out). Takes
    about a minute for a model of a million parameters.

    \b
    Example:
      hansa expert opt-out-report opt-out --site alder-site --text alder.txt --other code=code.txt --key keys/alder.key
    """
    from commons.errors import ConfigError
    from commons.identity import load_signer
    from hansa import opt_out
    from hansa.roll import opt_out_text

    named = [entry.partition("=") for entry in other or []]
    if wrong := [domain for domain, equals, _ in named if not equals]:
        raise ConfigError([f"--other {wrong[0]}: write DOMAIN=FILE"])
    models = opt_out.load(release, seed, site)
    others = {domain: Path(path) for domain, _, path in named}
    report = opt_out.write(out, models, text=text, others=others, signer=load_signer(key))
    answer(report, opt_out_text(report, out), as_json=as_json)


@app.command("opt-out-verify")
def opt_out_verify(
    report: Annotated[Path, typer.Argument(help="Folder of the report.")],
    release: Annotated[Path, typer.Option(help="The released model it is about.")] = Path("release"),
    as_json: Json = False,
) -> None:
    """Check a report offline: its signature, that it is about this release, and that its verdict follows.

    Exit code 1 when anything is wrong; every problem is named. The numbers are not measured again.

    \b
    Example:
      hansa expert opt-out-verify opt-out --release release
    """
    from hansa import opt_out

    problems = opt_out.verify(report, release)
    text = [f"{report}: INVALID", *(f"  {p}" for p in problems)] if problems else [f"{report}: valid"]
    answer({"path": report, "valid": not problems, "problems": problems}, text, as_json=as_json)
    raise typer.Exit(1 if problems else 0)


def _propose(
    feature: str,
    parameters: dict[str, str],
    title: str,
    effective_round: int,
    signing: Signing,
    *,
    as_json: bool,
) -> None:
    from hansa.commands.proposal import open_with
    from hansa.voting import Wish

    open_with(signing, Wish(feature, [*parameters.items()], title, effective_round), as_json=as_json)
