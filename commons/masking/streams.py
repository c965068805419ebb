"""Masks: keystreams that are added to the words of a frame, and taken away from their sum.

AES-256-CTR. The counter of a frame begins at (slice, frame, 0), so any frame can be masked or unmasked by itself, in
any order, and a frame's 2^16 cipher blocks never reach the next one's. Adding uniform words modulo 2^32 hides a word
perfectly; the keystream's bytes are used as they come, none is drawn again and none is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR

from commons.codec import FRAME
from commons.masking.ring import Words

_BLOCK_BYTES = 1 << 18
"""Keystream made at a time: large enough for the cipher, small enough for the cache (6.6 GB/s with the addition)."""
_ZEROS = bytes(_BLOCK_BYTES)
_COUNT_MAX = 2**32


@dataclass(frozen=True)
class Stream:
    """One mask: its key, and whether it is added or taken away."""

    key: bytes
    """32 bytes."""
    added: bool

    def __repr__(self) -> str:
        return f"Stream(added={self.added})"


class _Streams:
    """Several masks and one buffer. Cheap to make; not to be used from two threads at a time."""

    def __init__(self, streams: Sequence[Stream]) -> None:
        self._ciphers = [(Cipher(AES(s.key), CTR(bytes(16))).encryptor(), s.added) for s in streams]
        self._buffer = bytearray(_BLOCK_BYTES)
        self._stream = np.frombuffer(self._buffer, "<u4")

    def __len__(self) -> int:
        return len(self._ciphers)

    def frame(self, words: Words, slice_index: int, frame: int) -> None:
        """Apply all masks of this frame of this slice to `words` in place.

        `words`: 1-D, contiguous, as many as the frame has elements, at most FRAME. Slices count from 0 in order of
        name, frames from 0 within their slice. Costs one pass of AES and one addition for each mask.
        """
        assert 0 < words.size <= FRAME, f"a frame has 1 to {FRAME} elements, not {words.size}"
        assert 0 <= slice_index < _COUNT_MAX and 0 <= frame < _COUNT_MAX, "slice and frame are 32-bit numbers"
        start = slice_index.to_bytes(4, "big") + frame.to_bytes(4, "big") + bytes(8)
        for cipher, added in self._ciphers:
            cipher.reset_nonce(start)
            for first in range(0, words.size, _BLOCK_BYTES // 4):
                part = words[first : first + _BLOCK_BYTES // 4]
                cipher.update_into(memoryview(_ZEROS)[: part.nbytes], self._buffer)
                stream = self._stream[: part.size]
                (np.add if added else np.subtract)(part, stream, out=part)


class Keystream(_Streams):
    """Uniform words from one key, for what a site draws from a secret of its own."""

    def __init__(self, key: bytes) -> None:
        """`key`: 32 bytes."""
        super().__init__([Stream(key, added=True)])

    def fill(self, words: Words, slice_index: int, frame: int) -> None:
        """Write this frame's words over `words`; what `frame` says of its arguments holds."""
        words.fill(0)
        self.frame(words, slice_index, frame)


class Masker(_Streams):
    """A site's masks: its own, and one with every peer that it masks with."""


class Unmasker(_Streams):
    """What is left in the sum of the survivors' words: their own masks, and those they share with the dropped."""
