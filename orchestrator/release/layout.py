"""What a release folder holds; its weights are written and read as a stream, and never whole in memory."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import BinaryIO

import numpy as np
from blake3 import blake3

from commons.experts.map import ExpertMap
from commons.experts.stored import Stored
from commons.names import Digest
from commons.states import FP32, Blob, StateStore
from commons.states.naming import named
from orchestrator.safetensors_file import BLOCK_BYTES, blocks, by_slice, read_header

MANIFEST = "MANIFEST.json"
STATE = "state.json"
"""The model state's own manifest, whose SHA-256 names it: digest and shape of every slice."""
NOTE, RECORD, PROOF = "release.note", "release.record", "release.tlog-proof"
CHARTER, FOUNDING = "charter.json", "founding"
SEED = "seed"
"""Folder of the model that the run began from, where the charter has it released beside the one it came to."""
UNLISTED = frozenset({MANIFEST, NOTE, RECORD, PROOF})
"""Files that the manifest cannot list, as they are made from it."""
NOTE_KIND = "hansa-release/v1"
NOTE_KEYS = ("consortium", "run", "round", "state", "manifest", "licence")


def write_tensors(
    path: Path, store: StateStore, tensors: Sequence[Stored], slices: Mapping[str, Blob]
) -> None:
    """Write a state's slices as one safetensors file of `tensors`, each checked on the way. Durable on return."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position = 0
    for tensor in tensors:
        end = position + prod(tensor.shape) * FP32.itemsize
        header[tensor.name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors:
            for part in tensor.slices:
                _copy(store, slices[part.name], file)
        file.flush()
        os.fsync(file.fileno())


def _copy(store: StateStore, blob: Blob, file: BinaryIO) -> None:
    size = prod(blob.shape)
    block = np.empty(BLOCK_BYTES // FP32.itemsize, np.float32)
    with store.open(blob) as reader:
        for first in range(0, size, block.size):
            part = block[: size - first]
            reader.read_into(first, part)
            file.write(part.data)


def slices_in(path: Path, expert_map: ExpertMap) -> dict[str, tuple[Digest, tuple[int, ...]]]:
    """Digest and shape of every slice of a safetensors file. Raises ValueError when one is not in fp32."""
    found = {}
    with path.open("rb") as file:
        for name, entry in sorted(by_slice(read_header(path), expert_map).items()):
            if entry.dtype != "F32":
                raise ValueError(f"{name} is {entry.dtype}, not F32")
            total = blake3()
            for block in blocks(file, entry):
                total.update(block)
            found[name] = named(total), entry.shape
    return found
