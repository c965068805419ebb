"""A run as a person watches it: a live table on a terminal, plain lines in a pipe.

Owns what is shown and when a line is worth printing; knows nothing of where views come from.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

from typing_extensions import Self

from commons.views import RoundView, RunView, SiteView
from commons.written import duration, money, size

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

EVENTS_SHOWN = 8
REDRAWS_PER_S = 4
WAITS_S = 10.0
"""A wait is worth a line once it has lasted this long."""
QUIET_STATES = ("admitted", "left out")
"""Waiting that is told otherwise: for the others, or with the round's line."""
STATE_STYLE = {
    "training": "green",
    "admitted": "green",
    "left out": "yellow",
    "refused": "red",
    "gone": "red",
    "offline": "dim",
    "idle": "dim",
}


class Screen:
    """Shows views and events. A context manager, so that the terminal is always given back.

    `live`: a table redrawn in place; else one line per event, round and change of phase on `out`.
    """

    def __init__(self, *, live: bool, out: TextIO | None = None, title: str = "") -> None:
        self._out = out or sys.stdout
        self._title = title
        self._events: deque[str] = deque(maxlen=EVENTS_SHOWN)
        self._started = time.monotonic()
        self._view: RunView | None = None
        self._currency = ""
        self._aside: tuple[str, ...] = ()
        self._told_rounds = 0
        self._waits: dict[str, float] = {}
        self._told_waits: set[str] = set()
        self._told_phase = ""
        self._live = _live(self) if live else None

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def event(self, text: str) -> None:
        """Something happened that a person should read."""
        elapsed = time.monotonic() - self._started
        line = f"[{int(elapsed) // 60:02d}:{int(elapsed) % 60:02d}] {text}"
        if self._live:
            self._events.append(line)
        else:
            print(line, file=self._out, flush=True)

    def aside(self, *lines: str) -> None:
        """What goes on beside the run; shown below the table."""
        self._aside = lines

    def show(self, view: RunView, currency: str = "") -> None:
        """The newest view; a repeat prints nothing new."""
        self._view, self._currency = view, currency
        if self._live:
            return
        self._tell_waiting(view)
        for done in closed(view)[self._told_rounds :]:
            self.event(round_line(done, view))
            self._told_rounds += 1
        if view.phase != self._told_phase:
            self._told_phase = view.phase
            self.event(f"run {view.run}: {view.phase}" + (f" ({view.reason})" if view.reason else ""))

    def _tell_waiting(self, view: RunView) -> None:
        """A line for each reason to wait that has lasted, once."""
        now = time.monotonic()
        reasons = {
            f"{s.site} {s.state}: {s.why}" for s in view.sites if s.why and s.state not in QUIET_STATES
        } | ({view.reason} if view.reason else set())
        self._waits = {reason: self._waits.get(reason, now) for reason in reasons}
        for reason in reasons - self._told_waits:
            if now - self._waits[reason] >= WAITS_S:
                self._told_waits.add(reason)
                self.event(reason)

    def __rich__(self) -> Group:
        from rich.console import Group
        from rich.text import Text

        elapsed = duration(time.monotonic() - self._started)
        parts: list[Text | Table] = [Text(f"{self._title}  {elapsed}".strip(), style="bold")]
        if self._view:
            parts += [Text(headline(self._view)), _sites(self._view.sites, self._currency)]
        parts += [Text(line, style="cyan") for line in self._aside]
        parts += [Text(line, style="dim") for line in self._events]
        return Group(*parts)


def closed(view: RunView) -> list[RoundView]:
    return [r for r in view.history if r.closed_ms is not None]


def seconds_left(view: RunView) -> float | None:
    """From the last rounds measured; None before the second is closed, as the first waits for sites to come up."""
    recent = [(r.closed_ms or 0) - r.opened_ms for r in closed(view)][1:][-5:]
    if not recent:
        return None
    left = view.rounds - len(closed(view))
    return max(0.0, left * sum(recent) / len(recent) / 1000)


def headline(view: RunView) -> str:
    """Position, charter, codecs, progress and time left on one line."""
    done = len(closed(view))
    left = seconds_left(view)
    filled = round(24 * done / max(1, view.rounds))
    bar = "━" * filled + "╌" * (24 - filled)
    codecs = ""
    if view.history:
        last = view.history[-1]
        codecs = f"  sends trunk {last.uplink_trunk}, experts {last.uplink_expert}"
    time_left = f"  about {duration(left)} left" if left is not None and view.phase == "training" else ""
    return f"{bar} round {view.round}/{view.rounds}  {view.phase}  charter v{view.charter_version}{codecs}{time_left}"


def round_line(done: RoundView, view: RunView) -> str:
    """One closed round as a line."""
    losses = (
        ", ".join(f"{site} {loss:.3f}" for site, loss in sorted(done.losses.items())) or "losses withheld"
    )
    took = ((done.closed_ms or 0) - done.opened_ms) / 1000
    absent = [
        f"{site} (at work)" if site in done.carried else site for site in (*done.missing, *done.left_out)
    ]
    without = f"; without {', '.join(absent)}" if absent else ""
    late = "".join(f"; with {site} {how}" for site, how in sorted(done.late.items()))
    left = seconds_left(view)
    more = f"; about {duration(left)} left" if left and done.round < view.rounds else ""
    return (
        f"round {done.round}/{view.rounds} in {took:.1f} s under charter v{done.charter_version}: {losses}; "
        f"{_probe(done)}{size(done.bytes_up)} up, {size(done.bytes_down)} down{late}{without}{more}"
    )


def _probe(done: RoundView) -> str:
    """What the sites measured of the round's new state."""
    if done.verdict == "unmeasured":
        return "probe not measured; "
    if done.probe_loss is None or done.probe_change_ppm is None:
        return ""
    found = f"probe {done.probe_loss:.3f} ({done.probe_change_ppm / 10_000:+.1f} %)"
    return f"{found}, rolled back; " if done.verdict == "rolled-back" else f"{found}; "


def _sites(sites: Sequence[SiteView], currency: str) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("site", "text", "state"):
        table.add_column(name, no_wrap=True)
    for name in ("step", "tokens/s", "loss", "held out", "up", "down", f"left {currency}".strip()):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("waits because", overflow="fold")
    for s in sites:
        style = STATE_STYLE.get(s.state, "")
        table.add_row(
            s.site, s.domain, f"[{style}]{s.state}[/]" if style else s.state,
            f"{s.step}/{s.steps}" if s.steps else "", f"{s.tokens_per_s:,.0f}" if s.tokens_per_s else "",
            _loss(s.loss), _loss(s.held_out_loss), size(s.bytes_up), size(s.bytes_down), money(s.spend_left_micro), s.why,
        )  # fmt: skip
    return table


def _loss(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _live(screen: Screen):  # type: ignore[no-untyped-def]
    from rich.console import Console
    from rich.live import Live

    return Live(screen, console=Console(file=screen._out), refresh_per_second=REDRAWS_PER_S, transient=False)
