"""The `hansa` command: which commands there are, and what happens when one fails.

Nothing heavy is imported here: `hansa --help` answers in under 0.3 s, and each command imports what it needs
after its arguments were understood. The commands themselves are in `hansa.commands`, one module per group.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import typer
from typer.core import TyperGroup

from commons.errors import HansaError
from hansa.commands import (
    bench,
    budget,
    charter,
    coordinator,
    dashboard,
    demo,
    expert,
    journal,
    key,
    member,
    mirror,
    proposal,
    release,
    run,
    sample,
    seed,
    site,
    tokenizer,
)
from hansa.output import INTERRUPTED, explain_bug

HELP = """Several organisations train one mixture-of-experts language model together.

Each keeps its text and its own experts at home; what they share, what it costs and who decides
is written down, signed and checked.

\b
Start here:
  hansa demo          a whole consortium on this machine, in about four minutes
  hansa COMMAND -h    what a command does, with an example

Your own consortium, step by step: docs/getting-started.md
"""


class Guarded(TyperGroup):
    """Errors a person can act on become their text and exit code; a bug becomes one line and a log."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except HansaError as error:
            typer.echo(str(error), err=True)
            raise typer.Exit(error.exit_code) from None
        except BrokenPipeError:
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - lives until exit; the reader has gone
            raise typer.Exit(141) from None
        except KeyboardInterrupt:
            typer.echo("Stopped.", err=True)
            raise typer.Exit(INTERRUPTED) from None
        except (typer.Exit, typer.Abort, typer.TyperException):
            raise
        except Exception as error:  # noqa: BLE001 - the last door before the user
            typer.echo(explain_bug(error), err=True)
            raise typer.Exit(70) from None


app = typer.Typer(
    name="hansa",
    cls=Guarded,
    help=HELP,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("demo")(demo.demo)
app.add_typer(key.app, name="key")
app.add_typer(charter.app, name="charter")
app.add_typer(sample.app, name="sample")
app.add_typer(tokenizer.app, name="tokenizer")
app.add_typer(seed.app, name="seed")
app.add_typer(coordinator.app, name="coordinator")
app.add_typer(member.app, name="member")
app.add_typer(site.app, name="site")
app.add_typer(run.app, name="run")
app.add_typer(budget.app, name="budget")
app.add_typer(proposal.app, name="proposal")
app.add_typer(expert.app, name="expert")
app.command("vote")(proposal.vote_on_all)
app.add_typer(release.app, name="release")
app.add_typer(journal.app, name="journal")
app.command("dashboard")(dashboard.dashboard)
app.add_typer(mirror.app, name="mirror")
app.command("bench")(bench.bench)


def main() -> None:
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # what gRPC has to say reaches people as our errors
    app()
