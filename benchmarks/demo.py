"""The main job's figures: `hansa demo` measured from outside, as a user starts it.

Runs the demo twice with one seed (once with all comparisons) and once with joint routing, and times `hansa --help`.
Takes about twenty minutes on two cores; finished parts are kept in the work folder and taken up again.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from benchmarks.figures import ROOT, Figure, save
from hansa.demo.processes import descendants

MINUTES_MAX = 4.0
MEMORY_MAX_GIB = 8.0
HELP_MAX_S = 0.3
LOWER_THAN_ALONE = 0.10
ABOVE_CENTRAL = 0.15


def main(work: Path) -> list[Figure]:
    """Measure what is not yet in `work`, write `results/demo.json`, answer the figures."""
    plain = _run(work, "plain")
    full = _run(work, "full", "--full", "--central")
    joint = _run(work, "joint", "--joint")
    figures = [
        *_limits(plain),
        *_losses(full),
        _same_model(plain, full),
        *_bytes(full),
        *_memory(plain, joint),
        _help(),
    ]
    save("demo", figures, tables=[_loss_table(full), _loss_table(joint, "With joint routing")], notes=NOTES)
    return figures


NOTES = (
    (
        "Losses are held-out, in nats per byte, of the released folder with its readers (`hansa.released.load`); every model "
        "is measured on the same windows. Every partner alone starts from the same seed model, trains the full model "
        "for the same number of inner steps and mixes in the same share of public text."
    ),
    (
        "The public text, which the seed model is trained on and an eighth of every batch comes from, holds documents of "
        "the same four kinds that no site has, and manuals. The settings were chosen on the same held-out text that is "
        "reported here (docs/decisions/0002-demo-recipe.md)."
    ),
    "Memory is the proportional set size of all processes of the demo together, sampled twice a second.",
)


def _run(work: Path, name: str, *options: str) -> dict[str, Any]:
    """One demo in `work/NAME`: its summary, with wall seconds and peak memory as seen from outside."""
    kept = work / f"{name}.json"
    if not kept.exists():
        work.mkdir(parents=True, exist_ok=True)
        command = [
            sys.executable,
            "-m",
            "hansa",
            "demo",
            "--dir",
            str(work / name),
            "--fresh",
            "--json",
            *options,
        ]
        started = time.monotonic()
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
            peak = _Peak(process.pid)
            out, _ = process.communicate()
        assert process.returncode == 0, f"{' '.join(command)} ended with {process.returncode}"
        measured = {"wall_s": time.monotonic() - started, "peak_gib": peak.stop(), "options": list(options)}
        kept.write_text(json.dumps(json.loads(out) | {"measured": measured}))
    return dict(json.loads(kept.read_text()))


class _Peak:
    """Largest sum of proportional set sizes of a process and everything below it."""

    def __init__(self, root: int) -> None:
        self._root, self._bytes, self._done = root, 0, threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def stop(self) -> float:
        self._done.set()
        self._thread.join()
        return self._bytes / 2**30

    def _watch(self) -> None:
        while not self._done.wait(0.5):
            self._bytes = max(self._bytes, sum(_pss(p) for p in (self._root, *descendants([self._root]))))


def _pss(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def _command(summary: dict[str, Any]) -> str:
    return " ".join(["hansa demo", *summary["measured"]["options"]])


def _limits(plain: dict[str, Any]) -> list[Figure]:
    minutes, gib = plain["measured"]["wall_s"] / 60, plain["measured"]["peak_gib"]
    command = _command(plain)
    return [
        Figure(
            "demo, start to card",
            round(minutes, 2),
            "min",
            f"≤ {MINUTES_MAX}",
            minutes <= MINUTES_MAX,
            command,
        ),
        Figure(
            "memory of all processes",
            round(gib, 2),
            "GiB",
            f"≤ {MEMORY_MAX_GIB}",
            gib <= MEMORY_MAX_GIB,
            command,
        ),
    ]


def _macro(losses: dict[str, float]) -> float:
    return sum(losses.values()) / len(losses)


def _losses(full: dict[str, Any]) -> list[Figure]:
    ours, central = _macro(full["loss"]["consortium"]), _macro(full["loss"]["central"])
    command = _command(full)
    figures = [
        Figure(
            f"macro loss lower than {partner} alone", round(100 * (1 - ours / _macro(alone)), 2), "%",
            f"≥ {LOWER_THAN_ALONE:.0%}", ours <= (1 - LOWER_THAN_ALONE) * _macro(alone), command,
        )
        for partner, alone in sorted(full["loss"]["alone"].items())
    ]  # fmt: skip
    gap = ours / central - 1
    figures.append(
        Figure("macro loss above central training", round(100 * gap, 2), "%", f"≤ {ABOVE_CENTRAL:.0%}", gap <= ABOVE_CENTRAL, command)
    )  # fmt: skip
    return figures


def _same_model(one: dict[str, Any], other: dict[str, Any]) -> Figure:
    same = one["model_digest"] == other["model_digest"]
    return Figure(
        "two runs with one seed give one model digest",
        "yes" if same else "no",
        "",
        "yes",
        same,
        _command(one) + ", twice",
    )


def _bytes(full: dict[str, Any]) -> list[Figure]:
    moved, replicas = full["bytes"]["up"] + full["bytes"]["down"], full["bytes"]["full_replication"]
    return [
        Figure(
            "bytes moved against full replication in fp32",
            round(100 * moved / replicas, 1),
            "%",
            "",
            None,
            _command(full),
        )
    ]


def _memory(lean: dict[str, Any], joint: dict[str, Any]) -> list[Figure]:
    figures = []
    for summary in (lean, joint):
        whole = summary["memory"]["full_model"]
        site = max(summary["memory"]["sites"].values())
        what = f"a site's model with {summary['routing']} routing against the full one"
        figures.append(Figure(what, round(100 * site / whole, 1), "%", "", None, _command(summary)))
    return figures


def _help() -> Figure:
    def once() -> float:
        started = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "hansa", "--help"], cwd=ROOT, stdout=subprocess.DEVNULL, check=True
        )
        return time.perf_counter() - started

    seconds = sorted(once() for _ in range(7))[3]
    return Figure(
        "hansa --help, median of 7",
        round(seconds, 3),
        "s",
        f"< {HELP_MAX_S}",
        seconds < HELP_MAX_S,
        "hansa --help",
    )


def _loss_table(summary: dict[str, Any], title: str = "Held-out loss") -> str:
    loss = summary["loss"]
    rows = {"consortium": loss["consortium"], "seed model": loss["seed"]}
    rows |= {f"{partner} alone": found for partner, found in loss["alone"].items()}
    rows |= {"central": loss["central"]} if "central" in loss else {}
    domains = list(loss["consortium"])
    lines = [f"| {title} | {' | '.join(domains)} | macro |", "|---" * (len(domains) + 2) + "|"]
    lines += [
        f"| {name} | {' | '.join(f'{found[d]:.3f}' for d in domains)} | {_macro(found):.3f} |"
        for name, found in rows.items()
    ]
    return "\n".join(lines)
