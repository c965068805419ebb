"""Usage is measured beside the device and never overlaps with what this site stated before."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from commons.errors import HansaError, StoreError
from workers.gauge import Gauge
from workers.meter import Meter, Usage

CPU = "cpu/alder/alder"


@dataclass
class Hands:
    """A clock, and one that never jumps, set by hand."""

    at_ms: int
    ticked_ns: int = 7

    def now_ms(self) -> int:
        return self.at_ms

    def ticks_ns(self) -> int:
        return self.ticked_ns

    def works(self, ms: float) -> None:
        self.ticked_ns += int(ms * 1_000_000)


def gauge(hands: Hands, rapl: Path, *, not_before_ms: int = 0) -> Gauge:
    return Gauge(hands, CPU, not_before_ms=not_before_ms, rapl=rapl, ticks_ns=hands.ticks_ns)


def used(started_ms: int, ended_ms: int) -> Usage:
    return Usage(started_ms, ended_ms, ended_ms - started_ms, (CPU,), "fp32")


def test_usage_runs_from_begin_to_end_on_the_processor(tmp_path: Path) -> None:
    hands = Hands(1_000)
    measured = gauge(hands, tmp_path)
    assert measured.device_ms == 0, "nothing works yet"
    measured.begin(None)
    hands.works(4_499.2)
    assert measured.device_ms == 4_500, "a begun millisecond counts"
    hands.works(0.1)
    assert measured.end("fp32") == Usage(1_000, 5_500, 4_500, (CPU,), "fp32", None)


@pytest.mark.parametrize("jump_ms", [-1_000_000, 0, 1_000_000])
def test_a_clock_that_jumps_makes_no_time(tmp_path: Path, jump_ms: int) -> None:
    hands = Hands(2_000_000)
    measured = gauge(hands, tmp_path)
    measured.begin(None)
    hands.works(30)
    hands.at_ms += jump_ms
    usage = measured.end("fp32")
    assert (usage.started_ms, usage.ended_ms, usage.device_ms) == (2_000_000, 2_000_030, 30)


def test_no_record_begins_before_the_last_one_ended_whatever_the_clock_says(tmp_path: Path) -> None:
    hands = Hands(1_000)
    measured = gauge(hands, tmp_path, not_before_ms=9_000)
    measured.begin(None)
    hands.works(5)
    assert measured.end("fp32") == Usage(9_000, 9_005, 5, (CPU,), "fp32")


def test_work_on_a_gpu_is_the_gpus_and_its_energy_is_unknown_without_nvml(tmp_path: Path) -> None:
    hands = Hands(1_000)
    measured = gauge(hands, tmp_path)
    measured.begin("GPU-1b2c")
    hands.works(5)
    assert measured.end("bf16") == Usage(1_000, 1_005, 5, ("GPU-1b2c",), "bf16", None)


def package(rapl: Path, number: int, energy_uj: int, wraps_at: int = 262_143_328_850) -> Path:
    folder = rapl / f"intel-rapl:{number}"
    folder.mkdir(exist_ok=True)
    (folder / "energy_uj").write_text(f"{energy_uj}\n")
    (folder / "max_energy_range_uj").write_text(f"{wraps_at}\n")
    return folder


def test_energy_is_what_all_packages_counted_also_when_a_counter_wraps(tmp_path: Path) -> None:
    (tmp_path / "intel-rapl:0:0").mkdir()
    package(tmp_path, 0, 5_000_000)
    package(tmp_path, 1, 9_999_999, wraps_at=9_999_999)
    measured = gauge(Hands(0), tmp_path)
    measured.begin(None)
    package(tmp_path, 0, 8_500_000)
    package(tmp_path, 1, 499_999, wraps_at=9_999_999)
    assert measured.end("fp32").energy_j == 4, "3.5 J and 0.5 J"


def test_energy_that_one_package_does_not_tell_is_unknown(tmp_path: Path) -> None:
    package(tmp_path, 0, 5_000_000)
    hidden = package(tmp_path, 1, 5_000_000)
    measured = gauge(Hands(0), tmp_path)
    measured.begin(None)
    (hidden / "energy_uj").unlink()
    assert measured.end("fp32").energy_j is None


def test_the_end_of_the_last_record_outlives_the_process(tmp_path: Path) -> None:
    path = tmp_path / "meter.json"
    assert Meter(path).ended_ms == 0
    Meter(path).take("run-1", 1, used(1_000, 5_000))
    assert Meter(path).ended_ms == 5_000
    Meter(path).take("run-1", 2, used(5_000, 6_000))
    assert Meter(path).ended_ms == 6_000


def test_the_same_work_may_be_stated_again_under_another_lease(tmp_path: Path) -> None:
    meter = Meter(tmp_path / "meter.json")
    for _ in range(2):
        meter.take("run-1", 1, used(1_000, 5_000))
    assert meter.ended_ms == 5_000


@pytest.mark.parametrize(
    ("run", "number", "usage"),
    [
        ("run-1", 1, used(1_000, 4_999)),
        ("run-1", 1, used(4_999, 9_000)),
        ("run-1", 2, used(1_000, 5_000)),
        ("run-2", 1, used(0, 1)),
    ],
)
def test_other_work_before_the_end_of_the_last_record_is_not_stated(
    tmp_path: Path, run: str, number: int, usage: Usage
) -> None:
    meter = Meter(tmp_path / "meter.json")
    meter.take("run-1", 1, used(1_000, 5_000))
    with pytest.raises(HansaError, match=r"last usage record ended \(5000\).* operator removes"):
        meter.take(run, number, usage)
    assert meter.ended_ms == 5_000


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"lease": "lease-1"}', b'{"ended_ms": "1"}'])
def test_a_file_of_no_use_is_as_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "meter.json").write_bytes(content)
    meter = Meter(tmp_path / "meter.json")
    assert meter.ended_ms == 0
    meter.take("run-1", 1, used(1, 2))
    assert meter.ended_ms == 2


def test_a_record_whose_end_cannot_be_kept_is_not_stated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: bytes) -> None:
        raise StoreError("cannot write: no space")

    meter = Meter(tmp_path / "meter.json")
    meter.take("run-1", 1, used(1, 2))
    monkeypatch.setattr("workers.meter.write_file", full)
    with pytest.raises(StoreError):
        meter.take("run-1", 2, replace(used(2, 3)))
    assert meter.ended_ms == 2
