"""Comparing what MLflow shows with what the journal says it should. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from governance.tracking.items import Point
from governance.tracking.sketch import OURS, UNCOMPARED, ShownRun, Sketch

SHOWN_MAX = 3
"""Values that one finding names; the rest is a number."""


@dataclass(frozen=True)
class Finding:
    kind: Literal["missing", "duplicate", "different", "foreign"]
    where: str
    """The run, version or alias."""
    what: str


@dataclass
class Found:
    """What MLflow shows."""

    runs: list[tuple[str, ShownRun]] = field(default_factory=list)
    """(`idem`, the run); of a run that the mirror did not make, the `idem` is empty."""
    deleted: set[str] = field(default_factory=set)
    """`idem` of runs that lie among MLflow's deleted ones."""
    versions: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    """(`idem`, tags)."""
    aliases: dict[str, str] = field(default_factory=dict)


def compare(least: Sketch, most: Sketch, found: Found) -> list[Finding]:
    """`least` must be there, `most` may be: they differ by a batch that was interrupted."""
    findings = [*_runs(least, most, found), *_versions(least, most, found)]
    for alias in sorted(most.aliases.keys() | found.aliases.keys()):
        named, may = found.aliases.get(alias), (least.aliases.get(alias), most.aliases.get(alias))
        if named in may:
            continue
        if named is None:
            findings.append(Finding("missing", f"alias {alias}", f"by the votes it names {may[1]}"))
        elif may == (None, None):
            findings.append(Finding("foreign", f"alias {alias}", f"it names {named}, and no vote made it"))
        else:
            what = f"it names {named}, by the votes {may[1]}: somebody moved it by hand"
            findings.append(Finding("different", f"alias {alias}", what))
    return findings


def _runs(least: Sketch, most: Sketch, found: Found) -> Iterator[Finding]:
    times = Counter(idem for idem, _ in found.runs)
    for idem in least.runs:
        if not times[idem]:
            by_hand = "somebody deleted it in MLflow" if idem in found.deleted else "MLflow has no such run"
            yield Finding("missing", idem, by_hand)
    for idem, count in times.items():
        if idem in most.runs and count > 1:
            yield Finding("duplicate", idem, f"it stands {count} times")
    for idem, run in found.runs:
        if idem not in most.runs:
            what = f"a run of {run.experiment} that no record of the journal made"
            yield Finding("foreign", f"run {run.name!r}" + (f" ({idem})" if idem else ""), what)
        else:
            yield from _run(idem, least.runs.get(idem), most.runs[idem], run)


def _run(idem: str, least: ShownRun | None, most: ShownRun, found: ShownRun) -> Iterator[Finding]:
    least = least or ShownRun(most.name, most.experiment, most.start_ms, most.parent)
    for name in ("name", "experiment", "start_ms", "parent", "status", "end_ms"):
        value, may = getattr(found, name), (getattr(least, name), getattr(most, name))
        if value not in may:
            yield Finding("different", idem, f"{name} is {value!r}, by the journal {may[1]!r}")
    ours = {k: v for k, v in found.tags.items() if k in most.tags or k.startswith(OURS)}
    yield from _values(idem, "tag", _compared(least.tags), _compared(most.tags), _compared(ours))
    yield from _values(idem, "parameter", least.params, most.params, found.params)
    yield from _values(idem, "file", least.files, most.files, found.files)
    if gone := least.points - found.points:
        yield Finding("missing", idem, f"points of metrics: {_some(gone)}")
    if more := found.points - most.points:
        yield Finding("different", idem, f"points that the journal does not give: {_some(more)}")


def _versions(least: Sketch, most: Sketch, found: Found) -> Iterator[Finding]:
    times = Counter(idem for idem, _ in found.versions)
    for idem in least.versions:
        if not times[idem]:
            yield Finding("missing", idem, f"{most.model} has no such version")
    for idem, count in times.items():
        if idem in most.versions and count > 1:
            yield Finding("duplicate", idem, f"{most.model} has it {count} times")
    for idem, tags in found.versions:
        if idem not in most.versions:
            yield Finding("foreign", f"a version of {most.model}", "no release of the journal made it")
            continue
        ours = {k: v for k, v in tags.items() if k.startswith(OURS)}
        may = most.versions[idem]
        yield from _values(
            idem, "tag", _compared(least.versions.get(idem, {})), _compared(may), _compared(ours)
        )


def _values(
    idem: str, kind: str, least: Mapping[str, str], most: Mapping[str, str], found: Mapping[str, str]
) -> Iterator[Finding]:
    for name in sorted(least.keys() | found.keys()):
        value, may = found.get(name), (least.get(name), most.get(name))
        if value in may:
            continue
        if value is None:
            yield Finding("missing", idem, f"{kind} {name}")
        elif may == (None, None):
            yield Finding("different", idem, f"{kind} {name} is none of the journal's")
        else:
            said = "" if kind == "file" else f" is {_short(value)}, by the journal {_short(may[1] or '')}"
            yield Finding("different", idem, f"{kind} {name}{said or ' was changed'}")


def _compared(tags: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in tags.items() if name not in UNCOMPARED}


def _some(points: set[Point]) -> str:
    ordered: Sequence[Point] = sorted(points, key=lambda p: (p.key, p.step))
    named = ", ".join(f"{p.key} = {p.value:g} at step {p.step}" for p in ordered[:SHOWN_MAX])
    return named + (f" and {len(ordered) - SHOWN_MAX} more" if len(ordered) > SHOWN_MAX else "")


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:57]}...")
