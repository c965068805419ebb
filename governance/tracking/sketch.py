"""What MLflow should show, and what it shows, as values that can be compared.

A sketch is drawn from the mirror's items alone and knows no MLflow; what it holds of a file is its SHA-256.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from commons.notes import digest
from governance.tracking.items import (
    TEXT_MAX,
    Alias,
    End,
    File,
    Item,
    Log,
    Point,
    Proof,
    Start,
    Statement,
    Version,
)
from governance.tracking.papers import Papers

OURS = ("hansa.", "proposal.")
"""How the mirror's own tags begin; any other is a person's, but for those that it sets."""
UNCOMPARED = ("hansa.idem", "hansa.url")
"""The first is how runs are found; the second depends on how the coordinator was started."""


@dataclass
class ShownRun:
    """One run as a user of MLflow sees it."""

    name: str
    experiment: str
    start_ms: int
    parent: str = ""
    """`idem` of the parent run."""
    status: str = "RUNNING"
    end_ms: int | None = None
    tags: dict[str, str] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    points: set[Point] = field(default_factory=set)
    files: dict[str, str] = field(default_factory=dict)
    """Path -> digest."""


@dataclass
class Sketch:
    """By `idem`. Changes only by `draw`."""

    runs: dict[str, ShownRun] = field(default_factory=dict)
    versions: dict[str, dict[str, str]] = field(default_factory=dict)
    """Version -> its tags."""
    aliases: dict[str, str] = field(default_factory=dict)
    """Alias -> version."""
    model: str = ""

    def draw(self, items: Sequence[Item], papers: Papers) -> None:
        """Add what a batch of items makes of it."""
        for item in items:
            match item:
                case Start(idem, experiment, name, start_ms, parent, tags):
                    tags = {key: value[:TEXT_MAX] for key, value in tags.items()}
                    self.runs[idem] = ShownRun(name, experiment, start_ms, parent or "", tags=tags)
                case Log(run, points, params, tags):
                    shown = self.runs[run]
                    shown.points |= {stored(point) for point in points}
                    shown.params |= {key: value[:TEXT_MAX] for key, value in params.items()}
                    shown.tags |= {key: value[:TEXT_MAX] for key, value in tags.items()}
                case File(run, path, text):
                    self.runs[run].files[path] = digest(text.encode())
                case Proof(run, path, index):
                    self.runs[run].files[path] = digest(papers.proof(index).encode())
                case Statement(run, partner, period):
                    for path, text in papers.statement(partner, period).items():
                        self.runs[run].files[path] = digest(text.encode())
                case End(run, status, at_ms):
                    self.runs[run].status, self.runs[run].end_ms = status, at_ms
                case Version(idem, model, tags=tags):
                    self.model, self.versions[idem] = model, dict(tags)
                case Alias(model, name, version, tags):
                    self.model, self.aliases[name] = model, version
                    self.versions[version] |= tags


def stored(point: Point) -> Point:
    """A point as MLflow gives it back: infinity becomes the largest number, and all that are no number are one."""
    value = float(point.value)
    if math.isnan(value):
        return Point(point.key, NAN, point.step, point.at_ms)
    largest = sys.float_info.max
    return Point(point.key, max(-largest, min(largest, value)), point.step, point.at_ms)


NAN = float("nan")
"""The one and only: a set finds it by identity."""
