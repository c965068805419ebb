"""How fast one core encodes, checks, decodes and adds frames, next to copying the same bytes.

`python -m benchmarks.dataplane_parts.codecs [MB [SECONDS]]` prints the table.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import get_args

import numpy as np

from commons.codec import CELL, FRAME, add_frame, check_frame, decode_frame, encode_frame
from commons.learning import Codec

OPERATIONS = ("encode", "decode", "check", "add")


def measure(mb: int = 400, seconds: float = 1.0) -> dict[str, dict[str, float]]:
    """Per codec the rate of each operation and the bytes of an element; under `copy` what numpy copies.

    Rates are 10^9 bytes of fp32 per second of the thread's own CPU time, the best of the passes over `mb` megabytes
    that begin within `seconds`, two at least. The normal numbers are of one seed, 10^-3 large, drawn once.
    """
    frames = max(1, mb * 1_000_000 // (4 * FRAME))
    values = np.random.default_rng(0).standard_normal((frames, FRAME), dtype=np.float32) * np.float32(1e-3)
    total, scratch, out = np.zeros_like(values), np.empty(CELL, np.float32), np.empty(FRAME, np.float32)
    found = {"copy": {"copy": _best(lambda: np.copyto(total, values), values.nbytes, seconds)}}
    for codec in get_args(Codec):
        found[codec] = _of(codec, values, total, scratch, out, seconds)
    return found


def _of(
    codec: Codec,
    values: np.ndarray[tuple[int, int], np.dtype[np.float32]],
    total: np.ndarray[tuple[int, int], np.dtype[np.float32]],
    scratch: np.ndarray[tuple[int], np.dtype[np.float32]],
    out: np.ndarray[tuple[int], np.dtype[np.float32]],
    seconds: float,
) -> dict[str, float]:
    encoded: list[bytes | memoryview] = []

    def encode() -> None:
        for row in values:
            encode_frame(codec, row)

    def decode() -> None:
        for frame in encoded:
            decode_frame(codec, frame, FRAME, out)

    def check() -> None:
        for frame in encoded:
            check_frame(codec, frame, FRAME)

    def add() -> None:
        for frame, row in zip(encoded, total, strict=True):
            add_frame(codec, frame, FRAME, 0.25, row, scratch)

    found = {"encode": _best(encode, values.nbytes, seconds)}
    encoded = [encode_frame(codec, row) for row in values]
    for name, work in (("decode", decode), ("check", check), ("add", add)):
        found[name] = _best(work, values.nbytes, seconds)
    found["bytes_per_element"] = len(encoded[0]) / FRAME
    return found


def _best(work: Callable[[], object], size: int, seconds: float) -> float:
    end, best = time.monotonic() + seconds, float("inf")
    passes = 0
    while passes < 2 or time.monotonic() < end:
        began = time.thread_time()
        work()
        best = min(best, time.thread_time() - began)
        passes += 1
    return size / best / 1e9


def main() -> None:
    mb = int(sys.argv[1]) if len(sys.argv) > 1 else 400
    found = measure(mb, float(sys.argv[2]) if len(sys.argv) > 2 else 1.0)
    print(f"copy {found.pop('copy')['copy']:6.2f} GB/s")
    print(f"{'':6}", *(f"{name:>7}" for name in OPERATIONS), "  bytes an element")
    for codec, rates in found.items():
        print(
            f"{codec:6}",
            *(f"{rates[name]:7.2f}" for name in OPERATIONS),
            f"  {rates['bytes_per_element']:.5f}",
        )


if __name__ == "__main__":
    main()
