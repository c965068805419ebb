"""A seed that failed is the last thing said, with the command that replays it alone."""

from __future__ import annotations

import re

import pytest

_SEED = re.compile(r"\[seed-(\d+)\]$")


def pytest_unconfigure(config: pytest.Config) -> None:
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if not isinstance(reporter, pytest.TerminalReporter):  # a process of pytest-xdist says nothing
        return
    failed = {report.nodeid for kind in ("failed", "error") for report in reporter.stats.get(kind, ())}
    for seed in sorted(int(found[1]) for nodeid in failed if (found := _SEED.search(nodeid))):
        reporter.write_line(f"seed {seed} failed; replay it: make simulate SEED={seed}", red=True)
