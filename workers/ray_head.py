"""Ray's own processes on this machine, as few as training needs, and who may talk to them.

Ray decides by itself whether calls are authenticated. Here it is decided: they carry a token, the owner's
(`RAY_AUTH_TOKEN`, `RAY_AUTH_TOKEN_PATH` or Ray's own file) or one made for this process. An owner who set `RAY_AUTH_MODE`
is obeyed. Ray reads the mode once, while it is imported: other modules take `ray` from here.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
from collections.abc import Iterator
from pathlib import Path

if "RAY_AUTH_MODE" not in os.environ and "ray" not in sys.modules:
    os.environ["RAY_AUTH_MODE"] = "token"
    given = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    if not given and not (Path.home() / ".ray" / "auth_token").exists():
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import ray
from ray._private.node import Node
from ray._private.parameter import RayParams

__all__ = ["head", "ray"]


@contextlib.contextmanager
def head(folder: Path, cpus: int, gpus: int, *, object_store_bytes: int | None = None) -> Iterator[str]:
    """A Ray of its own on this machine for the length of the `with` block; its address, which nobody is told but who asks.

    Without what nobody looks at here: `ray.init` would start a dashboard's server, an autoscaler and a forwarder of logs
    beside it, 2 CPU seconds and 300 MB more. Its processes end with the thread that started them. Raises what Ray raises.
    """
    parameters = RayParams(
        num_cpus=cpus, num_gpus=gpus, object_store_memory=object_store_bytes, temp_dir=str(folder),
        no_monitor=True, include_log_monitor=False,
        _system_config={"prestart_worker_first_driver": False},  # one actor, and not as many as there are CPUs
    )  # fmt: skip
    node = _Head(parameters, head=True, shutdown_at_exit=False, spawn_reaper=True)
    try:
        yield node.gcs_address
    finally:
        node.kill_all_processes(check_alive=False, allow_graceful=True)


class _Head(Node):  # type: ignore[misc]
    def start_api_server(self, **_: object) -> None:
        """Not started."""
