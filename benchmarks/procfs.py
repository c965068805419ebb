"""What the kernel tells about processes and the machine, read from `/proc`. 1 MB is 10^6 bytes.

Every function raises OSError, ValueError or IndexError for a process that ended meanwhile, unless it says otherwise.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

TICK = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")
MB = 1e6


def descendants(root: int) -> Iterator[int]:
    """Process ids below `root`, parents before their children."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                children.setdefault(int(stat(int(name))[1]), []).append(int(name))
            except (OSError, ValueError, IndexError):
                continue
    waiting = [root]
    while waiting:
        found = children.get(waiting.pop(), [])
        yield from found
        waiting += found


def command_line(pid: int) -> str:
    """Arguments of a process joined by blanks; empty for one that ended."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read().replace(b"\0", b" ").decode("utf8", "replace").strip()
    except OSError:
        return ""


def loopback_bytes() -> int:
    """Bytes sent over loopback in this thread's network since it is there."""
    with open("/proc/thread-self/net/dev") as file:
        lines = [line.split(":", 1)[1].split() for line in file if line.strip().startswith("lo:")]
    return int(lines[0][8]) if lines else 0


def stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat after the name: 1 parent, 11-14 ticks (own, waited-for children), 19 start, 21 pages."""
    with open(f"/proc/{pid}/stat") as file:
        text = file.read()
    return text[text.rindex(")") + 2 :].split()


def high_water_mb(pid: int) -> float:
    """Highest RSS the process ever had, by the kernel's own mark."""
    with open(f"/proc/{pid}/status") as file:
        return next((int(line.split()[1]) * 1024 / MB for line in file if line.startswith("VmHWM:")), 0.0)


def shared_mb(pid: int) -> tuple[float, float]:
    """PSS and USS."""
    with open(f"/proc/{pid}/smaps_rollup") as file:
        kb = {line.split(":")[0]: int(line.split()[1]) for line in file if line.endswith("kB\n")}
    private = kb.get("Private_Clean", 0) + kb.get("Private_Dirty", 0)
    return kb.get("Pss", 0) * 1024 / MB, private * 1024 / MB


def busy_s() -> float:
    """Seconds that the cores this process may use were busy, stolen time included."""
    cores = {f"cpu{number}" for number in os.sched_getaffinity(0)}
    ticks = 0
    with open("/proc/stat") as file:
        for line in file:
            name, *values = line.split()
            if name in cores:
                numbers = [int(value) for value in values[:8]]
                ticks += sum(numbers) - numbers[3] - numbers[4]
    return ticks / TICK


def available_mb() -> float:
    """Memory that programs could still take on this machine."""
    with open("/proc/meminfo") as file:
        return next(
            (int(line.split()[1]) * 1024 / MB for line in file if line.startswith("MemAvailable")), 0.0
        )
