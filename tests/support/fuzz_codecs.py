"""What a frame from outside can do: decode to finite values that encode again, or be refused; nothing else.

`python -m tests.support.fuzz_codecs EXECUTIONS [SEED]` counts them, and what they took of memory.
"""

from __future__ import annotations

import resource
import sys
import time
from typing import get_args

import numpy as np

from commons.codec import (
    CELL,
    FRAME,
    LARGEST,
    CodecError,
    add_frame,
    check_frame,
    decode_frame,
    encode_frame,
    frame_bytes,
)
from commons.learning import Codec

CODECS: tuple[Codec, ...] = get_args(Codec)
_OUT, _TOTAL, _SCRATCH = (np.empty(size, np.float32) for size in (FRAME, FRAME, CELL))


def one(data: bytes) -> bool:
    """The first bytes choose codec and count, the rest is the frame; true when it was taken. A fuzzer's target."""
    if len(data) < 4:
        return False
    codec = CODECS[data[0] % len(CODECS)]
    count = int.from_bytes(data[1:3], "little") % (FRAME + 1)
    body = data[4:]
    if data[3] % 4:
        # most often the length is right, else nothing behind it would ever be reached
        count %= 700
        length = frame_bytes(codec, count)
        body = (body * (length // max(1, len(body)) + 1))[:length].ljust(length, b"\0")
    return taken(codec, body, count)


def one_damaged(seed: int) -> bool:
    """An honest frame with a few bytes changed."""
    random = np.random.default_rng(seed)
    codec = CODECS[random.integers(len(CODECS))]
    count = int(random.choice([1, 2, 63, 65, 300, 4096, 4160, 9001]))
    values = random.standard_normal(count).astype(np.float32) * np.float32(10.0 ** random.integers(-30, 30))
    values[random.random(count) < random.choice([0, 0.5, 1])] = 0
    frame = bytearray(encode_frame(codec, values))
    for _ in range(random.integers(0, 4)):
        frame[random.integers(len(frame))] = random.integers(256)
    return taken(codec, bytes(frame), count)


def taken(codec: Codec, frame: bytes, count: int) -> bool:
    """Whether it decodes. Asserts that all ways in agree on that, and what may be relied on when it does."""
    try:
        values = decode_frame(codec, frame, count, _OUT)
    except CodecError:
        try:
            check_frame(codec, frame, count)
        except CodecError:
            return False
        raise AssertionError(f"{codec} frame of {count} elements is refused by decoding alone") from None
    assert np.isfinite(values).all() and not (np.abs(values) > LARGEST).any()
    exact = float(np.sum(np.square(values, dtype=np.float64)))
    assert abs(check_frame(codec, frame, count) - exact) <= 1e-5 * exact
    _TOTAL[:count] = 0
    add_frame(codec, frame, count, 1.0, _TOTAL, _SCRATCH)
    assert np.array_equal(_TOTAL[:count], values)
    again = encode_frame(codec, values)
    # Another encoder may have chosen other scales; a float is written in one way only.
    assert again == frame or codec not in ("fp32", "bf16")
    return True


def main() -> None:
    executions = int(sys.argv[1])
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    random = np.random.default_rng(seed)
    began, took, before = time.monotonic(), 0, 0
    for number in range(executions):
        took += (
            one_damaged(int(random.integers(2**63)))
            if number % 2
            else one(random.bytes(random.integers(4, 200)))
        )
        if number == executions // 10:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(f"{executions} executions, {took} taken, {time.monotonic() - began:.0f} s, memory grew {grown} KiB")


if __name__ == "__main__":
    main()
