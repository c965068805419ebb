"""The public text that the charter's `[probe]` names: the same bytes at every site, or none at all."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from workers.data import CorpusError, Rows, spread_rows
from workers.encoder import BYTES, Encoder, Ids


@dataclass(frozen=True)
class Probe:
    bytes: NDArray[np.uint8]
    encoder: Encoder = BYTES

    @classmethod
    def load(cls, path: Path | None, *, digest: str, size: int, encoder: Encoder = BYTES) -> Probe:
        """Read the text and check it. Raises CorpusError when there is none, or it is another."""
        if path is None:
            raise CorpusError(
                f"the charter measures each round on a public text ({digest}, {size} bytes) and this site has none; "
                "its operator names it as `probe` under [site] and starts the site again"
            )
        try:
            found = path.read_bytes() if path.stat().st_size == size else b""
        except OSError as error:
            raise CorpusError(
                f"{path} cannot be read ({error.strerror}); let the site's user read it"
            ) from error
        if (have := f"sha256:{hashlib.sha256(found).hexdigest()}") != digest:
            what = have if found else f"of {path.stat().st_size} bytes"
            raise CorpusError(
                f"{path} is {what}, the charter's probe is {digest} of {size} bytes; its operator gets that file"
            )
        return cls(np.frombuffer(found, np.uint8), encoder)

    def parts(self, count: int) -> list[Probe]:
        """Pieces of equal length; what is left over of the last is not measured."""
        length = len(self.bytes) // count
        return [Probe(self.bytes[n * length : (n + 1) * length], self.encoder) for n in range(count)]

    def held_out_rows(self, *, length: int, limit: int) -> Rows:
        """At most `limit` windows of length + 1 tokens, evenly spread over the text.

        Raises CorpusError where it is shorter than one.
        """
        if len(tokens := self._tokens) <= length:
            raise CorpusError(
                f"a part of the probe has {len(tokens)} {self.encoder.unit}, a sequence takes {length + 1}"
            )
        return spread_rows(tokens, length=length, limit=limit)

    @cached_property
    def _tokens(self) -> Ids:
        return next(self.encoder.encode([self.bytes.tobytes()]))
