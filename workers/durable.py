"""One file that is either the old one or the new one: arrays and facts, written whole or not at all.

safetensors with the facts as JSON in its header. No pickle: reading a file never runs anything.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save

Array = NDArray[np.float32]


def write_durably(path: Path, arrays: Mapping[str, Array], facts: Mapping[str, Any]) -> None:
    """Replace `path` atomically; on return it survives a power cut. On failure the old file stands."""
    content = save(dict(arrays), metadata={"facts": json.dumps(facts, sort_keys=True)})
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read_facts(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="numpy") as file:
        facts: dict[str, Any] = json.loads(file.metadata()["facts"])
    return facts


def read_arrays(path: Path, under: str = "") -> dict[str, Array]:
    """Those whose names begin with `under`, without it."""
    with safe_open(path, framework="numpy") as file:
        names = [name for name in file.keys() if name.startswith(under)]  # noqa: SIM118 (not a mapping)
        return {name.removeprefix(under): file.get_tensor(name) for name in names}
