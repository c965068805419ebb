"""An MLflow that is made once, and a home whose MLflow shows a whole story."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from governance.tracking.checking import rebuild
from tests.support.mirrored import mirror_all, tell, uri
from tests.support.story import Story


@pytest.fixture(scope="session")
def first_words(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A migrated, empty MLflow database (making one takes seconds) and all that was printed meanwhile."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    program = (
        "import logging, os; logging.basicConfig(level=logging.INFO)\n"
        "from governance.tracking.mlflow_store import MlflowClient\n"
        f"MlflowClient('sqlite:///{path}').search_experiments()\n"
        "assert os.environ['MLFLOW_DISABLE_TELEMETRY'] == 'true'\n"
        "assert not logging.getLogger('orchestrator').disabled\n"
    )
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    return path, done.stdout + done.stderr


@pytest.fixture
def empty_mlflow(first_words: tuple[Path, str]) -> Path:
    return first_words[0]


@pytest.fixture
def home(tmp_path: Path, empty_mlflow: Path) -> Path:
    shutil.copy(empty_mlflow, tmp_path / "mlflow.db")
    return tmp_path


@pytest.fixture
def story(tmp_path: Path) -> Iterator[Story]:
    told, _ = tell(tmp_path)
    yield told
    told.consortium.journal.close()


@pytest.fixture(scope="session")
def told(tmp_path_factory: pytest.TempPathFactory, first_words: tuple[Path, str]) -> tuple[Path, int]:
    """A home whose MLflow shows the whole story, and the time of its last record."""
    home = tmp_path_factory.mktemp("told")
    shutil.copy(first_words[0], home / "mlflow.db")
    story, clock = tell(home)
    story.tell()
    mirror_all(story.consortium, home)
    story.consortium.journal.close()
    return home, clock.ms


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory, first_words: tuple[Path, str]) -> Path:
    """A home whose MLflow shows the story, two releases that were voted for one after the other, and a closed month."""
    home = tmp_path_factory.mktemp("published")
    shutil.copy(first_words[0], home / "mlflow.db")
    story, clock = tell(home)
    story.tell()
    story.vote_to_release(story.release(1))
    story.vote_to_release(story.release(2))
    clock.ms += 31 * 86_400_000
    story.close_books()
    mirror_all(story.consortium, home)
    story.consortium.journal.close()
    return home


@pytest.fixture
def copied(published: Path, home: Path) -> Path:
    """The same journal with an MLflow of its own, to be tampered with."""
    for name in ("journal.db", "log.key"):
        shutil.copy(published / name, home / name)
    rebuild(home, "", uri(home), lambda *_: None)
    return home
