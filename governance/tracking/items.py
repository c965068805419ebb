"""What the mirror writes: runs, values on them, files, endings. Plain values, each the same however often made."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Experiment = Literal["training", "governance"]
Status = Literal["FINISHED", "FAILED", "KILLED"]


@dataclass(frozen=True)
class Start:
    """A run, known for ever by `idem`."""

    idem: str
    experiment: Experiment
    name: str
    start_ms: int
    parent: str | None = None
    """`idem` of the parent run."""
    tags: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Point:
    """One value of a metric. MLflow keeps the same key, step, time and value once."""

    key: str
    value: float
    step: int
    at_ms: int


@dataclass(frozen=True)
class Log:
    run: str
    points: tuple[Point, ...] = ()
    params: dict[str, str] = field(default_factory=dict)
    """Set once; a run's parameters never change."""
    tags: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class File:
    run: str
    path: str
    text: str


@dataclass(frozen=True)
class End:
    run: str
    status: Status
    at_ms: int


Item = Start | Log | File | End
