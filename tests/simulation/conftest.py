"""A seed that failed is said once more at the end, with the command that replays it alone."""

from __future__ import annotations

import re

import pytest

_SEED = re.compile(r"\[seed-(\d+)\]$")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    failed = {
        report.nodeid for kind in ("failed", "error") for report in terminalreporter.stats.get(kind, ())
    }
    for seed in sorted(int(found[1]) for nodeid in failed if (found := _SEED.search(nodeid))):
        terminalreporter.write_line(f"seed {seed} failed; replay it: make simulate SEED={seed}", red=True)
