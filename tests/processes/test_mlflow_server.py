"""MLflow's own server, over HTTP: killed, stopped for a whole run, behind a login, on SQLite and on Postgres."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.governance_parts.mirror import report, stop_mlflow_for_a_run
from governance.tracking import Mirror, checking
from governance.tracking.cursor import CURSOR
from tests.support import postgres
from tests.support.chamber import LOG
from tests.support.mirrored import tell
from tests.support.mirrored_consortium import mirrored_consortium
from tests.support.mlflow_server import LOGIN, MlflowServer, running

pytestmark = pytest.mark.slow


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[MlflowServer]:
    """With basic auth, on Postgres."""
    try:
        with postgres.running() as url, running(tmp_path / "mlflow", url, auth=True) as server:
            yield server
    except postgres.NoPostgres as missing:
        pytest.skip(str(missing))


def test_after_kills_and_an_outage_mlflow_shows_what_the_journal_says(tmp_path: Path) -> None:
    """`hansa bench governance --long` kills a hundred times."""
    with mirrored_consortium(tmp_path) as mirrored:
        dice = random.Random(1)
        done = [mirrored.kill(who, "writing", dice) for who in ("coordinator", "mlflow")]
        outage = stop_mlflow_for_a_run(mirrored)
        shown = report(done, mirrored)
        log = mirrored.log()
    assert (outage.finished, outage.wrong) == (outage.rounds, 0)
    assert outage.behind > 0
    assert (shown.missing, shown.duplicate, shown.different, shown.foreign) == (0, 0, 0, 0), shown.findings
    assert shown.versions > 0
    assert "cannot be reached" in log
    assert "takes what the mirror writes again" in log
    assert "Traceback" not in log


def test_a_mirror_waits_for_the_right_login_and_then_writes_everything(
    guarded: MlflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", LOGIN[0])
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "wrong")
    story, _ = tell(tmp_path)
    story.found()
    story.open_run()
    story.vote_to_release(story.release(1))
    mirror = Mirror(story.consortium, LOG, guarded.uri, tmp_path / CURSOR)
    mirror.start()
    deadline = time.monotonic() + 60
    while not mirror.trouble and time.monotonic() < deadline:
        time.sleep(0.05)
    assert "does not let the mirror in (401)" in mirror.trouble
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", LOGIN[1])
    assert mirror.drain(120), mirror.trouble
    mirror.close()
    story.consortium.journal.close()
    checking.rebuild(tmp_path, "", "", lambda *_: None)
    seen = checking.verify(tmp_path, "", "")
    assert (seen.findings, seen.compared, seen.versions) == ((), seen.records, 1)
