"""What a tree of processes costs: CPU, memory, bytes on loopback, and how much of the machine others used meanwhile.

Reads `/proc` alone (Linux) and works for any program, ours or a peer's: it measures every descendant of the calling
process and never the caller. So a driver calls `adopt_orphans()` and `private_network()` first, in its main thread,
starts its programs as children under a `Sampler`, and asks for the `Window` between two moments::

    adopt_orphans()
    note = private_network()              # None, or why the byte count holds the machine's other traffic too
    with Sampler(role=lambda command: "server" if "coordinator" in command else "site") as sampler:
        ...                               # time.time() at the beginning and the end of what is to be measured
        window = sampler.window(begin, end)

Memory is resident set size (RSS): private pages and, in every process that maps them, shared pages; so a sum over
processes counts shared pages more than once and is an upper bound. With `pss_period_s` the proportional (PSS: shared
pages divided among those who map them; sums are exact) and the unique set size (USS: private pages) are read too, less
often, for the kernel walks every page to tell them. 1 MB is 10^6 bytes.
"""

from __future__ import annotations

import bisect
import ctypes
import fcntl
import os
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import TracebackType

from typing_extensions import Self

from benchmarks import procfs

_CLONE_NEWNET, _PR_SET_CHILD_SUBREAPER, _SIOCSIFFLAGS, _IFF_UP = 0x40000000, 36, 0x8914, 1
_Sums = Mapping[str, float]
"""Role -> MB."""
_SETTLED = 20
"""Samples after which the command line of a process is taken as final (programs exec others in their first moments)."""


@dataclass(frozen=True)
class Moment:
    """One sample. CPU and bytes are totals since their beginnings: only differences mean something."""

    at: float
    """Seconds, `time.time()`."""
    cpu_s: float
    """Of all descendants, those that ended included."""
    cpu_s_by_role: Mapping[str, float]
    rss_mb: Mapping[str, float]
    """Role -> sum over its processes."""
    pss_mb: Mapping[str, float]
    uss_mb: Mapping[str, float]
    loopback_bytes: int
    link_bytes: int
    busy_s: float
    """Of the cores this process may use, by anyone, time stolen by the hypervisor included."""
    own_s: float
    """Of the measuring process."""


@dataclass(frozen=True)
class Window:
    """What happened between two moments."""

    seconds: float
    cpu_s: float
    """Of the whole tree; processes shorter than the sampling period are counted fully once their parent waited for them."""
    cpu_s_by_role: Mapping[str, float]
    """As seen while the processes ran: what one burned after its last sample is in `cpu_s` alone."""
    foreign_cpu_s: float
    """What everyone else used of the same cores: wall time is an upper bound where this is large."""
    loopback_bytes: int
    """Every byte that crossed loopback once, TCP and IP headers and acknowledgements included."""
    link_bytes: int
    """What `Sampler.link` counted."""
    peak_rss_mb: float
    """Of the sum over all processes."""
    peak_rss_mb_by_role: Mapping[str, float]
    peak_pss_mb_by_role: Mapping[str, float]
    peak_uss_mb_by_role: Mapping[str, float]


@dataclass
class _Process:
    role: str = ""
    cpu_s: float = 0.0
    high_water_mb: float = 0.0
    samples: int = 0
    shared: tuple[float, float] = (0.0, 0.0)


