"""A mirror over a short story, and what a user of MLflow then sees."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from commons.clock import Clock
from commons.identity import save_signer
from governance.consortium import Consortium
from governance.journal import Journal
from governance.tracking import Mirror
from governance.tracking.cursor import CURSOR
from tests.support.chamber import LOG
from tests.support.story import Story

START_MS = 1_700_000_000_000


class Ticking(Clock):
    """Every look at it takes a second: the same calls give the same times."""

    def __init__(self) -> None:
        self.ms = START_MS

    def now_ms(self) -> int:
        self.ms += 1_000
        return self.ms


def tell(home: Path) -> tuple[Story, Ticking]:
    """A home with a journal nobody has told anything yet."""
    clock = Ticking()
    save_signer(home / "log.key", LOG)
    journal = Journal.open(home / "journal.db", signer=LOG, clock=clock)
    return Story(Consortium(journal, clock)), clock


def uri(home: Path) -> str:
    return f"sqlite:///{home / 'mlflow.db'}"


def mirrored(consortium: Consortium, home: Path) -> Mirror:
    found = Mirror(consortium, LOG, uri(home), home / CURSOR)
    found.start()
    return found


def mirror_all(consortium: Consortium, home: Path) -> None:
    found = mirrored(consortium, home)
    assert found.drain(60), found.trouble
    found.close()


def shown(home: Path) -> dict[str, dict[str, Any]]:
    """What a user of MLflow sees: per run, by our tag, everything but MLflow's own ids."""
    from governance.tracking.mlflow_store import MlflowClient

    client = MlflowClient(uri(home))
    experiments = {e.experiment_id: e.name for e in client.search_experiments()}
    runs = client.search_runs(list(experiments))
    by_id = {run.info.run_id: run.data.tags["hansa.idem"] for run in runs}
    assert len(set(by_id.values())) == len(runs), "a run stands twice"
    found: dict[str, dict[str, Any]] = {}
    for run in runs:
        tags = {k: v for k, v in run.data.tags.items() if k != "mlflow.parentRunId"}
        parent = run.data.tags.get("mlflow.parentRunId")
        points = {
            key: [(p.step, p.timestamp, p.value) for p in client.get_metric_history(run.info.run_id, key)]
            for key in run.data.metrics
        }
        for key, history in points.items():
            assert len(set(history)) == len(history), f"{key} holds a point twice"
        found[by_id[run.info.run_id]] = {
            "experiment": experiments[run.info.experiment_id],
            "name": run.info.run_name,
            "status": run.info.status,
            "times": (run.info.start_time, run.info.end_time),
            "parent": by_id[parent] if parent else None,
            "params": run.data.params,
            "tags": tags,
            "points": {k: sorted(v) for k, v in points.items()},
            "files": files(client, run.info.run_id),
        }
    return found


def files(client: Any, run_id: str, folder: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for entry in client.list_artifacts(run_id, folder):
        if entry.is_dir:
            found |= files(client, run_id, entry.path)
        else:
            found[entry.path] = Path(client.download_artifacts(run_id, entry.path)).read_text()
    return found


def values(run: dict[str, Any], key: str) -> list[tuple[int, float]]:
    return [(step, value) for step, _, value in run["points"][key]]
