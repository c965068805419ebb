"""A whole run whose model states lie in a bucket of a real S3 server, and what happens when that is lost for a while."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from commons.errors import StoreError
from commons.states import StateStore, remote
from commons.wire.v1 import consortium_pb2 as wire
from orchestrator import coordinator as program
from orchestrator.release import verify
from tests.contract.test_services import Stage, eventually, stage_note
from tests.support.buckets import Buckets, serving
from tests.support.consortium import SITES, charter, found, over, started

ROOT = Path(__file__).parents[2]


@pytest.fixture
def buckets(monkeypatch: pytest.MonkeyPatch) -> Iterator[Buckets]:
    with serving() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(remote, "RETRY_S", 0.5)
        monkeypatch.setattr(program, "RETRY_S", 0.2)
        yield server


def staged(folder: Path, **options: str) -> Stage:
    folder.mkdir()
    return Stage(folder, charter(), **options)


def finished(stage: Stage) -> str:
    stage.all_sites()
    stage.start_run()
    view = stage.office.wait(over)
    assert view.phase == "finished" and stage.coordinator.desk.consortium.journal.verify() == []
    return view.state


def test_a_run_in_a_bucket_reaches_the_state_of_one_in_a_folder(buckets: Buckets, tmp_path: Path) -> None:
    url = buckets.create("hanse") + "/states"
    near, far = staged(tmp_path / "near"), staged(tmp_path / "far", states=url)
    try:
        state = finished(far)
        assert state == finished(near)
        brought = [StateStore(tmp_path / "site-far"), StateStore(tmp_path / "site-near")]
        for stage, store in zip((far, near), brought, strict=True):
            stage.site("alder").fetch_state(state, store)
        one, two = (store.load(state) for store in brought)
        assert one.keys() == two.keys() and all(np.array_equal(one[name], two[name]) for name in one)
        asked = wire.ReleaseRequest(folder=str(tmp_path / "release"))
        far.office.operator.MakeRelease(asked)
        assert verify(tmp_path / "release") == []
    finally:
        near.close()
        far.close()
    assert not (far.home / "states").exists() and not list((far.home / "drafts").iterdir())


def test_a_coordinator_goes_on_with_the_states_it_finds_in_the_bucket(
    buckets: Buckets, tmp_path: Path
) -> None:
    stage = staged(tmp_path / "far", states=buckets.create("hanse"))
    try:
        stage.all_sites()
        stage.start_run()
        stage.office.wait(lambda view: view.round >= 2 or over(view))
        stage.restart()
        stage.all_sites()
        assert stage.office.wait(over).phase == "finished"
        assert [charge.state for charge in stage.budgets().charges] == ["settled"] * 6
    finally:
        stage.close()


def test_a_bucket_out_of_reach_holds_the_round_up_and_says_so(buckets: Buckets, tmp_path: Path) -> None:
    stage = staged(tmp_path / "far", states=buckets.create("hanse"))
    try:
        sites = [stage.site(name, silent=True) for name in SITES]
        stage.start_run()
        eventually(lambda: all(site.orders for site in sites))
        buckets.relay.down()
        for site in sites:
            site.silent = False
            site.obey(stage.coordinator.desk.consortium.journal.epoch, stage_note(stage, site))
        eventually(lambda: "cannot reach s3://hanse" in stage.office.run().reason)
        assert stage.office.run().history[0].closed_ms is None
        buckets.relay.up()
        assert stage.office.wait(over).phase == "finished"
    finally:
        stage.close()


def test_a_coordinator_without_its_bucket_does_not_start(buckets: Buckets, tmp_path: Path) -> None:
    home = found(tmp_path, charter())
    with pytest.raises(StoreError, match="s3://nowhere does not exist; the operator creates the bucket"):
        started(home, states="s3://nowhere")
    started(home).stop()


def test_the_command_line_says_where_states_lie(buckets: Buckets, tmp_path: Path) -> None:
    home, url = found(tmp_path, charter()), buckets.create("hanse")
    words = [
        "--listen",
        "127.0.0.1:0",
        "--enrolment",
        "127.0.0.1:0",
        "--mlflow",
        "none",
        "--json",
        "--states",
    ]
    command = [sys.executable, "-m", "hansa", "coordinator", "start", "--home", str(home), *words]
    wrong = subprocess.run([*command, f"{url}x"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert wrong.returncode == StoreError.exit_code
    assert f"{url}x does not exist; the operator creates the bucket" in wrong.stderr
    assert "Traceback" not in wrong.stderr
    with subprocess.Popen([*command, url], cwd=ROOT, stdout=subprocess.PIPE, text=True) as right:
        assert right.stdout is not None and json.loads(right.stdout.readline())["state"] == "ready"
        right.send_signal(signal.SIGTERM)
        assert right.wait(60) == 0
    assert buckets.keys("hanse") == {"hansa-model-states"} and not (home / "states").exists()
