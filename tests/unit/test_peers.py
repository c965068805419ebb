"""A peer's result is kept and answered again; one that is not installed, or lost an answer, is no result."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.peers import PeerRun
from benchmarks.peers.driving import Job, PeerError, spans
from benchmarks.peers.run import PEERS, measure

ROW = PeerRun(
    system="flower", version="1", configuration="TLS", sites=3, mb=0.001, rounds=1, wall_s_min=1.0, wall_s_median=2.0,
    cpu_s_per_round=3.0, foreign_cpu_s_per_round=0.0, wire_mb_per_round=None, loopback_mb_per_round=6.1,
    server_peak_rss_mb=100.0, server_idle_rss_mb=90.0, total_peak_rss_mb=300.0, submit_to_done_s=4.0,
    start_to_done_s=9.0, notes=("one",),
)  # fmt: skip


def job(folder: Path, *events: dict[str, object]) -> Job:
    """Two rounds of three sites, of which these events are told."""
    made = Job(3, 1.0, 2, work=folder, environment=folder)
    made.events.write_text("".join(json.dumps(event) + "\n" for event in events))
    return made


def start(number: int, at: float) -> dict[str, object]:
    return {"event": "round_start", "at": at, "round": number}


def end(number: int, at: float, *, replies: int = 3, failed: tuple[str, ...] = ()) -> dict[str, object]:
    return {"event": "round_end", "at": at, "round": number, "replies": replies, "failed": failed}


@pytest.mark.parametrize("system", PEERS)
def test_a_peer_that_is_not_installed_says_how_to_install_it(system: str, tmp_path: Path) -> None:
    with pytest.raises(PeerError, match="make peers"):
        measure(system, 3, 1.0, 1, work=tmp_path, environments=tmp_path)


def test_what_was_measured_before_is_answered_again(tmp_path: Path) -> None:
    (tmp_path / "flower-3x0.001.json").write_text(ROW.as_json())
    assert measure("flower", 3, 0.001, 1, work=tmp_path, environments=tmp_path) == ROW
    with pytest.raises(PeerError, match="make peers"):
        measure("flower", 8, 0.001, 1, work=tmp_path, environments=tmp_path)


def test_rounds_are_told_by_their_events(tmp_path: Path) -> None:
    told = job(tmp_path, start(1, 10.0), end(1, 11.0), start(2, 11.5), end(2, 14.0))
    assert spans(told) == [(10.0, 11.0), (11.5, 14.0)]


@pytest.mark.parametrize(
    ("second", "says"),
    [
        ((end(2, 3.0, replies=2),), "2 of 3 answers"),
        ((end(2, 3.0, failed=("node gone",)),), "node gone"),
        ((), "1 of 2 rounds"),
    ],
)
def test_a_round_that_lacks_an_answer_is_no_round(
    second: tuple[dict[str, object], ...], says: str, tmp_path: Path
) -> None:
    with pytest.raises(PeerError, match=says):
        spans(job(tmp_path, start(1, 0.0), end(1, 1.0), start(2, 2.0), *second))


def test_a_row_is_one_line_of_json_and_back() -> None:
    line = ROW.as_json()
    assert "\n" not in line
    assert PeerRun.from_json(line) == ROW
    with pytest.raises(TypeError):
        PeerRun.from_json(replace(ROW).as_json().replace("wall_s_min", "wall_min"))
