"""What a long journal costs the coordinator that starts on it."""

from __future__ import annotations

import time
from pathlib import Path

from benchmarks.ledger_parts.settle import Till
from governance.bell import Bell
from orchestrator.progress import Runs


def replay_s(url: str | Path) -> float:
    """Seconds until a coordinator knows everything: journal opened, every record read, checked and folded into all views."""
    began = time.perf_counter()
    till = Till(url)
    till.consortium.follow(Runs(), Bell(), Bell())
    taken = time.perf_counter() - began
    till.close()
    return taken
