"""How much of tally, rules and execution the tests of votes go through, branch by branch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from commons.errors import HansaError

MODULES = (
    "commons/anchors.py",
    "commons/ballot_weights.py",
    "commons/ballots.py",
    "commons/chain.py",
    "commons/chain_file.py",
    "commons/chain_shown.py",
    "commons/chain_votes.py",
    "commons/course.py",
    "commons/delegating.py",
    "commons/dormancy.py",
    "commons/features/__init__.py",
    "commons/features/patching.py",
    "commons/lodging.py",
    "commons/motions.py",
    "commons/opening.py",
    "commons/pledging.py",
    "commons/quorum.py",
    "commons/ranking.py",
    "commons/tally.py",
    "commons/voting.py",
    "governance/courses.py",
    "governance/lodging.py",
    "governance/pausing.py",
    "governance/pledging.py",
    "governance/proof.py",
    "governance/proposals.py",
)
TESTS = tuple(
    f"tests/unit/test_{name}.py"
    for name in (
        "tally", "ballots", "ballot_weights", "course", "timelock", "proposals", "attacks", "chain", "anchors", "lodging",
        "pledges", "features", "expert_features", "vote_corners",
    )
)  # fmt: skip


@dataclass(frozen=True)
class Branches:
    statements: int
    branches: int
    missed: int
    """Statements and branches that no test goes through."""
    percent: float


def cover(work: Path) -> Branches:
    """Run the tests of votes under `coverage` (branches too); they have to pass. Raises HansaError when they do not."""
    work.mkdir(parents=True, exist_ok=True)
    data, report = work / "coverage.data", work / "coverage.json"
    coverage = (sys.executable, "-m", "coverage")
    root = Path(__file__).parents[2]
    run = (*coverage, "run", "--branch", f"--include={','.join(MODULES)}", f"--data-file={data.resolve()}")
    tests = subprocess.run(
        [*run, "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS],
        cwd=root,
        env=_environment(root),
        check=False,
    )
    if tests.returncode:
        raise HansaError("the tests of votes do not pass: make test")
    told = [*coverage, "json", f"--data-file={data.resolve()}", "-o", str(report.resolve()), "-q"]
    subprocess.run(told, cwd=root, env=_environment(root), check=True)
    totals = json.loads(report.read_text())["totals"]
    return Branches(
        statements=totals["num_statements"],
        branches=totals["num_branches"],
        missed=totals["missing_lines"] + totals["missing_branches"],
        percent=round(totals["percent_covered"], 2),
    )


def _environment(root: Path) -> dict[str, str]:
    known = os.environ.get("PYTHONPATH")
    return os.environ | {"PYTHONPATH": f"{root}{os.pathsep}{known}" if known else str(root)}
