"""What the dashboard tells people to type exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.main import get_command

from hansa.cli import app

DASHBOARD = Path(__file__).parents[2] / "governance" / "dashboard"
_COMMAND = re.compile(r"\bhansa ([a-z]+(?: [a-z][a-z-]*)?)")


def named() -> set[str]:
    """Every command that a page, an alert or an error of the dashboard names."""
    files = [*DASHBOARD.rglob("*.j2"), *DASHBOARD.rglob("*.py"), *DASHBOARD.glob("static/*.js")]
    return {found for file in files for found in _COMMAND.findall(file.read_text())}


@pytest.mark.parametrize("words", sorted(named()))
def test_a_command_that_is_named_exists(words: str) -> None:
    command = get_command(app)
    for word in words.split():
        commands = getattr(command, "commands", None)
        if commands is None:
            return  # an argument
        assert word in commands, f"there is no `hansa {words}`"
        command = commands[word]
