"""What a round took at this site: the facts that its usage record states, and the promise that no two overlap.

Owns one small file, in which the end of this site's last usage record outlives its process. The measuring itself is
`workers.gauge`, beside the device. Knows nothing of prices; those are the charter's.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from commons.errors import HansaError
from commons.identity import write_file


@dataclass(frozen=True)
class Usage:
    """What the devices did for one round, in the process that finished it: what a killed one had done is not charged."""

    started_ms: int
    """Unix ms, never before the end of the site's last record."""
    ended_ms: int
    device_ms: int
    """Summed over the devices."""
    device_ids: tuple[str, ...]
    precision: str
    energy_j: int | None = None
    """Where the device tells."""


class Meter:
    """The end of this site's last usage record, kept in `path`. A file of no use is as none."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def ended_ms(self) -> int:
        """Before this, Unix ms, no new record may begin, whatever the clock says; 0 before the first."""
        return int(self._kept().get("ended_ms", 0))

    def take(self, run: str, round_number: int, usage: Usage) -> None:
        """`usage` is about to be stated for that round; durable on return. The same again changes nothing.

        Raises HansaError when it begins before the last record ended (a result of an older round, brought back from
        a backup), StoreError when the disk refuses.
        """
        stated = {
            "run": run,
            "round": round_number,
            "started_ms": usage.started_ms,
            "ended_ms": usage.ended_ms,
        }
        kept = self._kept()
        if stated == kept:
            return
        if usage.started_ms < (ended_ms := int(kept.get("ended_ms", 0))):
            raise HansaError(
                f"round {round_number} of run {run} was trained from {usage.started_ms}, before this site's last usage "
                f"record ended ({ended_ms}): its result came from a backup; the site's operator removes "
                f"rounds/{run}/round-{round_number:06d}.safetensors in its home, and the round is trained again"
            )
        write_file(self._path, json.dumps(stated).encode())

    def _kept(self) -> dict[str, Any]:
        try:
            kept = json.loads(self._path.read_bytes())
            return kept if isinstance(kept, dict) and isinstance(kept.get("ended_ms"), int) else {}
        except (OSError, ValueError):
            return {}
