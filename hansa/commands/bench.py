"""`hansa bench`: measure what is promised, again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from hansa.options import Json


def bench(
    name: Annotated[
        str,
        typer.Argument(
            help="What to measure: demo, ledger, dataplane, learning, governance or dashboard.",
            show_default=False,
        ),
    ],
    work: Annotated[Path, typer.Option(help="Where parts that are done are kept, to go on from.")] = Path(
        "runs/bench"
    ),
    long: Annotated[bool, typer.Option("--long", help="Also the parts that take an hour.")] = False,
    tier: Annotated[
        str, typer.Option(help="Of learning: T1 for a CPU, T2 (152 M parameters) for a GPU.")
    ] = "T1",
    texts: Annotated[
        Path | None, typer.Option(help="Of learning's T2: folder with a text for each domain.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure the figures of one area, print them, and write them to benchmarks/results and docs/benchmarks.md.

    Runs from a checkout of the project.

    Example:
      hansa bench demo
    """
    import importlib.util
    import inspect
    import sys
    from dataclasses import asdict

    from commons.errors import HansaError
    from hansa.output import answer, table

    # Packages exist that install a `tests` of their own; the checkout's comes first.
    sys.path.insert(0, str(Path(__file__).parents[2]))
    if not name.isidentifier() or importlib.util.find_spec("benchmarks") is None:
        raise HansaError(f"no benchmark {name!r} here; benchmarks run in a checkout of the project")
    if importlib.util.find_spec(f"benchmarks.{name}") is None:
        raise HansaError(
            f"there is no benchmark {name!r}; there are: demo, ledger, dataplane, learning, governance, dashboard"
        )
    measure = importlib.import_module(f"benchmarks.{name}").main
    if long and "long" not in inspect.signature(measure).parameters:
        raise HansaError(f"the benchmark {name} has no long parts; run it without --long")
    asked: dict[str, Any] = {"long": True} if long else {}
    if tier != "T1" or texts is not None:
        if name != "learning":
            raise HansaError(f"--tier and --texts are for the benchmark learning, not for {name}")
        asked |= {"tier": tier, "texts": texts}
    figures = measure(work / name, **asked)
    rows = [
        (f.figure, f"{f.value} {f.unit}", f.target, {True: "yes", False: "NO", None: ""}[f.met])
        for f in figures
    ]
    answer(
        [asdict(f) for f in figures], table(("figure", "measured", "target", "met"), rows), as_json=as_json
    )
