"""The demo's own Ray: one small head that all sites join, each in a namespace of its own.

Run as a process: `python -m hansa.demo.ray_head FOLDER CPUS`. Writes `FOLDER/address` and stays until it is told to
stop. The folder is temporary and belongs to whoever started it (a short path: Unix sockets allow 107 bytes). It
never looks for another cluster; only who has the `RAY_AUTH_TOKEN` of its environment can join it.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

from workers.ray_head import head

ADDRESS = "address"
OBJECT_STORE_BYTES = 256 * 2**20


def main(arguments: list[str]) -> None:
    """Start, announce, wait, stop."""
    folder, cpus = Path(arguments[0]), int(arguments[1])
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    os.environ.pop("RAY_ADDRESS", None)
    with head(folder, cpus, 0, object_store_bytes=OBJECT_STORE_BYTES) as address:
        draft = folder / "address.draft"
        draft.write_text(address)
        draft.replace(folder / ADDRESS)
        stopped.wait()


if __name__ == "__main__":
    main(sys.argv[1:])
