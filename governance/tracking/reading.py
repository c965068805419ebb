"""Reading from MLflow what a user sees there, as values that can be compared."""

from __future__ import annotations

import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mlflow.entities import Run, ViewType

from commons.notes import digest
from governance.tracking.comparing import Found
from governance.tracking.items import Point
from governance.tracking.mlflow_store import DROPPED, MlflowStore
from governance.tracking.registry import IDEM
from governance.tracking.sketch import ShownRun, stored

READERS = 4
"""Calls under way at once: MLflow's server answers several at a time, and a client alone waits more than it computes."""


def read(store: MlflowStore, model: str) -> Found:
    """Every run of the experiments with all its values and files, and the registered model."""
    runs = store.runs()
    idems = {str(run.info.run_id): str(run.data.tags.get(IDEM, "")) for run in runs}
    names = {number: name for name, number in store.experiments.items()}

    def shown(run: Run) -> tuple[str, ShownRun]:
        return idems[run.info.run_id], _run(store, run, idems, names[str(run.info.experiment_id)])

    with ThreadPoolExecutor(READERS) as readers:
        shown_runs = list(readers.map(shown, runs))
    found = Found(
        runs=shown_runs,
        deleted={str(run.data.tags.get(IDEM, "")) for run in store.runs(ViewType.DELETED_ONLY)} - {DROPPED},
    )
    if model:
        versions = store.registry.versions(model)
        found.versions = [(str(v.tags.get(IDEM, "")), dict(v.tags)) for v in versions]
        found.aliases = store.registry.aliases(model)
    return found


def _run(store: MlflowStore, run: Run, idems: dict[str, str], experiment: str) -> ShownRun:
    run_id, tags = str(run.info.run_id), dict(run.data.tags)
    parent = str(tags.pop("mlflow.parentRunId", ""))
    points = {
        stored(Point(key, float(p.value), int(p.step), int(p.timestamp)))
        for key in run.data.metrics
        for p in store.client.get_metric_history(run_id, key)
    }
    return ShownRun(
        name=str(run.info.run_name),
        experiment=experiment,
        start_ms=int(run.info.start_time),
        parent=idems.get(parent, parent),
        status=str(run.info.status),
        end_ms=None if run.info.end_time is None else int(run.info.end_time),
        tags=tags,
        params=dict(run.data.params),
        points=points,
        files=_files(store.client, run_id),
    )


def _files(client: Any, run_id: str) -> dict[str, str]:
    """Path -> digest."""
    if not client.list_artifacts(run_id):
        return {}
    with tempfile.TemporaryDirectory(prefix="hansa-mirror-") as folder:
        root = Path(client.download_artifacts(run_id, "", folder))
        files = [path for path in root.rglob("*") if path.is_file()]
        return {path.relative_to(root).as_posix(): digest(path.read_bytes()) for path in files}
