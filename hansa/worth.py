"""`hansa run contribution`: what single updates and experts were worth on the probe, from the rounds that were appraised."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from commons.views import RunView
from hansa.chamber import Chamber
from hansa.output import answer, table

NOTHING = (
    "No round of run {run} was appraised: contribution.every in the charter says in which rounds that is done, [probe] on what.",
    "Members vote for both: hansa proposal open contribution -s every=5",
)


def show_worth(seat: Path, run: str, *, as_json: bool) -> None:
    with Chamber.at(seat) as chamber:
        view = chamber.read(RunView, run)
    found = worth_of(view)
    answer(found, _lines(found), as_json=as_json)


def worth_of(view: RunView) -> dict[str, Any]:
    """Per update's site and per expert the mean and the last worth in percent of the probe loss; per partner
    its share of all that is worth something, in percent."""
    appraised = [r for r in view.history if r.worth_ppm or r.experts_ppm]
    partners = {s.site: s.partner for s in view.sites}
    updates: dict[str, list[int]] = {}
    experts: dict[str, list[int]] = {}
    total = dict.fromkeys(sorted(partners.values()), 0)
    for done in appraised:
        for name, ppm in done.worth_ppm.items():
            site = name.rpartition("/")[0]
            updates.setdefault(site, []).append(ppm)
            if site in partners:
                total[partners[site]] += ppm
        for expert, ppm in done.experts_ppm.items():
            experts.setdefault(expert, []).append(ppm)
    return {
        "run": view.run,
        "rounds": [r.round for r in appraised],
        "updates": [_row("site", s, ppm) | {"partner": partners.get(s, "")} for s, ppm in sorted(updates.items())],
        "experts": [_row("expert", e, ppm) for e, ppm in sorted(experts.items())],
        "share_percent": _shares(total),
    }  # fmt: skip


def _shares(total: Mapping[str, int]) -> dict[str, float]:
    whole = sum(max(0, ppm) for ppm in total.values())
    return {partner: round(100 * max(0, ppm) / whole, 1) if whole else 0.0 for partner, ppm in total.items()}


def _row(what: str, name: str, ppm: Sequence[int]) -> dict[str, Any]:
    return {
        what: name,
        "measured": len(ppm),
        "mean_percent": round(sum(ppm) / len(ppm) / 10_000, 4),
        "last_percent": ppm[-1] / 10_000,
    }


def _lines(found: Mapping[str, Any]) -> list[str]:
    if not found["rounds"]:
        return [line.format(run=found["run"]) for line in NOTHING]
    last = found["rounds"][-1]
    lines = [
        f"Run {found['run']}, {len(found['rounds'])} rounds appraised, the last {last}.",
        "Worth: what the probe loss rises by without it, in percent; below zero the model is better without.",
    ]
    if found["updates"]:
        head = ("update of", "partner", "rounds", "mean", "last", "partner's share")
        rows = [(*_cells(row, "site", row["partner"]), f"{found['share_percent'].get(row['partner'], 0.0)} %") for row in found["updates"]]  # fmt: skip
        lines += ["", table(head, rows)]
    if found["experts"]:
        rows = [_cells(row, "expert") for row in found["experts"]]
        lines += ["", table(("expert", "rounds", "mean", "last"), rows)]
    return lines


def _cells(row: Mapping[str, Any], what: str, *more: str) -> tuple[object, ...]:
    return (row[what], *more, row["measured"], f"{row['mean_percent']:+.3f}", f"{row['last_percent']:+.3f}")
