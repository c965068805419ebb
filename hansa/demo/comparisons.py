"""What the consortium is compared with, trained beside it: partners alone, and all texts in one place.

One process at a time at low priority, so that they fill the gaps the federation leaves and never slow it by more than
their share of a core.
"""

from __future__ import annotations

import json
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from commons.charter import Charter
from hansa.demo import cast
from hansa.demo.processes import Child, Crew
from hansa.demo.stage import Stage
from hansa.seeds import write_plan

NICE = 5
RESULT = "result.json"


@dataclass(frozen=True)
class Comparison:
    name: str
    """`alone-<partner>` or `central`."""
    plan: Path
    steps: int

    @property
    def result(self) -> Path:
        return self.plan.parent / RESULT


class Comparisons:
    """The baselines of one demo, in order. What has a result is not run again."""

    def __init__(self, stage: Stage, charter: Charter, texts: dict[str, Path], public: Path) -> None:
        steps = charter.learning.total_steps
        domains = {site.partner: site.domain for site in charter.sites}
        partners = cast.TRAINERS if stage.full else cast.ALONE
        wanted: list[tuple[str, str, str | None]] = [
            (f"alone-{partner}", "alone", domains[partner]) for partner in partners
        ]
        if stage.central:
            wanted.append(("central", "central", None))
        self._all = [
            Comparison(name, self._plan(stage, charter, texts, public, name, what, alone), steps)
            for name, what, alone in wanted
        ]  # fmt: skip
        self._left = deque(c for c in self._all if not c.result.exists())
        self._running: tuple[Comparison, Child] | None = None

    @staticmethod
    def _plan(
        stage: Stage,
        charter: Charter,
        texts: dict[str, Path],
        public: Path,
        name: str,
        what: str,
        alone: str | None,
    ) -> Path:
        folder = stage.baselines / name
        return write_plan(
            folder,
            what=what,
            charter=charter,
            texts=texts,
            public=public,
            seed_model=stage.seed_model,
            alone=alone,
        )

    def advance(self, crew: Crew) -> bool:
        """Start the next one when none runs. True while there is anything to wait for; raises ChildFailed."""
        if self._running and not self._running[1].running():
            crew.check(self._running[1])
            self._running = None
        if not self._running and self._left:
            following = self._left.popleft()
            child = crew.start(following.name, ["-m", "hansa.baselines", str(following.plan)], nice=NICE)
            self._running = (following, child)
        return self._running is not None

    def progress(self) -> str:
        """One line about the one that runs; empty when none does."""
        if not self._running:
            return ""
        comparison, child = self._running
        return (
            f"beside it: {comparison.name.replace('-', ' ', 1)}, step {last_step(child)}/{comparison.steps}"
        )

    def losses(self) -> dict[str, dict[str, float]]:
        """Name -> domain -> held-out loss, of those that are done."""
        done = [c for c in self._all if c.result.exists()]
        return {c.name: json.loads(c.result.read_text())["losses"] for c in done}


def last_step(child: Child) -> int:
    """The last step its log tells of."""
    for line in reversed(child.last_words(3).splitlines()):
        try:
            return int(json.loads(line)["step"])
        except (ValueError, KeyError, TypeError):
            continue
    return 0
