"""`hansa demo`: a whole consortium on one machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hansa.options import Json


def demo(
    folder: Annotated[Path, typer.Option("--dir", help="Where everything goes.")] = Path("runs/demo"),
    rounds: Annotated[
        int | None, typer.Option(min=4, max=1000, help="Rounds of training; more: a better model.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="The same seed gives the same model.")] = 0,
    joint: Annotated[
        bool, typer.Option("--joint", help="Sites hold the others' experts too, and there are no readers.")
    ] = False,
    full: Annotated[bool, typer.Option("--full", help="Measure every partner alone, not just one.")] = False,
    central: Annotated[bool, typer.Option("--central", help="Also train on all texts in one place.")] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="A tiny model: shows everything, learns little.")
    ] = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Delete what an older demo left in the folder.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the demo in the folder.")] = False,
    as_json: Json = False,
) -> None:
    """Run a whole consortium on this machine: found it, train, vote, pay, release. About four minutes.

    Five partners (alder, birch, cedar, dogwood with a site and text each; elm pays for one of them)
    found a consortium, train one model in four separate processes, switch on a feature by vote, meet
    a budget that runs out, and release the model. Nothing is downloaded.

    \b
    Examples:
      hansa demo
      hansa demo --full --central    all the comparisons, takes longer
      hansa demo --resume            go on after Ctrl-C
    """
    from hansa.demo.run import run_demo
    from hansa.demo.stage import Options

    options = Options(folder=folder, rounds=rounds, seed=seed, joint=joint, full=full, central=central, quick=quick, fresh=fresh,
                      resume=resume, as_json=as_json)  # fmt: skip
    raise typer.Exit(run_demo(options))
