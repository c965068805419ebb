"""A server that speaks S3, in a process of its own, behind a relay that a test can cut."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "tester",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
}


class Buckets:
    """Buckets of a moto server: they are lost when it is killed, kept when only the relay is cut."""

    def __init__(self, **environment: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = free.getsockname()[1]
        self._environment = os.environ | CREDENTIALS | environment
        self.relay = Relay(self._port)
        self.start()

    @property
    def environment(self) -> dict[str, str]:
        """By which programs find it."""
        return CREDENTIALS | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.relay.port}"}

    def start(self) -> None:
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self._port)]
        quiet = subprocess.DEVNULL
        self._process = subprocess.Popen(command, env=self._environment, stdout=quiet, stderr=quiet)
        until = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self._port}/moto-api/").close()
                return
            except OSError:
                assert time.monotonic() < until and self._process.poll() is None, (
                    "the S3 server does not start"
                )
                time.sleep(0.02)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def client(self) -> Any:
        """Of boto3, past the relay."""
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=f"http://127.0.0.1:{self._port}",
            region_name="us-east-1",
            aws_access_key_id="tester",
            aws_secret_access_key="secret",
        )

    def create(self, bucket: str) -> str:
        """A new bucket's URL."""
        self.client().create_bucket(Bucket=bucket)
        return f"s3://{bucket}"

    def keys(self, bucket: str) -> set[str]:
        return {found["Key"] for found in self.client().list_objects_v2(Bucket=bucket).get("Contents", [])}

    def close(self) -> None:
        self.kill()
        self.relay.close()


class Relay:
    """Carries TCP connections to a port of this machine."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._door = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._door.getsockname()[1]
        self._lock = threading.Lock()
        self._ends: set[socket.socket] = set()
        self._down = False
        self._due: tuple[int, Callable[[], object]] | None = None
        self.refused = 0
        """Connections that came while it was down."""
        threading.Thread(target=self._accept, daemon=True).start()

    def down(self) -> None:
        """Every connection ends now, every new one at once."""
        with self._lock:
            self._down = True
            ends, self._ends = self._ends, set()
        for end in ends:
            _end(end)

    def up(self) -> None:
        with self._lock:
            self._down = False

    def after(self, count: int, action: Callable[[], object]) -> None:
        """Once, when so many more bytes came from callers; they wait meanwhile."""
        with self._lock:
            self._due = count, action

    def close(self) -> None:
        self._door.close()
        self.down()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._door.accept()
                threading.Thread(target=self._serve, args=(near,), daemon=True).start()

    def _serve(self, near: socket.socket) -> None:
        try:
            far = socket.create_connection(("127.0.0.1", self._target))
        except OSError:
            _end(near)
            return
        with self._lock:
            self.refused += self._down
            welcome = not self._down
            if welcome:
                self._ends |= {near, far}
        if welcome:
            threading.Thread(target=self._carry, args=(far, near, False), daemon=True).start()
            self._carry(near, far, True)
        _end(near)
        _end(far)

    def _carry(self, source: socket.socket, to: socket.socket, up: bool) -> None:
        with suppress(OSError):
            while piece := source.recv(1 << 16):
                if up:
                    self._count(len(piece))
                to.sendall(piece)
        _end(to)

    def _count(self, count: int) -> None:
        with self._lock:
            action = None
            if self._due is not None:
                left, action = self._due[0] - count, self._due[1]
                self._due = None if left <= 0 else (left, action)
                action = action if left <= 0 else None
        if action is not None:
            action()


@contextmanager
def serving(**environment: str) -> Iterator[Buckets]:
    buckets = Buckets(**environment)
    try:
        yield buckets
    finally:
        buckets.close()


def _end(end: socket.socket) -> None:
    with suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    end.close()
