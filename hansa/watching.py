"""`hansa run watch`: follow one run until it ends."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from commons.errors import Unreachable
from commons.views import BudgetsView, RunView
from hansa.chamber import Chamber
from hansa.output import answer, line
from hansa.screen import Screen
from hansa.statements import run_line, run_table

ENDED = ("finished", "stopped")
PATIENCE_S = 60.0
"""How long a coordinator may be away before watching gives up."""


def watch_run(seat: Path, run: str, *, once: bool, as_json: bool) -> int:
    """Show the run as it goes. 0 when it finished, 1 when it was stopped. Raises Unreachable after a minute without."""
    with Chamber.at(seat) as chamber:
        if once:
            view = chamber.read(RunView, run)
            answer(view, [run_line(view), run_table(view)], as_json=as_json)
            return 0
        currency = chamber.read(BudgetsView).currency
        screen = Screen(live=not as_json and sys.stdout.isatty(), title=f"{chamber.seat.consortium}")
        with screen:
            view = _follow(chamber, run, screen, currency, as_json=as_json)
    if not as_json:
        print(ending(view))
    return 0 if view.phase == "finished" else 1


def ending(view: RunView) -> str:
    """How a run ended, in one or two lines."""
    losses = ", ".join(f"{domain} {loss:.3f}" for domain, loss in sorted(view.evaluation.items()))
    why = f": {view.reason}" if view.reason else ""
    return f"Run {view.run} is {view.phase}{why}. Held-out loss (nats/byte): {losses or 'not measured'}"


def _follow(chamber: Chamber, run: str, screen: Screen, currency: str, *, as_json: bool) -> RunView:
    lost_at: float | None = None
    while True:
        try:
            for view in chamber.watch(RunView, run):
                lost_at = None
                if as_json:
                    line(view)
                else:
                    screen.show(view, currency)
                if view.phase in ENDED:
                    return view
        except Unreachable:
            lost_at = lost_at or time.monotonic()
            if time.monotonic() - lost_at > PATIENCE_S:
                raise
            screen.aside("The coordinator does not answer; trying again.")
            time.sleep(1)
