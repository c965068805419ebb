"""`hansa charter`: write, read, check and sign the document all partners agree on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hansa.options import SEAT, Json, Seat
from hansa.output import answer

app = typer.Typer(no_args_is_help=True)

CharterFile = Annotated[Path, typer.Argument(help="The charter, a TOML file.")]
CHARTER = Path("charter.toml")
Founding = Annotated[Path, typer.Option("--founding", help="Folder of the founders' signatures.")]
FOUNDING = Path("founding")


@app.callback()
def charters() -> None:
    """Write, check, sign and show the document all partners agree on."""


@app.command("new")
def new(
    log_key: Annotated[
        Path, typer.Option("--log-key", help="Public key of the consortium's log (NAME.pub).")
    ],
    member: Annotated[
        list[Path], typer.Option("--member", help="Public key of a member with a site; repeat.")
    ],
    file: CharterFile = CHARTER,
    funder: Annotated[
        list[Path] | None,
        typer.Option("--funder", help="Public key of a member without a site, who pays for one."),
    ] = None,
    budget: Annotated[float, typer.Option(min=0, help="What each member may spend, in the currency.")] = 10.0,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of a run.")] = 4,
    inner_steps: Annotated[int, typer.Option("--inner-steps", min=1, help="Training steps per round.")] = 20,
    model: Annotated[
        str, typer.Option(help="Model to start from: a family's name for a small one, or a published size.")
    ] = "glm4_moe",
    as_json: Json = False,
) -> None:
    """Write a charter to start from, with a model and one site per member; then edit it.

    The consortium gets the name of its log key, members and sites the names of theirs.

    \b
    Example:
      hansa charter new --log-key keys/quay.pub --member keys/alder.pub --member keys/birch.pub
    """
    from hansa.charters import new_charter

    made = new_charter(
        file, log_key=log_key, members=member, funders=funder or [], budget_micro=round(budget * 1e6),
        rounds=rounds, inner_steps=inner_steps, model=model,
    )  # fmt: skip
    text = [f"Wrote {file}. Edit it, then `hansa charter check {file}`; each member signs it when all agree."]
    answer({"path": file, "charter": made}, text, as_json=as_json)


@app.command("check")
def check(file: CharterFile = CHARTER, founding: Founding = FOUNDING, as_json: Json = False) -> None:
    """Check a charter: every problem at once, each with its line; and who has signed it.

    \b
    Example:
      hansa charter check charter.toml
    """
    from hansa.charters import check_charter

    checked = check_charter(file, founding)
    text = [f"{file} is a valid charter ({checked.digest})."]
    if checked.signed:
        text.append(f"Signed by {', '.join(checked.signed)}.")
    if checked.unsigned:
        text.append(
            f"Still to sign: {', '.join(checked.unsigned)} (hansa charter sign {file} --key THEIR.key)."
        )
    answer(checked.facts(), text, as_json=as_json)


@app.command("sign")
def sign(
    key: Annotated[Path, typer.Option("--key", help="Your secret key (NAME.key).")],
    file: CharterFile = CHARTER,
    founding: Founding = FOUNDING,
    as_json: Json = False,
) -> None:
    """Sign a charter as one of its members. Signing twice writes the same note.

    \b
    Example:
      hansa charter sign charter.toml --key keys/alder.key
    """
    from hansa.charters import sign_charter

    note, digest = sign_charter(file, key, founding)
    answer({"note": note, "charter": digest}, f"Signed {file} ({digest}): {note}", as_json=as_json)


@app.command("show")
def show(
    file: Annotated[Path | None, typer.Argument(help="A charter file; none: the charter in force.")] = None,
    seat: Seat = SEAT,
    as_json: Json = False,
) -> None:
    """Show a charter: a file's, or the one in force as the coordinator states it.

    \b
    Examples:
      hansa charter show charter.toml
      hansa charter show --seat alder/seat
    """
    from hansa.charters import charter_text, read_charter

    shown, digest = read_charter(file, seat)
    answer({"digest": digest, "charter": shown}, charter_text(shown, digest), as_json=as_json)
