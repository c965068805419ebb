"""The one door to MLflow: writes items to a tracking store so that writing them again changes nothing.

A run is found by its tag `hansa.idem`, or created and looked for again: MLflow gives no way to name a run before
it exists, so a repeat after a lost answer is cleaned up instead; versions of the model are treated alike. Importing this
takes seconds; only the mirror's thread and `hansa mirror` do.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "true")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # the mirror has its own patience
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunTag, ViewType
from mlflow.exceptions import MlflowException

from governance.tracking.items import (
    EXPERIMENTS,
    TEXT_MAX,
    Alias,
    End,
    Experiment,
    File,
    Item,
    Log,
    Proof,
    Start,
    Statement,
    Version,
)
from governance.tracking.papers import Papers
from governance.tracking.registry import IDEM, Registry

LINK = "hansa.url"
"""Tag with the run's page in the dashboard."""
DROPPED = "dropped"
"""What a run that was dropped is known by."""
_BATCH = 100
"""MLflow's limit of parameters and of tags in one call (metrics: 1000)."""
_REFUSED = ("INVALID_PARAMETER_VALUE", "INVALID_STATE", "BAD_REQUEST")
"""A run that is not there is no such thing: another store answers than did before, and must be looked through again."""
_NOISY = {"mlflow": logging.WARNING, "alembic": logging.WARNING, "urllib3.connectionpool": logging.ERROR}
_T = TypeVar("_T")

log = logging.getLogger("hansa.mirror")
for _name, _level in _NOISY.items():
    logging.getLogger(_name).setLevel(_level)


