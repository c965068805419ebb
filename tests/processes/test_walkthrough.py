"""The commands of docs/getting-started.md, run as they are written there, in their order, in an empty folder."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "getting-started.md"
STAYS = "sh stays"
"""A block that goes on in a terminal of its own."""
READY = {"coordinator": "Ctrl-C stops", "site": "connected to the coordinator"}


def blocks() -> list[tuple[bool, list[str]]]:
    """(stays, commands) of every shell block."""
    found = re.findall(r"^```(sh[^\n]*)\n(.*?)^```", DOCUMENT.read_text(), re.DOTALL | re.MULTILINE)
    return [(kind == STAYS, body.strip().splitlines()) for kind, body in found]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[tuple[dict[str, str], ExitStack]]:
    """An environment in which `hansa` is on the path, and what to stop at the end."""
    command = tmp_path / "bin" / "hansa"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" -m hansa "$@"\n')
    command.chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{command.parent}:{os.environ['PATH']}",
        "HANSA_LISTEN": f"127.0.0.1:{free_port()}",
        "HANSA_ENROLMENT": f"127.0.0.1:{free_port()}",
        "OMP_NUM_THREADS": "1",
    }
    with ExitStack() as stack:
        yield environment, stack


def stay(command: str, log: Path, folder: Path, environment: dict[str, str], stack: ExitStack) -> None:
    """Start it, and wait until it says that it is ready."""
    with log.open("w") as out:
        process = subprocess.Popen(
            ["/bin/sh", "-c", f"exec {command}"], cwd=folder, env=environment, stdout=out, stderr=out,
            start_new_session=True,
        )  # fmt: skip
    stack.callback(_stop, process)
    ready = next(text for name, text in READY.items() if f"hansa {name} start" in command)
    deadline = time.monotonic() + 90
    while ready not in log.read_text():
        assert process.poll() is None, f"{command} ended:\n{log.read_text()}"
        assert time.monotonic() < deadline, f"{command} is not ready:\n{log.read_text()}"
        time.sleep(0.1)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGINT)
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(5)


@pytest.mark.slow
@pytest.mark.ray
def test_getting_started_works_as_written(tmp_path: Path, terminal: tuple[dict[str, str], ExitStack]) -> None:
    environment, stack = terminal
    folder = tmp_path / "consortium"
    folder.mkdir()
    said: dict[str, str] = {}
    for stays, commands in blocks():
        for command in commands:
            if stays:
                stay(command, tmp_path / f"{len(said)}.log", folder, environment, stack)
                continue
            done = subprocess.run(
                ["/bin/sh", "-c", command], cwd=folder, env=environment, capture_output=True, text=True,
                timeout=200, check=False,
            )  # fmt: skip
            assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
            said[command] = done.stdout
    at = {name: next(out for c, out in said.items() if c.startswith(f"hansa {name}")) for name in
          ("run watch", "proposal show", "budget show", "release verify", "journal verify")}  # fmt: skip
    assert "is finished" in at["run watch"]
    assert "in force since round 2" in at["proposal show"]
    assert at["budget show"].count("settled") == 6
    assert "valid" in at["release verify"]
    assert "intact" in at["journal verify"]


def test_every_command_in_the_document_exists() -> None:
    from typer.main import get_command

    from hansa.cli import app

    known = get_command(app)
    for _, commands in blocks():
        for command in commands:
            name, group, action, *_ = command.split()
            assert name == "hansa"
            assert action in known.commands[group].commands, command  # type: ignore[attr-defined]