@dataclass
class Sampler:
    """Samples every descendant of this process in a thread, from `with` on until its end."""

    role: Callable[[str], str]
    """Command line -> role."""
    period_s: float = 0.1
    limit_mb: float = float("inf")
    """When the tree's RSS exceeds it, or less than 1500 MB of the machine are left, `over_limit` becomes true."""
    pss_period_s: float | None = None
    link: Callable[[], int] = int
    """Total of bytes between server and sites so far; `link_bytes.LinkBytes.total` tells it, without it 0."""
    moments: list[Moment] = field(default_factory=list)
    over_limit: bool = False

    def __post_init__(self) -> None:
        self._seen: dict[tuple[int, str], _Process] = {}
        self._ended = threading.Event()
        self._one = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)
        self._shared_due = 0.0

    def __enter__(self) -> Self:
        self.sample()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def window(self, begin: float, end: float) -> Window:
        """Between two times (`time.time()`) within the sampled span; totals are interpolated between samples."""
        if end > self.moments[-1].at and not self._ended.is_set():
            self.sample()
        moments = list(self.moments)
        first, last = _at(moments, begin), _at(moments, end)
        inside = [m for m in moments if begin <= m.at <= end] or [last]
        cpu_s = last.cpu_s - first.cpu_s
        return Window(
            seconds=end - begin,
            cpu_s=cpu_s,
            cpu_s_by_role={
                r: round(s - first.cpu_s_by_role.get(r, 0.0), 2) for r, s in last.cpu_s_by_role.items()
            },
            foreign_cpu_s=max(0.0, last.busy_s - first.busy_s - cpu_s - (last.own_s - first.own_s)),
            loopback_bytes=last.loopback_bytes - first.loopback_bytes,
            link_bytes=last.link_bytes - first.link_bytes,
            peak_rss_mb=max(sum(m.rss_mb.values()) for m in inside),
            peak_rss_mb_by_role=_peaks([m.rss_mb for m in inside]),
            peak_pss_mb_by_role=_peaks([m.pss_mb for m in inside]),
            peak_uss_mb_by_role=_peaks([m.uss_mb for m in inside]),
        )

    def high_water_mb(self) -> dict[str, float]:
        """Role -> highest RSS that any single one of its processes ever had, by the kernel's own mark."""
        found: dict[str, float] = {}
        for process in list(self._seen.values()):
            found[process.role] = max(found.get(process.role, 0.0), process.high_water_mb)
        return found

    def _run(self) -> None:
        while not self._ended.wait(self.period_s):
            self.sample()
        self.sample()

    def sample(self) -> None:
        """Look once more, beside what the thread does every period."""
        with self._one:
            self._look()

    def _look(self) -> None:
        now = time.time()
        if shared := self.pss_period_s is not None and now >= self._shared_due:
            self._shared_due = now + (self.pss_period_s or 0.0)
        # Parents are read before their children: a child that is waited for in between is missed for one sample and
        # never counted twice.
        children = os.times()
        tree_s = children.children_user + children.children_system
        rss: dict[str, float] = {}
        pss: dict[str, float] = {}
        uss: dict[str, float] = {}
        for pid in procfs.descendants(os.getpid()):
            try:
                stat = procfs.stat(pid)
                process = self._process(pid, stat)
                tree_s += sum(int(stat[i]) for i in (11, 12, 13, 14)) / procfs.TICK
                if shared:
                    process.shared = procfs.shared_mb(pid)
            except (OSError, ValueError, IndexError):
                continue  # it ended meanwhile
            resident = int(stat[21]) * procfs.PAGE / procfs.MB
            for sums, value in ((rss, resident), (pss, process.shared[0]), (uss, process.shared[1])):
                sums[process.role] = sums.get(process.role, 0.0) + value
        self._keep(now, tree_s, rss=rss, pss=pss, uss=uss)

    def _process(self, pid: int, stat: list[str]) -> _Process:
        process = self._seen.setdefault((pid, stat[19]), _Process())
        if process.samples < _SETTLED and (command := procfs.command_line(pid)):
            process.role = self.role(command)
        process.samples += 1
        process.cpu_s = (int(stat[11]) + int(stat[12])) / procfs.TICK
        process.high_water_mb = max(process.high_water_mb, procfs.high_water_mb(pid))
        return process

    def _keep(self, now: float, tree_s: float, *, rss: _Sums, pss: _Sums, uss: _Sums) -> None:
        by_role: dict[str, float] = {}
        for process in self._seen.values():
            by_role[process.role] = by_role.get(process.role, 0.0) + process.cpu_s
        # Both are lower bounds: the first lacks children nobody waits for, the second the last moments of each process.
        before_s = self.moments[-1].cpu_s if self.moments else 0.0
        own = os.times()
        self.moments.append(
            Moment(
                at=now,
                cpu_s=max(before_s, tree_s, sum(by_role.values())),
                cpu_s_by_role=by_role,
                rss_mb=rss,
                pss_mb=pss,
                uss_mb=uss,
                loopback_bytes=procfs.loopback_bytes(),
                link_bytes=self.link(),
                busy_s=procfs.busy_s(),
                own_s=own.user + own.system,
            )
        )
        limited = self.limit_mb < float("inf")
        if limited and (sum(rss.values()) > self.limit_mb or procfs.available_mb() < 1500):
            self.over_limit = True


def private_network() -> str | None:
    """Move this process (the calling thread and all that it starts from now on) into a network of loopback alone.

    There the loopback counter holds nothing but the traffic of what is measured, and nothing can leave the machine.
    Answers None, or in a sentence why it could not be done: then measuring goes on in the machine's own network.
    """
    library = ctypes.CDLL(None, use_errno=True)
    if library.unshare(_CLONE_NEWNET) != 0:
        return f"no private network ({os.strerror(ctypes.get_errno())}; root has one): bytes include other programs' loopback traffic"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", _IFF_UP))
    return None


def adopt_orphans() -> None:
    """Let processes whose parents end become children of this one, so that they stay in the measured tree."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def end_tree(grace_s: float = 5.0) -> None:
    """End every descendant of this process: ask all, wait up to `grace_s`, kill the rest, wait for them.

    Exit codes of children are taken by it.
    """
    for number in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + grace_s
        for pid in procfs.descendants(os.getpid()):
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue
        while time.monotonic() < deadline:
            try:
                if os.waitpid(-1, os.WNOHANG)[0] == 0:
                    time.sleep(0.05)
            except ChildProcessError:
                return


def _at(moments: list[Moment], at: float) -> Moment:
    """Totals at a time, between the two samples around it."""
    after = bisect.bisect_left(moments, at, key=lambda m: m.at)
    if after in (0, len(moments)):
        return moments[min(after, len(moments) - 1)]
    a, b = moments[after - 1], moments[after]
    part = (at - a.at) / (b.at - a.at)

    def between(low: float, high: float) -> float:
        return low + part * (high - low)

    return replace(
        b,
        at=at,
        cpu_s=between(a.cpu_s, b.cpu_s),
        cpu_s_by_role={r: between(a.cpu_s_by_role.get(r, 0.0), s) for r, s in b.cpu_s_by_role.items()},
        loopback_bytes=round(between(a.loopback_bytes, b.loopback_bytes)),
        link_bytes=round(between(a.link_bytes, b.link_bytes)),
        busy_s=between(a.busy_s, b.busy_s),
        own_s=between(a.own_s, b.own_s),
    )


def _peaks(samples: list[Mapping[str, float]]) -> dict[str, float]:
    return {
        role: max(s.get(role, 0.0) for s in samples)
        for role in sorted({r for sample in samples for r in sample})
    }
