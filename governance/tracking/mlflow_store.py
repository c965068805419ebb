"""The one door to MLflow: writes items to a tracking store so that writing them again changes nothing.

A run is found by its tag `hansa.idem`, or created and looked for again: MLflow gives no way to name a run before
it exists, so a repeat after a lost answer is cleaned up instead. Importing this takes seconds; only the mirror's
thread does.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "true")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # the mirror has its own patience
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag, ViewType
from mlflow.exceptions import MlflowException

from governance.tracking.items import End, Experiment, File, Item, Log, Start

IDEM = "hansa.idem"
_BATCH = 100
"""MLflow's limit of parameters and of tags in one call (metrics: 1000)."""
_TEXT_MAX = 5000
"""Characters of a tag or parameter; MLflow's smallest limit over its versions."""
_REFUSED = ("INVALID_PARAMETER_VALUE", "INVALID_STATE", "RESOURCE_DOES_NOT_EXIST", "BAD_REQUEST")
_NOISY = {"mlflow": logging.WARNING, "alembic": logging.WARNING, "urllib3.connectionpool": logging.ERROR}
_T = TypeVar("_T")

log = logging.getLogger(__name__)
for _name, _level in _NOISY.items():
    logging.getLogger(_name).setLevel(_level)


class MlflowStore:
    def __init__(self, tracking_uri: str, consortium: str) -> None:
        """Connect, and create the two experiments when they are missing. Raises when MLflow cannot be reached."""
        self._runs: dict[str, str] = {}
        artifacts = _local_artifacts(tracking_uri)
        self.is_new = False
        with _whole(_local_database(tracking_uri)):
            self._client = MlflowClient(tracking_uri=tracking_uri)
            self._experiments: dict[Experiment, str] = {
                "training": self._experiment(f"{consortium}/training", artifacts),
                "governance": self._experiment(f"{consortium}/governance", artifacts),
            }

    def write(self, items: Sequence[Item]) -> None:
        """Write a batch. What MLflow refuses as such is logged and left out; any other failure raises."""
        for start in (i for i in items if isinstance(i, Start)):
            self._start(start)
        for run, logs in _by_run(i for i in items if isinstance(i, Log)).items():
            self._log(run, logs)
        for item in items:
            match item:
                case File():
                    _lenient(item.run, self._client.log_text, self._run_id(item.run), item.text, item.path)
                case End():
                    _lenient(
                        item.run,
                        self._client.set_terminated,
                        self._run_id(item.run),
                        item.status,
                        item.at_ms,
                    )
                case _:
                    pass

    def _experiment(self, name: str, artifacts: Path | None) -> str:
        found = self._client.get_experiment_by_name(name)
        if found is None:
            location = None if artifacts is None else (artifacts / name).as_uri()
            self.is_new = True
            return str(self._client.create_experiment(name, artifact_location=location))
        return str(found.experiment_id)

    def _start(self, start: Start) -> None:
        tags = {name: value[:_TEXT_MAX] for name, value in start.tags.items()}
        tags |= {IDEM: start.idem, "mlflow.source.name": "hansa", "mlflow.user": "hansa"}
        if start.parent is not None:
            tags["mlflow.parentRunId"] = self._run_id(start.parent)
        experiment = self._experiments[start.experiment]
        found = self._find(start.idem)
        if not found and self._find(start.idem, ViewType.DELETED_ONLY):
            return  # a person deleted it
        if not found:
            self._client.create_run(experiment, start_time=start.start_ms, tags=tags, run_name=start.name)
            found = self._find(start.idem)
        self._runs[start.idem] = found[0]
        for twin in found[1:]:
            self._client.delete_run(twin)

    def _run_id(self, idem: str) -> str:
        if idem not in self._runs:
            found = self._find(idem) or self._find(idem, ViewType.DELETED_ONLY)
            if not found:
                text = f"{idem} is gone from MLflow; delete the mirror's cursor and the MLflow store to write both anew"
                raise LookupError(text)
            self._runs[idem] = found[0]
        return self._runs[idem]

    def _find(self, idem: str, view: str = ViewType.ACTIVE_ONLY) -> list[str]:
        """Oldest first."""
        runs = self._client.search_runs(
            list(self._experiments.values()),
            f"tags.`{IDEM}` = '{idem}'",
            run_view_type=view,
            order_by=["attributes.start_time ASC", "attributes.run_id ASC"],
        )
        return [run.info.run_id for run in runs]

    def _log(self, idem: str, logs: Sequence[Log]) -> None:
        run = self._run_id(idem)
        points = [Metric(p.key, float(p.value), p.at_ms, p.step) for each in logs for p in each.points]
        params = {k: v for each in logs for k, v in each.params.items()}
        tags = {k: v for each in logs for k, v in each.tags.items()}
        for metrics in _chunks(points, 1000):
            _lenient(idem, self._client.log_batch, run, metrics=metrics)
        for some in _chunks([Param(k, v[:_TEXT_MAX]) for k, v in params.items()], _BATCH):
            _lenient(idem, self._client.log_batch, run, params=some)
        for few in _chunks([RunTag(k, v[:_TEXT_MAX]) for k, v in tags.items()], _BATCH):
            _lenient(idem, self._client.log_batch, run, tags=few)


def _lenient(run: str, write: Callable[..., Any], *arguments: Any, **named: Any) -> None:
    """One value MLflow will never take must not hold up the rest."""
    try:
        write(*arguments, **named)
    except MlflowException as refused:
        if refused.error_code not in _REFUSED:
            raise
        log.warning("MLflow does not take a value of %s, it is left out: %s", run, refused.message)


def _by_run(logs: Iterable[Log]) -> dict[str, list[Log]]:
    found: dict[str, list[Log]] = {}
    for each in logs:
        found.setdefault(each.run, []).append(each)
    return found


def _chunks(values: list[_T], size: int) -> Iterator[list[_T]]:
    for start in range(0, len(values), size):
        yield values[start : start + size]


def _local_database(tracking_uri: str) -> Path | None:
    prefix = "sqlite:///"
    return Path(tracking_uri[len(prefix) :]).absolute() if tracking_uri.startswith(prefix) else None


def _local_artifacts(tracking_uri: str) -> Path | None:
    """Files of a local store lie beside its database; a server decides for itself."""
    database = _local_database(tracking_uri)
    return None if database is None else database.parent / "mlartifacts"


@contextmanager
def _whole(database: Path | None) -> Iterator[None]:
    """MLflow takes seconds to make its tables and cannot go on when it was killed at it: then they are made anew.

    Deletes a database only if this very code began to make it and did not finish.
    """
    if database is None:
        yield
        return
    unfinished = database.with_name(database.name + ".unfinished")
    if unfinished.exists():
        database.unlink(missing_ok=True)
    if not database.exists():
        database.parent.mkdir(parents=True, exist_ok=True)
        unfinished.touch()
    yield
    unfinished.unlink(missing_ok=True)
