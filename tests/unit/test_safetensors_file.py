"""Reading a model file as a stream: what is no safetensors file is named, and costs no memory."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from orchestrator.safetensors_file import BLOCK_BYTES, blocks, read_header


def test_a_file_is_read_as_the_library_wrote_it(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    tensors = {"a": np.arange(BLOCK_BYTES // 4 + 3, dtype=np.float32), "b": np.ones((2, 3), np.float32)}
    save_file(tensors, path, metadata={"format": "pt"})
    header = read_header(path)
    assert {n: (e.dtype, e.shape) for n, e in header.items()} == {
        n: ("F32", a.shape) for n, a in tensors.items()
    }
    with path.open("rb") as file:
        for name, array in tensors.items():
            assert b"".join(blocks(file, header[name])) == array.tobytes()


def written(path: Path, header: object, data: bytes = bytes(8)) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (b"{", "no safetensors"),
        ([1], "no safetensors"),
        ({"a": 1}, "no safetensors"),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0]}}, "no safetensors"),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]}}, "no whole number"),
        ({"a": {"dtype": "F32", "shape": [2.0], "data_offsets": [0, 8]}}, "no whole number"),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}}, "before tensor a"),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 2**62]}}, "before tensor a"),
        ({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}, "not those of its shape"),
        ({"a": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 8]}}, "not those of its shape"),
        (b"[" * 100_000, "no safetensors"),
    ],
)
def test_a_header_that_lies_is_refused(tmp_path: Path, header: object, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        read_header(written(tmp_path / "m.safetensors", header))


def test_a_length_beyond_the_file_is_not_believed(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes((2**63).to_bytes(8, "little"))
    with pytest.raises(ValueError, match="no safetensors"):
        read_header(path)
