"""The end of the demo: release and check it, wait for MLflow, verify the journal; and whether the coordinator is up."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from commons.charter import Charter
from commons.views import BudgetsView, JournalView, ProposalsView, ProposalView, RunView
from hansa.chamber import Chamber
from hansa.demo.processes import Crew, port_is_free
from hansa.demo.stage import Stage
from hansa.hosting import operator_seat, verify_journal
from hansa.screen import Screen
from orchestrator.release import verify

MLFLOW_S = 60.0
MANIFEST = "MANIFEST.json"


@dataclass(frozen=True)
class Released:
    path: Path
    losses: dict[str, float]
    """Domain -> held-out loss of the folder's model, with readers where it has them, nats per byte."""
    plain: dict[str, float]
    """The same as transformers alone loads it; empty where that is all there is."""
    problems: list[str]


@dataclass(frozen=True)
class Closed:
    run: RunView
    budgets: BudgetsView
    proposals: list[ProposalView]
    journal_size: int
    journal_root: str
    mirrored: bool
    """Whether everything recorded is in MLflow."""


def coordinator_is_up(stage: Stage) -> bool:
    """It has founded the consortium, written the operator's seat, and listens."""
    return (operator_seat(stage.home) / "seat.toml").exists() and not any(
        map(port_is_free, (stage.port, stage.enrolment_port))
    )


def release(
    stage: Stage, crew: Crew, charter: Charter, run: RunView, texts: Mapping[str, Path], screen: Screen
) -> Released:
    """Make the release, verify it offline, and measure it as anybody would. Made before: measured again."""
    if not (stage.release / MANIFEST).exists():
        with Chamber.at(operator_seat(stage.home)) as operator:
            operator.make_release(stage.release, run.run)
    problems = verify(stage.release)
    screen.event(
        "The release is signed and valid" if not problems else f"The release is INVALID: {problems[0]}"
    )
    result = stage.folder / "released.json"
    result.unlink(missing_ok=True)
    named = [f"{domain}={path}" for domain, path in texts.items()]
    length = str(charter.learning.sequence_length)
    child = crew.start("released", ["-m", "hansa.released", str(stage.release), length, str(result), *named])
    while child.running():
        screen.aside("measuring the released model")
        time.sleep(0.1)
    crew.check(child)
    screen.aside()
    found = json.loads(result.read_text())
    return Released(stage.release, found["losses"], found.get("plain", {}), problems)


def mirror_is_done(stage: Stage) -> bool:
    """Whether the mirror's cursor has reached the journal's end."""
    with Chamber.at(operator_seat(stage.home)) as operator:
        size = operator.read(JournalView).size
    try:
        return int(json.loads((stage.home / "mlflow.cursor").read_text())["next"]) >= size
    except (OSError, ValueError, KeyError):
        return False


def close(stage: Stage, run: RunView, *, mirrored: bool) -> Closed:
    """What the books say in the end. Raises StoreError when the journal does not verify."""
    with Chamber.at(operator_seat(stage.home)) as operator:
        budgets = operator.read(BudgetsView)
        known = operator.read(ProposalsView).proposals
        proposals = [operator.read(ProposalView, p.id) for p in known]
    journal = verify_journal(stage.home, "")
    return Closed(run, budgets, proposals, journal.size, journal.root, mirrored)


def wait_for_mlflow(stage: Stage, screen: Screen) -> bool:
    """Wait until everything recorded is in MLflow, at most a minute."""
    deadline = time.monotonic() + MLFLOW_S
    while not mirror_is_done(stage):
        if time.monotonic() > deadline:
            screen.event("MLflow is behind; the coordinator goes on writing when it is started again")
            return False
        screen.aside("waiting for MLflow to have everything")
        time.sleep(0.2)
    screen.aside()
    return True
