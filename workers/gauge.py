"""Measures what a round takes, in the process that computes: time by a clock that never jumps, devices, energy.

Energy is read where the device tells: a GPU's total through NVML, if `pynvml` is installed, a processor's packages
through RAPL, if their counters may be read. RAPL counts the whole package, also for what else runs on it.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from commons.clock import Clock
from workers.meter import Usage

RAPL = Path("/sys/class/powercap")
Counter = Callable[[], int | None]
"""Microjoules since the reading before; None when they cannot be told."""


class Gauge:
    """For one round. `begin` when the devices begin to work, then `device_ms` at any time, `end` once.

    Between `rest` and `go_on` they wait: that is none of their time.
    """

    def __init__(
        self,
        clock: Clock,
        processor: str,
        *,
        not_before_ms: int = 0,
        rapl: Path = RAPL,
        ticks_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """`processor`: id of the CPU, for work that no GPU does. `not_before_ms`: end of the last record, Unix ms."""
        self._clock, self._processor, self._not_before_ms = clock, processor, not_before_ms
        self._rapl, self._ticks_ns = rapl, ticks_ns
        self._devices: tuple[str, ...] = ()
        self._counters: Sequence[Counter] = ()
        self._started_ms = self._began_ns = 0
        self._rested_ns = self._resting_ns = 0

    def begin(self, gpu: str | None) -> None:
        """Work begins, on the GPU of that id or on the processor. Begun again, what was before counts no more."""
        self._devices = (gpu or self._processor,)
        self._counters = [_nvml(gpu)] if gpu else _packages(self._rapl)
        for counter in self._counters:
            counter()
        self._started_ms = max(self._clock.now_ms(), self._not_before_ms)
        self._began_ns, self._rested_ns, self._resting_ns = self._ticks_ns(), 0, 0

    def rest(self) -> None:
        self._resting_ns = self._ticks_ns()

    def go_on(self) -> None:
        self._rested_ns += self._ticks_ns() - self._resting_ns

    @property
    def device_ms(self) -> int:
        """Device time since `begin`, summed over the devices; a begun millisecond counts."""
        return self._elapsed_ms() * len(self._devices) if self._devices else 0

    def end(self, precision: str) -> Usage:
        assert self._devices, "end() before begin()"
        joules = [counter() for counter in self._counters]
        told = [j for j in joules if j is not None]
        elapsed_ms = self._elapsed_ms()
        return Usage(
            started_ms=self._started_ms,
            ended_ms=self._started_ms + elapsed_ms + self._rested_ns // 1_000_000,
            device_ms=elapsed_ms * len(self._devices),
            device_ids=self._devices,
            precision=precision,
            energy_j=sum(told) // 1_000_000 if told and len(told) == len(joules) else None,
        )

    def _elapsed_ms(self) -> int:
        return -(-(self._ticks_ns() - self._began_ns - self._rested_ns) // 1_000_000)


def _packages(rapl: Path) -> list[Counter]:
    """One counter for each processor package that shows its energy."""
    return [_package(folder) for folder in sorted(rapl.glob("intel-rapl:?"))]


def _package(folder: Path) -> Counter:
    last: int | None = None

    def read() -> int | None:
        nonlocal last
        try:
            now = int((folder / "energy_uj").read_text())
            wraps_at = int((folder / "max_energy_range_uj").read_text())
        except (OSError, ValueError):
            return None
        before, last = last, now
        return None if before is None else (now - before) % (wraps_at + 1)

    return read


def _nvml(gpu: str) -> Counter:
    """Total energy of the GPU with that UUID; tells nothing where NVML is missing or the GPU does not count."""
    last: int | None = None
    try:
        nvml = importlib.import_module("pynvml")
        nvml.nvmlInit()
        handle = nvml.nvmlDeviceGetHandleByUUID(gpu.encode())
    except Exception:  # noqa: BLE001 (an optional library and its driver: whatever fails, energy is unknown)
        return lambda: None

    def read() -> int | None:
        nonlocal last
        try:
            now = int(nvml.nvmlDeviceGetTotalEnergyConsumption(handle)) * 1000
        except nvml.NVMLError:
            return None
        before, last = last, now
        return None if before is None else now - before

    return read
