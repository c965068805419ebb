"""One slice being read: any part of it, into the caller's memory, without mapping or holding the whole of it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from blake3 import blake3
from typing_extensions import Self

from commons.errors import StoreError
from commons.names import Digest
from commons.states.drafts import BLOCK_BYTES
from commons.states.manifest import FP32, Blob, Tensor
from commons.states.naming import named
from commons.states.place import Source


class BlobReader:
    """Made by `StateStore.open`; for one thread at a time.

    What is read in order is vouched for once its end was reached: only then is it known to be right. Whoever reads out
    of order has the whole blob checked first.
    """

    def __init__(
        self,
        source: Source,
        blob: Blob,
        *,
        check: bool,
        vouched: Callable[[], bool],
        right: Callable[[], None],
        damaged: Callable[[str], StoreError],
    ) -> None:
        """`check`: in-order reads are checked although somebody vouches. `right` is told of a blob found to be so,
        `damaged` of one that is not."""
        self._source, self._blob, self._vouched = source, blob, vouched
        self._right, self._damaged = right, damaged
        self._hash = None if not check and vouched() else blake3()
        self._hashed = 0
        if source.size != blob.bytes:
            source.close()
            raise damaged(f"it has {source.size} bytes, not {blob.bytes}")

    def read_into(self, first_element: int, out: Tensor) -> None:
        """Fill `out` (fp32, contiguous) with the slice's elements from `first_element` in C order.

        Raises StoreError when the blob is damaged.
        """
        assert out.dtype == FP32 and out.flags.c_contiguous, "blobs are read into contiguous fp32"
        self.read_bytes(first_element * FP32.itemsize, out.reshape(-1).view(np.uint8).data)

    def read_bytes(self, at: int, view: memoryview) -> None:
        """Fill `view` (one dimension, format B) with the blob's bytes from `at`. Raises as `read_into`."""
        assert at >= 0 and at + len(view) <= self._blob.bytes, "only what the blob has is read"
        if self._hash is not None and at != self._hashed:
            self.check()
        if self._hash is None:
            self._fill(at, view)
            return
        for start in range(0, len(view), BLOCK_BYTES):
            block = view[start : start + BLOCK_BYTES]
            self._fill(at + start, block)
            self._hash.update(block)
        self._hashed += len(view)
        if self._hashed == self._blob.bytes:
            self._compare(named(self._hash))

    def check(self) -> None:
        """Have the whole blob checked, unless this process has done so before. Raises StoreError when it is damaged."""
        if not self._vouched():
            total, block = blake3(), memoryview(bytearray(BLOCK_BYTES))
            for at in range(0, self._blob.bytes, BLOCK_BYTES):
                part = block[: self._blob.bytes - at]
                self._fill(at, part)
                total.update(part)
            self._compare(named(total))
        self._hash = None

    def close(self) -> None:
        self._source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()

    def _fill(self, at: int, out: memoryview) -> None:
        count = self._source.read_into(at, out)
        if count != len(out):
            raise self._damaged(f"it ends after {at + count} bytes of {self._blob.bytes}")

    def _compare(self, found: Digest) -> None:
        if found != self._blob.digest:
            raise self._damaged(f"its digest is {found}")
        self._hash = None
        self._right()
