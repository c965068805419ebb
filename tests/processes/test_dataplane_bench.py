"""The data plane's bench runs real processes end to end: what it says of a tiny round is what happened."""

from __future__ import annotations

from pathlib import Path

from benchmarks.dataplane_parts.apart import measured_apart


def test_two_sites_exchange_a_tenth_of_a_megabyte_in_measured_rounds(tmp_path: Path) -> None:
    found = measured_apart("rounds", tmp_path / "two", "--sites", 2, "--mb", 0.1, "--rounds", 12)
    run = found["run"]
    assert (run["sites"], run["mb"], run["rounds"]) == (2, 0.1, 12)
    assert 0 < run["wall_s_min"] <= run["wall_s_median"] < run["submit_to_done_s"] < run["start_to_done_s"]
    assert run["wire_mb_per_round"] is None or 0.3 < run["wire_mb_per_round"] < 0.8, (
        "down and up, by two; the counter is read now and then, so that a little falls outside the rounds"
    )
    assert 0 < run["server_idle_rss_mb"] <= run["server_peak_rss_mb"] < run["total_peak_rss_mb"]
    assert not (tmp_path / "two").exists(), "it leaves nothing behind"
