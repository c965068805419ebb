"""A real site on a real Ray, killed in every way there is: it comes back by itself and sends the same bytes."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from commons.identity import Seat
from commons.names import RunId, SiteId
from commons.views import RunView
from orchestrator.coordinator import NO_MLFLOW, Coordinator
from tests.support.consortium import Office, found, over, running
from tests.support.site_process import (
    ROOT,
    actors,
    descendants,
    end,
    eventually,
    loads,
    one_site,
    site_process,
    write_site,
)
from tests.support.tcp_proxy import proxied

STOP_S = 3.0
pytestmark = [pytest.mark.ray, pytest.mark.slow]


@dataclass(frozen=True)
class Head:
    process: subprocess.Popen[bytes]
    address: str
    environment: dict[str, str]


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """One small Ray that the sites of these tests join by address."""
    environment = {
        **os.environ,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "OMP_NUM_THREADS": "1",
    }
    with tempfile.TemporaryDirectory(prefix="ht-", ignore_cleanup_errors=True) as folder:
        process = subprocess.Popen(
            [sys.executable, "-m", "hansa.demo.ray_head", folder, "2"], cwd=ROOT, env=environment
        )
        try:
            eventually(lambda: (Path(folder) / "address").exists() or process.poll() is not None, "Ray")
            yield Head(process, (Path(folder) / "address").read_text(), environment)
        finally:
            end(process)


def midway(log: Path, round_number: int) -> None:
    """Wait until the site trains that round, and a little longer: a round takes some seconds."""
    eventually(lambda: f"round {round_number}: training" in log.read_text(), f"round {round_number}", 90)
    time.sleep(0.5)


def trained(folder: Path, head: Head, *, disturbed: bool) -> RunView:
    """The whole run with one site; disturbed, with the site, its actor and the coordinator gone once each."""
    home = found(folder, one_site())
    first = Coordinator(home, "127.0.0.1:0", mlflow=NO_MLFLOW)
    first.start()
    file, log = write_site(folder / "site", first, ray=head.address), folder / "site.log"
    office = Office(Seat.load(home / "operator"))
    again = first
    with site_process(file, log, head.environment) as site:
        try:
            office.start_run(folder / "seed")
            if not disturbed:
                return office.wait(over, 120)
            midway(log, 1)
            site.kill()
            with site_process(file, log, head.environment) as successor:
                midway(log, 2)
                [actor] = actors(head.process.pid)
                assert loads(actor, "libtorch_cpu"), "the actor trains"
                assert not loads(actor, "cygrpc"), "gRPC stays out of the actor's process"
                assert loads(successor.process.pid, "cygrpc")
                assert not loads(successor.process.pid, "libtorch"), "torch stays out of the site's process"
                os.kill(actor, signal.SIGKILL)
                midway(log, 3)
                first.stop()
                eventually(lambda: "waiting for coordinator" in log.read_text(), "the site's notice", 10)
                again = Coordinator(home, first.address, mlflow=NO_MLFLOW, enrolment="127.0.0.1:0")
                again.start()
                view = Office(Seat.load(home / "operator")).wait(over, 120)
                assert successor.stop() < STOP_S
                return view
        finally:
            office.close()
            again.stop()


def test_a_disturbed_run_ends_at_the_same_model_as_a_quiet_one(tmp_path: Path, head: Head) -> None:
    quiet = trained(tmp_path / "quiet", head, disturbed=False)
    rough = trained(tmp_path / "rough", head, disturbed=True)
    assert (quiet.phase, rough.phase) == ("finished", "finished"), (quiet.reason, rough.reason)
    assert rough.state == quiet.state
    assert [r.losses for r in rough.history] == [r.losses for r in quiet.history]
    log = (tmp_path / "rough" / "site.log").read_text()
    assert "the training process died" in log
    assert log.count("training 400 steps") == 4, "three rounds, one of them begun twice by a killed site"
    assert "Traceback" not in log


def test_a_site_whose_policy_forbids_the_charter_says_so_and_stays(tmp_path: Path, head: Head) -> None:
    home = found(tmp_path, one_site())
    with running(home) as coordinator:
        policy = "[policy]\nmax_charge_micro_per_round = 0\n"
        file = write_site(tmp_path / "site", coordinator, ray=head.address, more=policy)
        office = Office(Seat.load(home / "operator"))
        with site_process(file, tmp_path / "site.log", head.environment) as site:
            office.start_run(tmp_path / "seed")
            said = tmp_path / "site.log"
            eventually(lambda: "site alder will not train" in said.read_text(), "the refusal")
            assert "max_charge_micro_per_round" in said.read_text()
            assert site.process.poll() is None
            other = subprocess.run(
                [sys.executable, "-m", "hansa", "site", "start", str(file)],
                cwd=ROOT,
                env=head.environment,
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            assert other.returncode == 5
            assert f"in use by process {site.process.pid}" in other.stderr
            assert site.stop() < STOP_S
        office.close()


def test_a_site_whose_only_way_out_is_an_http_proxy_trains_though_it_is_cut(
    tmp_path: Path, head: Head
) -> None:
    home = found(tmp_path, one_site(learning=one_site().learning.model_dump() | {"rounds": 2}))
    with running(home) as coordinator, proxied() as proxy:
        file, log = write_site(tmp_path / "site", coordinator, ray=head.address), tmp_path / "site.log"
        behind = (
            f"hansa.example:{coordinator.address.rpartition(':')[2]}"  # a name only the proxy can resolve
        )
        seat = tmp_path / "site" / "seat" / "seat.toml"
        seat.write_text(seat.read_text().replace(coordinator.address, behind))
        way_out = {"https_proxy": f"http://{proxy.address}", "no_proxy": "localhost,127.0.0.1"}
        office = Office(Seat.load(home / "operator"))
        with site_process(file, log, head.environment | way_out) as site:
            office.start_run(tmp_path / "seed")
            midway(log, 2)
            assert proxy.cut()
            view = office.wait(over, 120)
            assert view.phase == "finished", view.reason
            assert site.stop() < STOP_S
        office.close()
    assert len(proxy.tunnels) >= 2 and set(proxy.tunnels) == {behind}
    assert "Traceback" not in log.read_text()


@pytest.mark.parametrize("topups", [0, 4])
def test_a_round_that_takes_longer_than_is_held_is_topped_up_or_handed_in_as_far_as_it_is(
    tmp_path: Path, head: Head, topups: int
) -> None:
    """The training process is stopped for as long as the round before took; half a second later the site knows."""
    steps = 1000
    rate = {"device": "cpu", "micro_per_gflop": 10, "micro_per_device_second": 1000, "peak_gflops": 10_000}
    learning = one_site().learning.model_dump()
    learning |= {"rounds": 2, "inner_steps": steps, "codecs": {"trunk": "fp32", "expert": "fp32"}}
    of = one_site(
        learning=learning,
        rate_card={"currency": "EUR", "rates": (rate,)},
        accounting={"topups": topups},
    )
    home = found(tmp_path, of)
    with running(home) as coordinator:
        file, log = write_site(tmp_path / "site", coordinator, ray=head.address), tmp_path / "site.log"
        office = Office(Seat.load(home / "operator"))
        with site_process(file, log, head.environment) as site:
            office.start_run(tmp_path / "seed")
            midway(log, 2)
            run = coordinator.desk.runs.by_id[RunId("run-1")]
            first = run.last_usage(SiteId("alder"))
            assert first is not None and first.device_ids == "cpu/alder/alder"
            [actor] = actors(head.process.pid)
            os.kill(actor, signal.SIGSTOP)
            time.sleep(first.device_ms / 1000)
            os.kill(actor, signal.SIGCONT)
            view = office.wait(over, 120)
            assert view.phase == "finished", view.reason
            assert site.stop() < STOP_S
        office.close()
        second = run.history[1].usage(SiteId("alder"))
        ledger = coordinator.desk.consortium.ledger
    assert second is not None and second.started_ms >= first.ended_ms
    hold = ledger.hold("hold/run-1/2/alder")
    assert hold is not None and not ledger.open
    assert hold.request.amount_micro == 10 * first.gflop + -(-5 * first.device_ms // 4)
    tops = ledger.topups("hold/run-1/2/alder")
    charged = hold.charged_micro + sum(t.charged_micro for t in tops)
    said = log.read_text()
    if topups:
        assert second.steps == steps and charged == 10 * second.gflop + second.device_ms > hold.charged_micro
        assert "top-up 1 of" in said and "is held" in said
    else:
        assert second.steps < steps and not tops and charged <= hold.request.amount_micro
        assert f"ended after {second.steps} of {steps} steps: the {hold.request.amount_micro} micro" in said
        assert "the charter allows 0 top-ups a round" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("text", ["", "one document only", "caf\xe9".encode("latin-1") * 50, "a\n\nb"])
def test_a_text_that_cannot_be_trained_on_ends_the_start_with_a_reason(
    tmp_path: Path, text: str | bytes
) -> None:
    home = found(tmp_path, one_site())
    with running(home) as coordinator:
        file = write_site(tmp_path / "site", coordinator, ray="local")
    words = tmp_path / "site" / "words.txt"
    words.write_bytes(text if isinstance(text, bytes) else text.encode())
    done = subprocess.run(
        [sys.executable, "-m", "hansa", "site", "start", str(file)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "words.txt" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_site_told_to_stop_while_its_own_ray_starts_stops_and_leaves_nothing(tmp_path: Path) -> None:
    home = found(tmp_path, one_site())
    with running(home) as coordinator:
        file, log = write_site(tmp_path / "site", coordinator, ray="local"), tmp_path / "site.log"
        with site_process(file, log, dict(os.environ)) as site:
            eventually(lambda: descendants(site.process.pid), "the start of Ray")
            time.sleep(1.0)
            begun = descendants(site.process.pid)
            assert site.stop() < STOP_S
            assert site.process.returncode == 0
            eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in begun), "the end of Ray", 5)
    assert "stopped while Ray was starting" in log.read_text()
