"""MLflow's own server as a process of its own, which can be killed and started again with all it had."""

from __future__ import annotations

import base64
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from hansa.demo.processes import QUIET, descendants, free_ports

PATIENCE_S = 120.0
LOGIN = ("admin", "of tests alone")
"""Of a new server with basic auth."""
_AUTH = """[mlflow]
default_permission = READ
database_uri = sqlite:///auth.db
admin_username = {}
admin_password = {}
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
auth_cache_ttl_seconds = 600
"""


@dataclass
class MlflowServer:
    """One worker on the loopback address. `store`: SQLAlchemy URL; empty: SQLite in the folder."""

    folder: Path
    store: str = ""
    auth: bool = False
    port: int = field(default_factory=lambda: free_ports(1)[0])
    _process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Returns at once; `wait` waits until it answers."""
        self.folder.mkdir(parents=True, exist_ok=True)
        store = self.store or f"sqlite:///{self.folder / 'mlflow.db'}"
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--backend-store-uri", store, "--artifacts-destination", str(self.folder / "artifacts")]
        command += ["--workers", "1", *(("--app-name", "basic-auth") if self.auth else ())]
        env = {**os.environ, **QUIET, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        env |= {"MLFLOW_FLASK_SERVER_SECRET_KEY": "of tests", "MLFLOW_AUTH_CONFIG_PATH": "auth.ini"}
        (self.folder / "auth.ini").write_text(_AUTH.format(*LOGIN))
        with (self.folder / "server.log").open("ab") as out:
            self._process = subprocess.Popen(
                command, cwd=self.folder, env=env, stdout=out, stderr=out, start_new_session=True
            )

    def wait(self) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not self._answers():
            assert self._process is not None, "it is started"
            assert self._process.poll() is None, self.log[-2000:]
            assert time.monotonic() < deadline, f"MLflow does not answer\n{self.log[-2000:]}"
            time.sleep(0.05)

    def kill(self) -> None:
        """kill -9, the server and its workers."""
        if self._process is None:
            return
        family = descendants([self._process.pid])
        self._process.kill()
        self._process.wait()
        for pid in family:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self._process = None

    @property
    def log(self) -> str:
        return (self.folder / "server.log").read_text(errors="replace")

    def _answers(self) -> bool:
        login = base64.b64encode(":".join(LOGIN).encode()).decode()
        asked = urllib.request.Request(
            f"{self.uri}/api/2.0/mlflow/experiments/get?experiment_id=0",
            headers={"Authorization": f"Basic {login}"},
        )
        try:
            with urllib.request.urlopen(asked, timeout=5) as answer:
                return bool(answer.status == 200)
        except (OSError, urllib.error.URLError):
            return False


@contextmanager
def running(folder: Path, store: str = "", *, auth: bool = False) -> Iterator[MlflowServer]:
    """A server that answers; killed at the end."""
    server = MlflowServer(folder, store, auth)
    server.start()
    try:
        server.wait()
        yield server
    finally:
        server.kill()
