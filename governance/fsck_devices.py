"""The auditor's reading of devices: no time of one device is stated twice."""

from __future__ import annotations

from commons.work import UsageNote
from governance.fsck_findings import Findings, Rule

_MONTH_MS = 30 * 86_400_000


class Devices:
    """What usage records have claimed of each device's time."""

    def __init__(self, findings: Findings) -> None:
        self._findings = findings
        self._claimed: dict[str, list[tuple[int, int, int]]] = {}
        """Device -> (started_ms, ended_ms, index) of its usage."""

    def use(self, index: int, usage: UsageNote) -> None:
        """Record `index` states this usage. Older journals name no devices."""
        if usage.device_ids == "-" or usage.started_ms == usage.ended_ms:
            return
        start, end = usage.started_ms, usage.ended_ms
        for device in usage.device_ids.split(","):
            claimed = self._claimed.get(device, [])
            twice = [at for begun, ended, at in claimed if start < ended and begun < end]
            what = f"states time of device {device[:64]} that record {twice[:1]} states too"
            self._findings.require(not twice, Rule.USAGE, index, what)
            recent = [claim for claim in claimed if claim[1] > start - _MONTH_MS]
            self._claimed[device] = [*recent, (start, end, index)]
