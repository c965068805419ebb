"""What the recorded runs say: means over seeds, gaps to central, and the tables made of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.figures import RESULTS
from benchmarks.learning_parts.plan import NEVER
from benchmarks.learning_parts.scores import gap_closed, gap_percent, macro

Run = Mapping[str, Any]
KEPT = RESULTS / "learning"
"""One JSON file a run."""


@dataclass(frozen=True)
class Spread:
    """Over seeds."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return float(np.mean(self.values))

    def text(self, digits: int = 3) -> str:
        if len(self.values) == 1:
            return f"{self.mean:.{digits}f}"
        return f"{self.mean:.{digits}f} ± {np.std(self.values, ddof=1):.{digits}f}"


class Runs:
    """The recorded runs of one size: variant -> seed -> run."""

    def __init__(self, folder: Path, size: str, *, side: str) -> None:
        self.side = side
        self.by_variant: dict[str, dict[int, Run]] = {}
        for file in sorted(folder.glob(f"{size}-*.json")):
            found = json.loads(file.read_text())
            self.by_variant.setdefault(found["variant"]["name"], {})[found["seed"]] = found

    def losses(self, variant: str, seed: int, kind: str | None = None) -> dict[str, float]:
        """By default as the variant is meant to be used: lean shards without readers with their experts chosen by posterior."""
        run = self.by_variant[variant][seed]
        lean = run["variant"]["holds"] == "own" and "posterior" in run[self.side] and not _reads(run)
        found: dict[str, float] = run[self.side][kind or ("posterior" if lean else "losses")]
        return found

    def spread(self, variant: str, kind: str | None = None) -> Spread:
        """Of the macro average."""
        return Spread(tuple(macro(self.losses(variant, seed, kind)) for seed in self._seeds(variant)))

    def gap(self, variant: str, central: str = "central", kind: str | None = None) -> Spread | None:
        """Percent above central of the same seed; None without a common seed."""
        both = [s for s in self._seeds(variant) if s in self.by_variant.get(central, {})]
        found = [
            gap_percent(macro(self.losses(variant, s, kind)), macro(self.losses(central, s))) for s in both
        ]
        return Spread(tuple(found)) if found else None

    def closed(self, variant: str) -> float | None:
        if not {"alone", "central"} <= set(self.by_variant):
            return None
        alone, central = self.spread("alone").mean, self.spread("central").mean
        return gap_closed(self.spread(variant).mean, alone, central)

    def improvement(self, variant: str) -> Spread | None:
        """Percent of what central gains over the seed of the same number that this variant gains."""
        known = [self.by_variant.get(name, {}) for name in (variant, "central", "untrained")]
        both = [seed for seed in self._seeds(variant) if all(seed in runs for runs in known)]
        found = []
        for seed in both:
            ours, central, start = (
                macro(self.losses(name, seed)) for name in (variant, "central", "untrained")
            )
            found.append(100 * (start - ours) / (start - central))
        return Spread(tuple(found)) if found else None

    def owned(self, variant: str) -> bool:
        """Whether an expert learns from its owner alone, so that a domain can be held to its owner's experts."""
        found = self.by_variant.get(variant, {})
        return any(run["variant"]["holds"] != "all" for run in found.values())

    def fewer_bytes(self, variant: str) -> float:
        """Than per-step data parallel in bf16, on the way up."""
        one = next(iter(self.by_variant[variant].values()))
        return float(one["bytes_per_step_ddp_bf16"] / max(1, one["bytes_up_per_site"]))

    def _seeds(self, variant: str) -> list[int]:
        return sorted(self.by_variant.get(variant, {}))


def table(runs: Runs, *, start: str, title: str) -> str | None:
    """Every variant of one start, the best first."""
    central = "central" if start == "seed" else "central-scratch"
    chosen = [v for v, by in runs.by_variant.items() if next(iter(by.values()))["variant"]["start"] == start]
    chosen = [v for v in chosen if not v.startswith("bad-")]  # they have figures of their own
    rows = sorted((row for v in chosen for row in _rows(runs, v, central)), key=lambda row: row[0])
    if not rows:
        return None
    head = (
        "variant", "exchange", "macro loss", "to central", "gap closed", *_domains(runs), "oracle-routed",
        "fewer bytes up", "seeds",
    )  # fmt: skip
    lines = [f"{title}", "", f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    lines += [f"| {' | '.join(cells)} |" for _, cells in rows]
    return "\n".join(lines)


def _rows(runs: Runs, variant: str, central: str) -> Iterable[tuple[float, Sequence[str]]]:
    one = next(iter(runs.by_variant[variant].values()))
    kinds: dict[str | None, str] = {None: variant}
    if _reads(one):
        kinds = {"losses": f"{variant}, experts by readers"}
    elif "posterior" in one[runs.side]:
        kinds = {"posterior": f"{variant}, experts by posterior"}
        if not one["variant"].get("keeps"):
            kinds["losses"] = f"{variant}, learned router"
    if variant == "alone":
        kinds = {
            "losses": "alone, the best of four",
            "soup": "soup of the four",
            "ensemble": "their ensemble",
        }
    apart = one["variant"]["data"] == "apart"
    for kind, name in kinds.items():
        spread, gap = runs.spread(variant, kind), runs.gap(variant, central, kind)
        ours = kind in (None, "posterior") or _reads(one)
        closed = runs.closed(variant) if central == "central" and ours else None
        by_domain = [
            np.mean([runs.losses(variant, s, kind)[d] for s in runs.by_variant[variant]])
            for d in _domains(runs)
        ]
        yield (
            spread.mean,
            (
                name,
                _exchange(one["variant"]) if apart else "",
                spread.text(),
                "" if gap is None or variant == central else f"{gap.mean:+.1f} %",
                "" if closed is None or not apart else f"{closed:.2f}",
                *(f"{loss:.3f}" for loss in by_domain),
                f"{runs.spread(variant, 'oracle').mean:.3f}"
                if runs.owned(variant) and "oracle" in one[runs.side]
                else "",
                f"{runs.fewer_bytes(variant):,.0f}×" if apart else "",
                str(len(runs.by_variant[variant])),
            ),
        )


def _reads(run: Run) -> bool:
    return bool(run["variant"].get("reader"))


def _exchange(variant: Mapping[str, Any]) -> str:
    steps = variant["inner_steps"]
    trunk, experts = steps * variant["trunk_every"], steps * variant["experts_every"]
    rare = "at the end" if variant["experts_every"] >= NEVER else f"every {experts}"
    every = f"every {trunk}" if trunk == experts else f"every {trunk}, experts {rare}"
    codecs = {variant["trunk_codec"], variant["expert_codec"]} - {"fp32"}
    closing = [f"the last in {codec}" for codec in [variant.get("closing")] if codec]
    return ", ".join([every, *sorted(codecs), *closing])


def _domains(runs: Runs) -> list[str]:
    one = next(iter(next(iter(runs.by_variant.values())).values()))
    return list(one[runs.side]["losses"])
