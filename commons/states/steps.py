"""Steps: a slice that is not here is built from the one before it and the encoded difference, far fewer bytes to fetch.

new = base + what the frames decode to, element by element in fp32; a step is right only if that is the slice's blob to
the last bit.
"""

from __future__ import annotations

from math import prod

import numpy as np

from commons.codec import CELL, FRAME, CodecError, add_frame, frame_bytes
from commons.errors import StoreError
from commons.states.manifest import Blob
from commons.states.reading import BlobReader
from commons.states.writing import BlobWriter


def take_step(blob: Blob, base: BlobReader, frames: BlobReader, new: BlobWriter) -> None:
    """Write what `blob` is into `new` and close that; four frames of memory. Raises StoreError when it is not that."""
    assert blob.step is not None, "a blob is advanced by its step"
    size, codec = prod(blob.shape), blob.step.codec
    values, scratch = np.empty(FRAME, np.float32), np.empty(CELL, np.float32)
    encoded = memoryview(bytearray(frame_bytes(codec, min(FRAME, size))))
    position = 0
    try:
        for first in range(0, size, FRAME):
            count = min(FRAME, size - first)
            data = encoded[: frame_bytes(codec, count)]
            frames.read_bytes(position, data)
            base.read_into(first, values[:count])
            add_frame(codec, data, count, 1.0, values, scratch)
            new.write(values[:count].view(np.uint8).data)
            position += len(data)
    except CodecError as error:
        raise StoreError(f"the step to blob {blob.digest} cannot be read: {error}") from error
    new.close(expected=blob.digest)
