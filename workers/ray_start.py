"""How a site gets its Ray: an embedded one of its own, or the cluster its owner names, and never another.

Ray looks for clusters in environment variables and in its default temporary folder: here a stranger's cluster is not
joined. Which processes an embedded one has, and who may call them, is `workers.ray_head`'s.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from math import ceil
from pathlib import Path
from typing import NamedTuple

from commons.errors import Unreachable
from workers.ray_head import head, ray
from workers.training import Interrupted

__all__ = ["ADDRESS_VARIABLE", "connected", "ray"]

log = logging.getLogger("hansa.site")

ADDRESS_VARIABLE = "HANSA_RAY_ADDRESS"
"""Overrides `[ray] address`; a site that runs as a Ray job is sent to the job's cluster by it. An absolute path names a file
that holds the address once the cluster is up, so that both can be started together."""
STARTS_MAX = 3
"""Now and then a Ray beside another one on its machine does not get its raylet up in the 30 s it gives itself."""
LEAVE_S = 2.0
"""How long Ray may take to end by itself."""
_LOOK_S = 0.05


@contextlib.contextmanager
def connected(
    address: str, *, namespace: str, cpus: float, gpus: float, stop: threading.Event
) -> Iterator[None]:
    """Ray for the length of the `with` block: `local` starts one and ends it, `host:port` joins that cluster.

    `auto` is the cluster of the Ray job this process is the driver of. Actors are named within `namespace`, so that
    sites can share a cluster. Raises Unreachable naming the address when the cluster does not answer, Interrupted
    as soon as `stop` is set while it starts. Leaving takes at most `LEAVE_S` and leaves no process behind.
    """
    address = _told(os.environ.get(ADDRESS_VARIABLE, address), stop)
    # A Unix socket's path is limited to 107 bytes, so the folder cannot lie in a site's home.
    folder = Path(tempfile.mkdtemp(prefix="hansa-ray-")) if address == "local" else None
    ray_of = _embedded(folder, namespace, cpus, gpus) if folder else _joined(address, namespace)
    ready, leave, failed = threading.Event(), threading.Event(), list[Exception]()

    def hold() -> None:
        """Ray's processes die with the thread that started them, and a start in the main thread takes its signals."""
        try:
            with ray_of:
                ready.set()
                leave.wait()
        except Exception as error:  # noqa: BLE001 (raised again by who waits)
            failed.append(error)
            ready.set()

    foreign, holder = _below(), threading.Thread(target=hold, name="ray", daemon=True)
    holder.start()
    try:
        while not ready.wait(_LOOK_S):
            if stop.is_set():
                raise Interrupted
        if failed:
            raise failed[0]
        _take_signals_back()
        yield
    finally:
        own = _below() - foreign
        leave.set()
        if ready.is_set():
            holder.join(LEAVE_S)
        for process in own:
            if _process(process.pid) == process:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGKILL)
        if folder:
            shutil.rmtree(folder, ignore_errors=True)


def _told(address: str, stop: threading.Event) -> str:
    """The address itself, or what its file says once somebody has written it."""
    if not address.startswith("/"):
        return address
    file = Path(address)
    while not file.exists():
        if stop.wait(_LOOK_S):
            raise Interrupted
    return file.read_text()


def _take_signals_back() -> None:
    """Put this process's handlers in again: Ray's core has put its own, which prints a stack trace, beneath them."""
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.getsignal(number))


@contextlib.contextmanager
def _embedded(folder: Path, namespace: str, cpus: float, gpus: float) -> Iterator[None]:
    os.environ.pop("RAY_ADDRESS", None)
    log.info("starting an embedded Ray")
    with contextlib.ExitStack() as stack:
        for attempt in range(1, STARTS_MAX + 1):
            try:
                address = stack.enter_context(head(folder / str(attempt), ceil(cpus), ceil(gpus)))
                ray.init(
                    address=address, namespace=namespace, log_to_driver=False, logging_level=logging.ERROR
                )
                stack.callback(ray.shutdown)
                break
            except Exception as error:
                ray.shutdown()
                if attempt == STARTS_MAX:
                    raise Unreachable(
                        f"an embedded Ray did not start in {attempt} attempts ({type(error).__name__}: {error}); "
                        "the site's operator gives it more memory and CPU, or names a cluster in [ray] address"
                    ) from error
                log.warning("an embedded Ray did not start (%s); trying again", error)
        yield


@contextlib.contextmanager
def _joined(address: str, namespace: str) -> Iterator[None]:
    log.info("joining the Ray cluster at %s", address)
    try:
        ray.init(address=address, namespace=namespace, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:
        raise Unreachable(
            f"the Ray cluster at {address} did not take this site in ({type(error).__name__}: {error}); its operator "
            "should start it, or the site's operator correct [ray] address and RAY_AUTH_TOKEN"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


class _Process(NamedTuple):
    pid: int
    started: int
    """In clock ticks since boot: with it a process id that is used again is another process."""


def _below() -> set[_Process]:
    """This process's descendants, as Linux shows them; none elsewhere, where Ray must clean up by itself."""
    children: dict[int, list[_Process]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        if found := _process(int(entry.name)):
            children.setdefault(_parent(found.pid), []).append(found)
    below: set[_Process] = set()
    ahead = [os.getpid()]
    while ahead:
        born = children.get(ahead.pop(), [])
        below |= set(born)
        ahead += [process.pid for process in born]
    return below


def _process(pid: int) -> _Process | None:
    fields = _stat(pid)
    return _Process(pid, int(fields[19])) if fields else None


def _parent(pid: int) -> int:
    fields = _stat(pid)
    return int(fields[1]) if fields else 0


def _stat(pid: int) -> list[str]:
    """Fields 3 and following of /proc/PID/stat; empty for a process that is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
