"""What a codec dropped in one round, on disk, for the next round to add (error feedback).

A raw fp32 file beside an index of names: written and read frame by frame, so that it costs no memory whatever the
model's size. Belongs to a sealed round; knows nothing of codecs.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from commons.codec import FRAME
from commons.experts.map import ExpertMap, Kind
from commons.experts.remaking import elements_before, name_before
from commons.experts.slices import Slice
from commons.notes import digest_file

Array = NDArray[np.float32]
_VALUES, _INDEX = "residual.bin", "residual.json"


class ResidualWriter:
    """Writes into a folder; nothing is there unless something was added."""

    def __init__(self, folder: Path, *, expert_map: ExpertMap, noised: bool = False) -> None:
        self._folder, self._map, self._noised = folder, expert_map, noised
        self._index: dict[str, tuple[int, int]] = {}
        self._size, self._digest = 0, hashlib.sha256()
        self._file = (folder / _VALUES).open("wb")

    def add(self, name: str, values: Array) -> None:
        """The next values of slice `name`; all of one slice come one after another."""
        first, count = self._index.get(name, (self._size, 0))
        data = np.ascontiguousarray(values, "<f4").data
        self._digest.update(data)
        self._file.write(data)
        self._index[name] = (first, count + values.size)
        self._size += values.size

    def carry(self, residual: Residual, part: Slice) -> None:
        """What is left over of a slice that was not sent stays left over."""
        for first in range(0, part.size, FRAME):
            values = residual.read(part.name, first, min(FRAME, part.size - first))
            if values is not None:
                self.add(part.name, values)

    def close(self) -> None:
        self._file.close()
        if self._index:
            found = {"sha256": self._digest.hexdigest(), "slices": self._index, "noised": self._noised}
            found["experts"] = self._map.experts
            (self._folder / _INDEX).write_text(json.dumps(found, sort_keys=True))
        else:
            (self._folder / _VALUES).unlink()


class Residual:
    """What the round sealed in `folder` left over, as of the experts in `expert_map`; nothing when there is no such file."""

    def __init__(self, folder: Path | None, expert_map: ExpertMap) -> None:
        index = folder / _INDEX if folder else None
        found = json.loads(index.read_text()) if index and index.exists() else {"slices": {}}
        self.noised: bool = found.get("noised", False)
        """Whether it is of values that the noise was added to, so that it tells no more of the text than they did."""
        self._index: dict[str, tuple[int, int]] = found["slices"]
        self._values = folder / _VALUES if folder else None
        self._map, self._before = expert_map, tuple(found.get("experts", expert_map.experts))
        self._routers = {p.name: p for p in expert_map.slices if p.kind is Kind.ROUTER}

    def read(self, name: str, first: int, count: int) -> Array | None:
        """Elements of one slice from `first` on; None when nothing is left over in it, or it had another size."""
        moved, part = self._before != self._map.experts, self._routers.get(name)
        old = name_before(name, self._before, self._map) if moved else name
        start, size = self._index.get(old or "", (0, 0))
        if moved and part is not None and size:
            at = elements_before(part, self._before, self._map, first, count)
            whole = self._elements(start, size)
            return None if whole is None else np.where(at < 0, np.float32(0), whole[at])
        return None if first + count > size else self._elements(start + first, count)

    def _elements(self, first: int, count: int) -> Array | None:
        if self._values is None:
            return None
        return np.fromfile(self._values, "<f4", count, offset=4 * first).astype(np.float32, copy=False)

    def __len__(self) -> int:
        return len(self._index)


def residual_is_whole(folder: Path) -> bool:
    """Whether what a round left over is in `folder` as it was written, or nothing is."""
    try:
        if not (folder / _INDEX).exists():
            return not (folder / _VALUES).exists()
        said = json.loads((folder / _INDEX).read_text())["sha256"]
        return digest_file(folder / _VALUES) == f"sha256:{said}"
    except (OSError, ValueError, KeyError):
        return False
