"""A part in a process of its own: what it takes of memory and CPU is then its own, and nothing of it is left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.figures import ROOT


class PartFailed(RuntimeError):
    """The message ends with the last lines it wrote."""


def measured_apart(module: str, *arguments: object) -> Any:
    """What `python -m benchmarks.dataplane_parts.MODULE ARGUMENTS` says in its last line, which is JSON.

    Raises PartFailed.
    """
    command = [sys.executable, "-m", f"benchmarks.dataplane_parts.{module}", *map(str, arguments)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise PartFailed(f"{' '.join(command[2:])} ended with {done.returncode}:\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def lacks_room(folder: Path, bytes_needed: int) -> str:
    """Empty when the disk has room for so many bytes; else a sentence that says what it has."""
    folder.mkdir(parents=True, exist_ok=True)
    disk = os.statvfs(folder)
    free = disk.f_bavail * disk.f_frsize
    if free >= bytes_needed:
        return ""
    return f"not measured: needs {bytes_needed / 1e9:.0f} GB of disk, {free / 1e9:.0f} GB are free"
