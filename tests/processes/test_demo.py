"""The demo as a user runs it: from an empty folder to a released model, interrupted, resumed, tampered with."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from hansa.demo.processes import birth, descendants
from tests.browser.browser import chromium, lacking
from tests.browser.shown import Dashboard

ROOT = Path(__file__).parents[2]
ROUNDS = 5
DOMAINS = 4
STOP_S = 5.0


def hansa(*arguments: str, timeout_s: float = 240) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hansa", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout_s, check=False)


@pytest.fixture(scope="module")
def demo(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, dict[str, Any], subprocess.CompletedProcess[str]]:
    folder = tmp_path_factory.mktemp("demo") / "run"
    done = hansa("demo", "--quick", "--rounds", str(ROUNDS), "--dir", str(folder), "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, json.loads((folder / "summary.json").read_text()), done


Demo = tuple[Path, dict[str, Any], subprocess.CompletedProcess[str]]


@pytest.mark.slow
@pytest.mark.ray
class TestADemo:
    def test_the_summary_is_what_json_printed_and_progress_went_to_stderr(self, demo: Demo) -> None:
        _, summary, done = demo
        assert json.loads(done.stdout) == summary
        assert f"round {ROUNDS}/{ROUNDS}" in done.stderr

    def test_the_summary_has_every_promised_key(self, demo: Demo) -> None:
        folder, summary, _ = demo
        assert summary["sites"] == 4
        assert summary["rounds"] == ROUNDS
        assert summary["seconds"] > 0
        assert len(summary["loss"]["consortium"]) == DOMAINS
        assert len(summary["loss"]["alone"]["alder"]) == DOMAINS
        assert summary["bytes"]["up"] > 0
        assert summary["bytes"]["up"] + summary["bytes"]["down"] < summary["bytes"]["full_replication"]
        assert summary["release"]["path"] == str(folder / "release")
        assert summary["mlflow"]["tracking_uri"].endswith("mlflow.db")
        assert summary["model_digest"].startswith("blake3:")
        assert sum(summary["phases"].values()) == pytest.approx(summary["seconds"], abs=5)

    def test_the_sites_and_whoever_loads_the_release_measure_the_same_loss(self, demo: Demo) -> None:
        loss = demo[1]["loss"]
        assert loss["consortium"] == pytest.approx(loss["measured_by_sites"], abs=1e-4)

    def test_the_readers_find_a_texts_experts_better_than_the_learned_router(self, demo: Demo) -> None:
        loss = demo[1]["loss"]
        for domain, ours in loss["consortium"].items():
            assert ours < loss["without_readers"][domain], domain

    def test_the_consortium_learns_more_than_the_seed_knew(self, demo: Demo) -> None:
        loss = demo[1]["loss"]
        for domain, ours in loss["consortium"].items():
            assert ours < loss["seed"][domain], domain

    def test_the_vote_binds_and_shows_in_the_bytes(self, demo: Demo) -> None:
        (proposal,) = demo[1]["proposals"]
        assert (proposal["outcome"], proposal["effective_round"]) == ("executed", 3)
        assert len(proposal["ballots"]) == 5
        rounds = {r["round"]: r for r in demo[1]["history"]}
        assert (rounds[2]["uplink_trunk"], rounds[3]["uplink_trunk"]) == ("fp32", "int8")
        assert rounds[3]["bytes_up"] < rounds[2]["bytes_up"] / 3

    def test_a_budget_that_is_used_up_ends_a_sites_work(self, demo: Demo) -> None:
        (left_out,) = demo[1]["left_out"]
        assert (left_out["round"], left_out["site"]) == (ROUNDS, "cedar-site")
        assert "budget of cedar" in left_out["why"]
        spent = {b["partner"]: b["spent_micro"] for b in demo[1]["budgets"]}
        assert spent["cedar"] == spent["alder"] * (ROUNDS - 1) // ROUNDS
        assert spent["dogwood"] == 0, "elm pays for dogwood's site"
        assert spent["elm"] == spent["alder"]

    def test_no_money_is_lost_or_made(self, demo: Demo) -> None:
        charges = demo[1]["charges"]
        assert {c["state"] for c in charges} == {"settled"}
        assert len(charges) == 4 * ROUNDS - 1
        assert sum(c["charged_micro"] for c in charges) == sum(b["spent_micro"] for b in demo[1]["budgets"])
        for b in demo[1]["budgets"]:
            assert b["granted_micro"] == b["held_micro"] + b["spent_micro"] + b["available_micro"]

    def test_the_journal_verifies_without_the_coordinator(self, demo: Demo) -> None:
        folder, summary, _ = demo
        found = json.loads(hansa("journal", "verify", "--home", str(folder / "home"), "--json").stdout)
        assert (found["size"], found["root"]) == (summary["journal"]["size"], summary["journal"]["root"])

    def test_mlflow_has_everything(self, demo: Demo) -> None:
        _, summary, _ = demo
        assert summary["mlflow"]["complete"]

    def test_one_changed_byte_of_the_release_is_found_and_named(self, demo: Demo, tmp_path: Path) -> None:
        copy = tmp_path / "release"
        shutil.copytree(demo[0] / "release", copy)
        assert hansa("release", "verify", str(copy)).returncode == 0
        with (copy / "model.safetensors").open("r+b") as file:
            file.seek(-1, os.SEEK_END)
            last = file.read(1)
            file.seek(-1, os.SEEK_END)
            file.write(bytes([last[0] ^ 1]))
        checked = hansa("release", "verify", str(copy))
        assert checked.returncode == 1
        assert "model.safetensors" in checked.stdout

    def test_run_again_it_offers_to_resume_or_start_afresh(self, demo: Demo) -> None:
        again = hansa("demo", "--dir", str(demo[0]))
        assert again.returncode == 5
        assert "--resume" in again.stderr
        assert "--fresh" in again.stderr

    def test_resumed_when_finished_it_shows_the_card_again(self, demo: Demo) -> None:
        again = hansa("demo", "--dir", str(demo[0]), "--resume")
        assert again.returncode == 0
        assert demo[1]["journal"]["root"] in again.stdout

    def test_interrupted_it_stops_everything_and_resumed_it_makes_the_same_model(
        self, demo: Demo, tmp_path: Path
    ) -> None:
        folder = tmp_path / "again"
        command = [sys.executable, "-m", "hansa", "demo", "--dir", str(folder)]
        quick = ["--quick", "--rounds", str(ROUNDS)]
        with (tmp_path / "out").open("w") as out:
            running = subprocess.Popen([*command, *quick], cwd=ROOT, stdout=out, stderr=out)
            _wait_for(lambda: "round 1/" in (tmp_path / "out").read_text() or running.poll() is not None)
            family = descendants([running.pid])
            assert len(family) > 10, "coordinator, four sites, Ray and its workers"
            started = time.monotonic()
            running.send_signal(signal.SIGINT)
            code = running.wait(STOP_S)
        assert (code, time.monotonic() - started < STOP_S) == (130, True)
        assert [pid for pid, born in family.items() if birth(pid) == born] == []
        assert "--resume" in (tmp_path / "out").read_text()
        resumed = hansa("demo", "--dir", str(folder), "--resume")
        assert resumed.returncode == 0, resumed.stderr[-2000:]
        resumed = json.loads((folder / "summary.json").read_text())
        assert resumed["model_digest"] == demo[1]["model_digest"]
        assert len(resumed["charges"]) == len(demo[1]["charges"]), "nothing is charged twice"

    @pytest.mark.skipif(bool(lacking()), reason=lacking())
    def test_the_dashboard_shows_all_of_it(self, demo: Demo, tmp_path: Path) -> None:
        folder, summary, _ = demo
        expected = {
            "/": ["finished", f"round {ROUNDS} of {ROUNDS}"],
            "/rounds": ["cedar-site", "budget of cedar"],
            "/experts": ["alder-site", "dogwood-site"],
            "/learning": sorted(summary["loss"]["consortium"]),
            "/budgets": ["alder", "elm"],
            "/proposals": ["P-0001", "executed"],
            "/roadmap": [],
            "/members": ["alder", "elm"],
            "/journal": [summary["journal"]["root"]],
            "/releases": [],
            "/alerts": [],
        }
        with _coordinator(folder / "home"), chromium(tmp_path) as browser:
            dashboard = Dashboard(folder / "home" / "operator", tmp_path / "dashboard.log")
            try:
                browser.open(dashboard.link())
                base = browser.driver.current_url.rstrip("/")
                assert {a.get_dom_attribute("href") for a in browser.all("nav.side a")} == set(expected)
                for path, words in expected.items():
                    browser.open(base + path)
                    assert [w for w in words if w not in browser.text] == [], (path, browser.text)
                assert browser.complaints() == []
            finally:
                dashboard.close()


@contextmanager
def _coordinator(home: Path) -> Iterator[None]:
    """Of a home that was there before, on a port of its own."""
    command = [sys.executable, "-m", "hansa", "coordinator", "start", "--home", str(home), "--json"]
    running = subprocess.Popen(
        [*command, "--listen", "127.0.0.1:0"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert running.stdout is not None
        assert json.loads(running.stdout.readline())["state"] == "ready"
        yield
    finally:
        running.terminate()
        running.wait(10)


def _wait_for(ready: Any, timeout_s: float = 150) -> None:
    deadline = time.monotonic() + timeout_s
    while not ready():
        assert time.monotonic() < deadline, "it takes too long"
        time.sleep(0.1)
