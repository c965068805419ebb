"""An update whose payload is in memory."""

from __future__ import annotations

from dataclasses import dataclass

from commons.updates import UpdateManifest


@dataclass(frozen=True)
class UpdateInMemory:
    manifest: UpdateManifest
    payload: bytes

    def read_into(self, offset: int, buffer: memoryview) -> None:
        buffer[:] = self.payload[offset : offset + len(buffer)]
