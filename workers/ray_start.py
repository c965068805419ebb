"""How a site gets its Ray: an embedded one of its own, or the cluster its owner names, and never another.

Ray looks for clusters in environment variables and in its default temporary folder, and decides by itself whether
calls are authenticated. Here both are decided: a stranger's cluster is not joined, and calls carry a token, the
owner's (`RAY_AUTH_TOKEN`, `RAY_AUTH_TOKEN_PATH` or Ray's own file) or one made for this process. An owner who set
`RAY_AUTH_MODE` is obeyed. Ray reads the mode once, while it is imported: other modules take `ray` from here.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from math import ceil
from pathlib import Path
from types import FrameType

from commons.errors import Unreachable

if "RAY_AUTH_MODE" not in os.environ and "ray" not in sys.modules:
    os.environ["RAY_AUTH_MODE"] = "token"
    given = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    if not given and not (Path.home() / ".ray" / "auth_token").exists():
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import ray

__all__ = ["ADDRESS_VARIABLE", "Interrupted", "connected", "ray"]

log = logging.getLogger("hansa.site")

ADDRESS_VARIABLE = "HANSA_RAY_ADDRESS"
"""Overrides `[ray] address`; a site that runs as a Ray job is sent to the job's cluster by it."""


@contextlib.contextmanager
def connected(address: str, *, namespace: str, cpus: float, gpus: float) -> Iterator[None]:
    """Ray for the length of the `with` block: `local` starts one and stops it, `host:port` joins that cluster.

    `auto` is the cluster of the Ray job this process is the driver of. Actors are named within `namespace`, so that
    sites can share a cluster. Raises Unreachable naming the address when the cluster does not answer, Interrupted when
    SIGINT or SIGTERM arrive while it starts (their handlers have run).
    """
    address = os.environ.get(ADDRESS_VARIABLE, address)
    with contextlib.ExitStack() as started:
        with _interruptible():
            started.enter_context(
                _embedded(namespace, cpus, gpus) if address == "local" else _joined(address, namespace)
            )
        yield


class Interrupted(BaseException):
    """A signal arrived while Ray was starting. Not an Exception, so that Ray does not take it for its own."""


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Let SIGINT and SIGTERM break off the start of Ray, and undo that Ray puts its own handler in their place."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def interrupt(number: int, frame: FrameType | None) -> None:
        handler = before[signal.Signals(number)]
        if callable(handler):
            handler(number, frame)
        raise Interrupted

    for number in before:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _embedded(namespace: str, cpus: float, gpus: float) -> Iterator[None]:
    # A Unix socket's path is limited to 107 bytes, so the folder cannot lie in a site's home.
    folder = Path(tempfile.mkdtemp(prefix="hansa-ray-"))
    os.environ.pop("RAY_ADDRESS", None)
    log.info("starting an embedded Ray")
    try:
        ray.init(
            address="local",
            namespace=namespace,
            num_cpus=ceil(cpus),
            num_gpus=ceil(gpus),
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.WARNING,
            _temp_dir=str(folder),
        )
        yield
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _joined(address: str, namespace: str) -> Iterator[None]:
    log.info("joining the Ray cluster at %s", address)
    try:
        ray.init(address=address, namespace=namespace, log_to_driver=False, logging_level=logging.WARNING)
    except Exception as error:
        raise Unreachable(
            f"the Ray cluster at {address} did not take this site in ({type(error).__name__}: {error}); its operator "
            "should start it, or the site's operator correct [ray] address and RAY_AUTH_TOKEN"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()
