"""The safetensors format, read as a stream: a model of any size costs one block of memory.

The library maps the file, and mapped pages count as the process's memory. Layout: 8 bytes little-endian length of the
header, the header (JSON), data.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from commons.experts.map import ExpertMap
from commons.experts.stored import stored

HEADER_BYTES_MAX = 100 << 20
BLOCK_BYTES = 1 << 20
FLOATS = {"F32": 4, "BF16": 2, "F16": 2}
"""Types that a seed's tensors may have, and their bytes."""


@dataclass(frozen=True)
class Entry:
    """One tensor of a file."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    """Of its first byte in the file."""
    bytes: int


def read_header(path: Path) -> dict[str, Entry]:
    """The tensors of a file by name. Raises ValueError when it is no safetensors file or ends early, OSError."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(HEADER_BYTES_MAX, size):
            raise ValueError(f"{path.name} is no safetensors file")
        try:
            header = json.loads(file.read(length))
            tensors = {n: _entry(e, 8 + length) for n, e in header.items() if n != "__metadata__"}
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ValueError(f"{path.name} is no safetensors file: {error}") from error
    for name, entry in tensors.items():
        if entry.bytes < 0 or entry.offset + entry.bytes > size:
            raise ValueError(f"{path.name} ends before tensor {name} does")
        each = FLOATS.get(entry.dtype)
        if each and entry.bytes != each * prod(entry.shape):
            raise ValueError(f"{path.name} has {entry.bytes} bytes for {name}, not those of its shape")
    return tensors


def by_slice(tensors: Mapping[str, Entry], expert_map: ExpertMap) -> dict[str, Entry]:
    """The tensors by slice: a stack of all experts becomes one entry per expert; what is no such stack stays as it is.

    Raises ValueError when an expert is there twice, alone and in a stack.
    """
    found = dict(tensors)
    for tensor in stored(expert_map):
        entry = tensors.get(tensor.name)
        if tensor.slices[0].stack is None or entry is None or entry.shape != tensor.shape:
            continue
        del found[tensor.name]
        size = entry.bytes // len(tensor.slices)
        for number, part in enumerate(tensor.slices):
            if part.name in tensors:
                raise ValueError(f"{part.name} is there twice, alone and in {tensor.name}")
            found[part.name] = Entry(entry.dtype, part.shape, entry.offset + number * size, size)
    return found


def blocks(file: BinaryIO, entry: Entry) -> Iterator[bytes]:
    """The tensor's bytes in order. Raises ValueError when the file became shorter."""
    file.seek(entry.offset)
    for start in range(0, entry.bytes, BLOCK_BYTES):
        size = min(BLOCK_BYTES, entry.bytes - start)
        block = file.read(size)
        if len(block) != size:
            raise ValueError("the file ends early")
        yield block


def as_fp32(block: bytes, dtype: str) -> NDArray[np.float32]:
    """Values of one of `FLOATS`, each as the fp32 that is equal to it."""
    if dtype == "F16":
        return np.frombuffer(block, "<f2").astype(np.float32)
    if dtype == "BF16":
        return (np.frombuffer(block, "<u2").astype("<u4") << 16).view("<f4")
    return np.frombuffer(block, "<f4")


def _entry(entry: dict[str, Any], data: int) -> Entry:
    start, end = entry["data_offsets"]
    shape = tuple(entry["shape"])
    if not all(type(number) is int and number >= 0 for number in (start, end, *shape)):
        raise ValueError("a size is no whole number")
    return Entry(str(entry["dtype"]), shape, data + start, end - start)