class MlflowStore:
    def __init__(self, tracking_uri: str, consortium: str, papers: Papers, dashboard: str = "") -> None:
        """Connect. Raises what MLflow raises when it cannot be reached or does not let us in.

        `dashboard`: address of the dashboard that new runs link to.
        """
        self._papers, self._dashboard = papers, dashboard.rstrip("/")
        self._database, self._artifacts = _local_database(tracking_uri), _local_artifacts(tracking_uri)
        self._runs: dict[str, str] = {}
        """`idem` -> run id in MLflow; of a run that is gone for good, nothing."""
        self._thrown: dict[str, str] = {}
        """The same of runs that a person deleted."""
        self._experiments: dict[Experiment, str] = {}
        self._names: dict[Experiment, str] = {e: f"{consortium}/{e}" for e in EXPERIMENTS}
        self._deleted: list[str] = []
        with _whole(self._database):
            self.client = MlflowClient(tracking_uri=tracking_uri, registry_uri=tracking_uri)
            self.registry = Registry(self.client)
            for experiment, name in self._names.items():
                found = self.client.get_experiment_by_name(name)
                if found is not None:
                    self._experiments[experiment] = str(found.experiment_id)
                    if found.lifecycle_stage != "active":
                        self._deleted.append(str(found.experiment_id))

    @property
    def is_new(self) -> bool:
        """Nothing, or not everything, was ever written here."""
        return len(self._experiments) < len(EXPERIMENTS)

    @property
    def experiments(self) -> dict[Experiment, str]:
        """Experiment -> its id in MLflow; those that are there."""
        return dict(self._experiments)

    def prepare(self) -> None:
        """Create the experiments that are missing, restore those that a person deleted, and see which runs are there."""
        for experiment, name in self._names.items():
            if experiment not in self._experiments:
                location = None if self._artifacts is None else (self._artifacts / name).as_uri()
                made = self.client.create_experiment(name, artifact_location=location)
                self._experiments[experiment] = str(made)
        for experiment_id in self._deleted:
            self.client.restore_experiment(experiment_id)
        self._deleted = []
        self._thrown = {
            str(r.data.tags.get(IDEM)): str(r.info.run_id) for r in self.runs(ViewType.DELETED_ONLY)
        }
        for run in self.runs():
            self._know(str(run.data.tags.get(IDEM, "")), str(run.info.run_id))

    def drop(self, model: str) -> None:
        """Delete every run of the experiments and the registered `model`, so that all is written anew.

        Runs go to where MLflow keeps deleted ones; `mlflow gc` frees their room. Killed in the middle and asked again,
        it goes on.
        """
        for run in self.runs(ViewType.DELETED_ONLY):
            if run.data.tags.get(IDEM) not in (None, DROPPED):
                self.client.restore_run(run.info.run_id)
        for run in self.runs():
            self.client.set_tag(run.info.run_id, IDEM, DROPPED)
            self.client.delete_run(run.info.run_id)
        self._runs, self._thrown = {}, {}
        self.registry.drop(model)

    def runs(self, view: str = ViewType.ACTIVE_ONLY) -> list[Run]:
        """Of all experiments, oldest first."""
        return self._search("", view)

    def write(self, items: Sequence[Item]) -> None:
        """Write a batch. What MLflow refuses as such is logged and left out; any other failure raises."""
        for start in (i for i in items if isinstance(i, Start)):
            self._start(start)
        for run, logs in _by_run(i for i in items if isinstance(i, Log)).items():
            self._log(run, logs)
        for (run, path), text in texts(items, self._papers).items():
            if found := self._run_id(run):
                _lenient(run, self.client.log_text, found, text(), path)
        for item in items:
            match item:
                case End():
                    if found := self._run_id(item.run):
                        _lenient(item.run, self.client.set_terminated, found, item.status, item.at_ms)
                case Version():
                    if found := self._run_id(item.run):
                        _lenient(item.idem, self.registry.add, item, found)
                case Alias():
                    _lenient(item.name, self.registry.move, item)
                case _:
                    pass

    def _start(self, start: Start) -> None:
        tags = {name: value[:TEXT_MAX] for name, value in start.tags.items()}
        tags |= {IDEM: start.idem, "mlflow.source.name": "hansa", "mlflow.user": "hansa"}
        if self._dashboard and start.page:
            tags[LINK] = f"{self._dashboard}/{start.page}"
        if start.parent is not None:
            tags["mlflow.parentRunId"] = self._run_id(start.parent)
        if start.idem in self._runs or start.idem in self._thrown:
            return  # it is there, or a person deleted it, as `hansa mirror verify` says
        experiment = self._experiments[start.experiment]
        self.client.create_run(experiment, start_time=start.start_ms, tags=tags, run_name=start.name)
        for run in self._search(f"tags.`{IDEM}` = '{start.idem}'", ViewType.ACTIVE_ONLY):
            self._know(start.idem, str(run.info.run_id))

    def _know(self, idem: str, run_id: str) -> None:
        """Asked for the oldest first: a younger run of the same name came of an answer that was lost."""
        if idem and self._runs.setdefault(idem, run_id) != run_id:
            self.client.delete_run(run_id)

    def _run_id(self, idem: str) -> str:
        """Empty when the run is gone from MLflow for good."""
        if idem not in self._runs:
            self._runs[idem] = self._thrown.get(idem, "")
            if not self._runs[idem]:
                log.warning(
                    "%s is gone from MLflow and left out; `hansa mirror rebuild` makes it again", idem
                )
        return self._runs[idem]

    def _search(self, query: str, view: str) -> list[Run]:
        found, token = list[Run](), None if self._experiments else ""
        while token != "":
            page = self.client.search_runs(
                list(self._experiments.values()),
                query,
                view,
                order_by=["attributes.start_time ASC", "attributes.run_id ASC"],
                page_token=token,
            )
            found += page
            token = page.token or ""
        return found

    def _log(self, idem: str, logs: Sequence[Log]) -> None:
        run = self._run_id(idem)
        if not run:
            return
        points = [Metric(p.key, float(p.value), p.at_ms, p.step) for each in logs for p in each.points]
        params = {k: v for each in logs for k, v in each.params.items()}
        tags = {k: v for each in logs for k, v in each.tags.items()}
        for metrics in _chunks(points, 1000):
            _lenient(idem, self.client.log_batch, run, metrics=metrics)
        for some in _chunks([Param(k, v[:TEXT_MAX]) for k, v in params.items()], _BATCH):
            _lenient(idem, self.client.log_batch, run, params=some)
        for few in _chunks([RunTag(k, v[:TEXT_MAX]) for k, v in tags.items()], _BATCH):
            _lenient(idem, self.client.log_batch, run, tags=few)


def texts(items: Iterable[Item], papers: Papers) -> dict[tuple[str, str], Callable[[], str]]:
    """(run, path) -> what makes the file's text; of one that is written twice the later."""
    found: dict[tuple[str, str], Callable[[], str]] = {}
    for item in items:
        match item:
            case File(run, path, text):
                found[run, path] = partial(str, text)
            case Proof(run, path, index):
                found[run, path] = partial(papers.proof, index)
            case Statement(run, partner, period):
                for name, text in papers.statement(partner, period).items():
                    found[run, name] = partial(str, text)
            case _:
                pass
    return found


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
