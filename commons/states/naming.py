"""What a blob of a model state is called: BLAKE3 of its bytes.

Gigabytes are hashed in every round, at both ends. BLAKE3 takes a third of SHA-256's time there (`docs/decisions/
0008-data-plane.md`); whatever people sign or publish keeps SHA-256.
"""

from __future__ import annotations

import re
from pathlib import Path

from blake3 import blake3

from commons.names import Digest

_PREFIX = "blake3:"
DIGEST = re.compile(rf"{_PREFIX}[0-9a-f]{{64}}")
_PIECE_BYTES = 1 << 20


def named(hashed: blake3) -> Digest:
    """The name of a blob all of whose bytes were hashed."""
    return Digest(_PREFIX + hashed.hexdigest())


def name_of(data: bytes) -> Digest:
    return named(blake3(data))


def name_of_file(path: Path) -> Digest:
    """Read in pieces of 1 MiB. Raises OSError."""
    hashed = blake3()
    with path.open("rb") as file:
        while piece := file.read(_PIECE_BYTES):
            hashed.update(piece)
    return named(hashed)


def file_name(digest: Digest) -> str:
    """Under which a blob lies in its folder. Raises ValueError for a text that names no blob."""
    if not DIGEST.fullmatch(digest):
        raise ValueError(f"not a digest of a blob: {digest[:80]!r}")
    return digest.removeprefix(_PREFIX)


def from_file_name(name: str) -> Digest:
    """Back from `file_name`; of a foreign file, what is no digest."""
    return Digest(_PREFIX + name)
