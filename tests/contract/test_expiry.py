"""The coordinator's clerk: what expires while nothing else happens is in the books by itself, also after a restart."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from commons.records import Kind
from orchestrator.coordinator import NO_MLFLOW, Coordinator
from tests.support.consortium import charter, found


@dataclass
class Hands:
    """A clock set by hand; it begins now."""

    at_ms: int

    def now_ms(self) -> int:
        return self.at_ms


def transfers(coordinator: Coordinator, kind: str) -> list[dict[str, Any]]:
    found = (dict(r.facts) for r in coordinator.desk.consortium.journal.records() if r.kind is Kind.TRANSFER)
    return [f for f in found if f["type"] == kind]


def lost(coordinator: Coordinator, count: int) -> list[dict[str, Any]]:
    """The breakages, once there are that many."""
    until = time.monotonic() + 20
    while len(transfers(coordinator, "breakage")) < count:
        assert time.monotonic() < until, "what expired was not booked"
        time.sleep(0.01)
    return transfers(coordinator, "breakage")


def test_a_grant_that_expires_is_booked_by_the_clerk(tmp_path: Path) -> None:
    clock = Hands(time.time_ns() // 1_000_000)
    grants = tuple(
        {"name": name, "member": "alder", "amount": 7, "expires_ms": clock.at_ms + after_ms}
        for name, after_ms in (("soon", 500), ("late", 3_600_000))
    )
    home = found(tmp_path, charter(grants=grants))

    def started() -> Coordinator:
        coordinator = Coordinator(home, "127.0.0.1:0", mlflow=NO_MLFLOW, clock=clock)
        coordinator.start()
        return coordinator

    coordinator = started()
    try:
        assert transfers(coordinator, "breakage") == []
        clock.at_ms += 500
        assert [b["grant"] for b in lost(coordinator, 1)] == ["grant/soon"]
    finally:
        coordinator.stop()
    clock.at_ms += 3_600_000
    coordinator = started()
    try:
        assert [(b["grant"], b["amount_micro"]) for b in lost(coordinator, 2)][1] == ("grant/late", 7)
        assert coordinator.desk.consortium.ledger.available_micro("alder") == 1_000_000
    finally:
        coordinator.stop()
