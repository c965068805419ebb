"""A site as a job on a Ray cluster that its owner started with `ray start`."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from commons.errors import Unreachable
from commons.identity import Seat
from tests.support.consortium import Office, found, over, running
from tests.support.site_process import ROOT, end, eventually, one_site, write_site

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [int(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return ports


@pytest.fixture
def dashboard(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a head's dashboard; the head and exactly its own processes are ended afterwards."""
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    port, board, client, agent = free_ports(4)
    with tempfile.TemporaryDirectory(prefix="hj-", ignore_cleanup_errors=True) as folder:
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus=2"]
        command += ["--node-ip-address=127.0.0.1", f"--port={port}", f"--temp-dir={folder}"]
        command += ["--include-dashboard=true", "--dashboard-host=127.0.0.1", f"--dashboard-port={board}"]
        command += [f"--ray-client-server-port={client}", f"--dashboard-agent-listen-port={agent}"]
        with (Path(folder) / "head.log").open("wb") as out:
            head = subprocess.Popen(command, env=dict(os.environ), stdout=out, stderr=out)
        try:
            eventually(lambda: answers(board), f"the dashboard on port {board}", 120)
            yield f"http://127.0.0.1:{board}"
        finally:
            end(head)


def answers(port: int) -> bool:
    with closing(socket.socket()) as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


JOB = """\
import sys
from pathlib import Path
from workers import ray_job
command, first, address = sys.argv[1:]
if command == "submit":
    print(ray_job.submit(Path(first), address))
else:
    print(getattr(ray_job, command)(first, address))
"""


def job(command: str, first: Path | str, address: str) -> str:
    """Call `workers.ray_job` in a process of its own: Ray reads its authentication once per process."""
    done = subprocess.run(
        [sys.executable, "-c", JOB, command, str(first), address],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_submitted_site_trains_a_run_and_can_be_stopped_and_submitted_again(
    tmp_path: Path, dashboard: str
) -> None:
    home = found(tmp_path, one_site())
    with running(home) as coordinator:
        file = write_site(tmp_path / "site", coordinator, ray="local")
        office = Office(Seat.load(home / "operator"))
        office.start_run(tmp_path / "seed")
        name = job("submit", file, dashboard)
        assert name == "hansa-site-alder-1"
        assert job("submit", file, dashboard) == name, "a running site is not started twice"
        try:
            view = office.wait(over, 150)
        finally:
            said = job("logs", name, dashboard)
            print(said)
        assert (view.phase, view.round) == ("finished", 3)
        assert "joining the Ray cluster at auto" in said
        assert "is admitted, record" in said
        assert job("status", name, dashboard) == "RUNNING"
        job("stop", name, dashboard)
        eventually(lambda: job("status", name, dashboard).startswith("STOPPED"), "the stop", 30)
        again = job("submit", file, dashboard)
        assert again == "hansa-site-alder-2"
        eventually(lambda: "last finished round: 3" in job("logs", again, dashboard), "the second start", 60)
        job("stop", again, dashboard)
        office.close()


def test_a_dashboard_that_is_not_there_is_named() -> None:
    from workers import ray_job

    [port] = free_ports(1)
    with pytest.raises(Unreachable, match=f"no Ray dashboard answers at http://127.0.0.1:{port}"):
        ray_job.status("hansa-site-alder-1", f"http://127.0.0.1:{port}")
