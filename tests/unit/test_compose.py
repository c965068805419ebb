"""docker-compose.yml is checked against the Compose specification's schema; no engine is needed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "docker-compose.yml"


def schema_check(path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(path)],
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_compose_file_follows_the_specification() -> None:
    done = schema_check(COMPOSE)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_check_would_notice_a_wrong_key(tmp_path: Path) -> None:
    broken = tmp_path / "docker-compose.yml"
    broken.write_text(COMPOSE.read_text().replace("depends_on:", "dependson:"))
    assert schema_check(broken).returncode != 0


def services() -> dict[str, dict[str, object]]:
    return dict(yaml.safe_load(COMPOSE.read_text())["services"])


def test_it_runs_every_role() -> None:
    names = set(services())
    assert {"coordinator", "dashboard", "mlflow", "postgres"} <= names
    assert len([n for n in names if n.startswith("site-")]) == 3


@pytest.mark.parametrize(
    "name", sorted(n for n, s in services().items() if "build" in s and "entrypoint" not in s)
)
def test_every_command_it_starts_exists(name: str) -> None:
    command = services()[name].get("command")
    assert isinstance(command, list)
    words = [str(w) for w in command]
    verb = words[: next((i for i, w in enumerate(words) if w.startswith(("-", "/"))), len(words))]
    done = subprocess.run(
        [sys.executable, "-m", "hansa", *verb, "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for option in (w.split("=")[0] for w in words if w.startswith("--")):
        assert option in done.stdout, f"`hansa {' '.join(verb)}` has no {option}"
