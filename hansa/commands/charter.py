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
    tokenizer: Annotated[
        Path | None,
        typer.Option(help="A tokenizer.json, which goes beside the charter; none: tokens are bytes."),
    ] = None,
    end: Annotated[
        str, typer.Option("--end", help="Its token that ends a document; none: <|endoftext|> or its like.")
    ] = "",
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="Hugging Face folder of a published model to start from, instead of --model."),
    ] = None,
    whole: Annotated[
        bool,
        typer.Option(
            "--whole", help="Each site begins with all experts of the checkpoint, in place of its share."
        ),
    ] = False,
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
        rounds=rounds, inner_steps=inner_steps, model=model, tokenizer=tokenizer, end=end, checkpoint=checkpoint,
        whole=whole,
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


@app.command("diff")
def diff(
    new: Annotated[str, typer.Argument(help="Version or file; none: the charter in force.")] = "",
    old: Annotated[
        str, typer.Option("--from", help="Version or file to compare it with; none: the one before.")
    ] = "",
    seat: Seat = SEAT,
    as_json: Json = False,
) -> None:
    """Show what differs between two charters.

    \b
    Example:
      hansa charter diff --seat alder/seat
      hansa charter diff 7 --from 1 --seat alder/seat
      hansa charter diff new.toml --from charter.toml
    """
    from commons.charter_file import diff as differences
    from hansa.charter_proofs import versions
    from hansa.proposal_text import diff_text

    before, after = versions(seat, old, new)
    found = differences(before, after)
    facts = [{"path": at, "old": was, "new": now} for at, was, now in found]
    answer(facts, [f"Version {before.version} -> {after.version}", *diff_text(found)], as_json=as_json)


@app.command("proof")
def proof(
    out: Annotated[Path, typer.Option("--out", help="Where to write the proof.")] = Path("charter.proof"),
    whole: Annotated[
        bool, typer.Option("--whole", help="With every vote since the founding, whoever vouches for them.")
    ] = False,
    lodged: Annotated[
        list[Path] | None,
        typer.Option("--lodged", help="A ballot that a site keeps (`hansa site lodge`); repeat."),
    ] = None,
    seat: Seat = SEAT,
    as_json: Json = False,
) -> None:
    """Get the proof that the charter in force follows from the founding, check it, and keep it as a file.

    \b
    Example:
      hansa charter proof --out charter.proof --seat alder/seat
    """
    from hansa.charter_proofs import fetch_proof

    file, verified = fetch_proof(seat, out, whole=whole, lodged=lodged or ())
    text = [
        *verified.steps,
        f"Charter version {verified.version} is proven by {len(file.entries)} records: {out}",
    ]
    answer(
        {"path": out, "version": verified.version, "digest": verified.digest, "steps": list(verified.steps)},
        text,
        as_json=as_json,
    )


@app.command("verify")
def verify(
    file: Annotated[
        Path, typer.Argument(help="A proof (`hansa charter proof`), or evidence a site has kept.")
    ],
    founding: Annotated[
        Path | None,
        typer.Option(
            "--trust", help="The founding charter you trust (charter.toml, or a seat's charter.json)."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Check a proof of the charter, offline: each step, or the one that does not hold and whether that convicts the coordinator.

    \b
    Example:
      hansa charter verify charter.proof --trust charter.toml
      hansa charter verify alder/site/state/evidence-4711.json
    """
    from hansa.charter_proofs import check_proof

    found = check_proof(file, founding)
    told = (
        []
        if founding
        else [
            f"It begins with founding charter {found.founding}: compare that with your own, or give --trust."
        ]
    )
    if found.verified:
        answer(
            found.facts,
            [*found.verified.steps, *told, f"Charter version {found.verified.version} holds."],
            as_json=as_json,
        )
        return
    guilt = (
        "The coordinator's key has signed exactly these records as its proof: this file is evidence against it."
        if found.convicts
        else "Nobody signed that these are all the records: the file convicts nobody."
    )
    assert found.refusal is not None, "a proof holds or is refused"
    answer(found.facts, [found.refusal.message, guilt, *told], as_json=as_json)
    raise typer.Exit(3)


@app.command("anchor")
def anchor(
    seat: Seat = SEAT,
    key: Annotated[
        Path | None, typer.Option("--key", help="Your secret key; without it: the seat's.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Recount every vote since the founding, then vouch for the charter in force, signed with your key.

    Once two thirds of the members have, newcomers need not recount what came before.

    \b
    Example:
      hansa charter anchor --seat alder/seat
    """
    from hansa.charter_proofs import vouch

    index, verified = vouch(seat, key)
    text = [*verified.steps, f"You vouch for charter version {verified.version} (journal record {index})."]
    answer({"index": index, "version": verified.version, "digest": verified.digest}, text, as_json=as_json)


@app.command("schema")
def schema(as_json: Json = False) -> None:
    """Print the JSON schema of the charter (docs/charter.schema.json).

    \b
    Example:
      hansa charter schema > charter.schema.json
    """
    from hansa.charters import schema_text

    typer.echo(schema_text(), nl=False)
