"""What a long journal costs whoever opens it: starting the coordinator on it, and checking all of it."""

from __future__ import annotations

import time
from pathlib import Path

from benchmarks.ledger_parts.settle import Till
from governance.journal import open_readonly


def replay_s(url: str | Path) -> float:
    """Seconds until a coordinator knows everything: journal opened, every record read, checked and folded."""
    began = time.perf_counter()
    till = Till(url)
    taken = time.perf_counter() - began
    till.close()
    return taken


def verify_s(url: str | Path) -> float:
    """Seconds to read and hash everything again, as `hansa journal verify` does. The journal must be in order."""
    reader = open_readonly(url)
    began = time.perf_counter()
    problems = reader.verify()
    taken = time.perf_counter() - began
    reader.close()
    assert problems == [], problems
    return taken
