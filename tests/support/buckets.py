"""A server that speaks S3, in a process of its own, behind a proxy that a test can cut."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.support.tcp_proxy import TcpProxy

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "tester",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
}


class Buckets:
    """Buckets of a moto server: they are lost when it is killed, kept when only the proxy (`relay`) is cut."""

    def __init__(self, **environment: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = free.getsockname()[1]
            self.relay = TcpProxy(f"127.0.0.1:{self._port}")  # it is not to find the same port free
        self._environment = os.environ | CREDENTIALS | environment
        self.start()

    @property
    def environment(self) -> dict[str, str]:
        """By which programs find it."""
        return CREDENTIALS | {"AWS_ENDPOINT_URL": f"http://{self.relay.address}"}

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


@contextmanager
def serving(**environment: str) -> Iterator[Buckets]:
    buckets = Buckets(**environment)
    try:
        yield buckets
    finally:
        buckets.close()
