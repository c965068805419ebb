"""What the mirror writes: runs, values on them, files, endings, versions of a model. Plain values, each the same however
often made; what only the journal itself can give (a proof, a statement) is named here and made when it is written."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Experiment = Literal["training", "governance", "ledger"]
EXPERIMENTS: tuple[Experiment, ...] = ("training", "governance", "ledger")
Status = Literal["FINISHED", "FAILED", "KILLED"]
TEXT_MAX = 5000
"""Characters of a tag or parameter; MLflow's smallest limit over its versions."""


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
    page: str = ""
    """Its page in the dashboard, below the dashboard's address."""


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
class Proof:
    """A file that proves one record to stand in the journal."""

    run: str
    path: str
    index: int


@dataclass(frozen=True)
class Statement:
    """The files of a partner's statement of a closed period."""

    run: str
    partner: str
    period: str


@dataclass(frozen=True)
class End:
    run: str
    status: Status
    at_ms: int


@dataclass(frozen=True)
class Version:
    """A release as a version of the registered model, known for ever by `idem`; its files are in `folder` of `run`."""

    idem: str
    model: str
    run: str
    folder: str
    about: str
    tags: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Alias:
    """A name of the registered model, moved to this version."""

    model: str
    name: str
    version: str
    """`idem` of the version."""
    tags: dict[str, str] = field(default_factory=dict)
    """Of the version: by which vote."""


Item = Start | Log | File | Proof | Statement | End | Version | Alias
