"""Usage is measured per lease, and survives the process that began the work."""

from __future__ import annotations

from pathlib import Path

import pytest

from workers.meter import Meter, Usage


class Hands:
    """A clock that is set by hand."""

    def __init__(self, at_ms: int) -> None:
        self.at_ms = at_ms

    def now_ms(self) -> int:
        return self.at_ms


def test_usage_runs_from_begin_to_end(tmp_path: Path) -> None:
    clock = Hands(1_000)
    meter = Meter(tmp_path / "meter.json", clock)
    meter.begin("lease-1")
    clock.at_ms = 5_500
    assert meter.end() == Usage(started_ms=1_000, ended_ms=5_500, device_ms=4_500)


def test_a_restarted_process_remembers_when_the_lease_began_but_not_the_lost_work(tmp_path: Path) -> None:
    Meter(tmp_path / "meter.json", Hands(1_000)).begin("lease-1")
    clock = Hands(60_000)
    meter = Meter(tmp_path / "meter.json", clock)
    meter.begin("lease-1")
    clock.at_ms = 62_000
    assert meter.end() == Usage(started_ms=1_000, ended_ms=62_000, device_ms=2_000)


def test_another_lease_begins_anew(tmp_path: Path) -> None:
    clock = Hands(1_000)
    meter = Meter(tmp_path / "meter.json", clock)
    meter.begin("lease-1")
    clock.at_ms = 9_000
    meter.begin("lease-2")
    assert meter.end() == Usage(9_000, 9_000, 0)


def test_a_clock_that_runs_backwards_gives_no_negative_time(tmp_path: Path) -> None:
    clock = Hands(5_000)
    meter = Meter(tmp_path / "meter.json", clock)
    meter.begin("lease-1")
    clock.at_ms = 2_000
    assert meter.end() == Usage(5_000, 5_000, 0)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"lease": "lease-1"}'])
def test_a_broken_file_is_as_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "meter.json").write_bytes(content)
    meter = Meter(tmp_path / "meter.json", Hands(7_000))
    meter.begin("lease-1")
    assert meter.end().started_ms == 7_000
