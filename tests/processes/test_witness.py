"""A witness as its operator runs it: a process that speaks HTTP, is stopped, killed, and remembers."""

from __future__ import annotations

import http.client
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from commons import merkle
from commons.cosignature import Cosignatory, cosignature
from commons.identity import save_signer
from commons.log import Checkpoint
from commons.notes import Signer
from commons.witness import REQUEST_BYTES_MAX, request_text

LOG = Signer("demo", b"\x05" * 32)
NODES: dict[tuple[int, int], bytes] = {}
CHECKPOINTS: list[bytes] = []
_frontier = merkle.Frontier()
for _n in range(30):
    CHECKPOINTS.append(Checkpoint("demo", _n, _frontier.root()).sign(LOG))
    NODES.update({(level, i): h for level, i, h in _frontier.append(merkle.leaf_hash(b"%d" % _n))})


def request(old: int, new: int) -> bytes:
    return request_text(
        old, merkle.consistency_proof(old, new, lambda level, i: NODES[level, i]), CHECKPOINTS[new]
    )


class Running:
    def __init__(self, process: subprocess.Popen[str], facts: dict[str, Any]) -> None:
        self.process = process
        self.facts = facts
        self.address = urlsplit(facts["url"]).netloc
        self.cosignatory = Cosignatory.from_vkey(facts["vkey"])

    def post(
        self, body: bytes, *, path: str = "/add-checkpoint", method: str = "POST"
    ) -> tuple[int, str, bytes]:
        connection = http.client.HTTPConnection(self.address, timeout=30)
        try:
            connection.request(method, path, body)
            answer = connection.getresponse()
            return answer.status, answer.headers.get("content-type", ""), answer.read()
        finally:
            connection.close()

    def cosigns(self, old: int, new: int) -> bool:
        status, _, body = self.post(request(old, new))
        if status != 200:
            return False
        text = CHECKPOINTS[new].decode().partition("\n\n")[0] + "\n"
        return abs(cosignature(body.decode(), text, self.cosignatory) - time.time()) < 600

    def stop(self, number: int) -> int:
        self.process.send_signal(number)
        return self.process.wait(timeout=60)


@contextmanager
def witness(folder: Path) -> Iterator[Running]:
    if not (folder / "w1.key").exists():
        save_signer(folder / "w1.key", Signer.generate("w1"))
        (folder / "demo.pub").write_text(LOG.vkey + "\n")
    command = [sys.executable, "-m", "hansa", "journal", "witness", "--key", "w1.key", "--log", "demo.pub",
               "--listen", "127.0.0.1:0", "--memory", "memory", "--json"]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    try:
        ready, _, _ = select.select([process.stdout], [], [], 60)
        assert ready, "the witness did not say that it is ready"
        yield Running(process, json.loads(process.stdout.readline()))
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_witness_answers_over_http_and_remembers_over_a_stop_and_a_kill(tmp_path: Path) -> None:
    with witness(tmp_path) as running:
        assert (running.facts["witness"], running.facts["logs"]) == ("w1", ["demo"])
        assert running.cosigns(0, 5)
        assert running.cosigns(5, 9)
        assert running.post(request(5, 9))[:2] == (409, "text/x.tlog.size")
        assert running.stop(signal.SIGINT) == 0
        assert '"stopped"' in running.process.stdout.read()  # type: ignore[union-attr]
    with witness(tmp_path) as running:
        assert running.post(request(0, 12)) == (409, "text/x.tlog.size", b"9\n")
        assert running.cosigns(9, 12)
        assert running.stop(signal.SIGKILL) == -signal.SIGKILL
    with witness(tmp_path) as running:
        assert running.cosigns(12, 29)
        assert running.stop(signal.SIGTERM) == 0


def test_what_is_no_request_costs_the_witness_nothing(tmp_path: Path) -> None:
    with witness(tmp_path) as running:
        assert running.cosigns(0, 5)
        forked = Checkpoint("demo", 5, b"x" * 32).sign(LOG)
        for body, status in [
            (b"", 400),
            (b"rubbish", 400),
            (request(5, 9).replace(b"\n", b"\r\n"), 400),
            (request_text(5, [], Checkpoint("memo", 9, b"x" * 32).sign(Signer("memo", b"\x05" * 32))), 404),
            (request_text(5, [], Checkpoint("demo", 9, b"x" * 32).sign(Signer("demo", b"\x06" * 32))), 403),
            (request_text(5, [b"x" * 32], CHECKPOINTS[9]), 422),
            (request_text(5, [], forked), 422),
            (b"old 5\n" + b"x" * REQUEST_BYTES_MAX, 413),
        ]:
            assert running.post(body)[0] == status, body[:60]
        kept = {path.read_bytes() for path in (tmp_path / "memory").glob("refused-*.note")}
        assert kept == {forked, CHECKPOINTS[9]}, "what the log signed and was not cosigned is evidence"
        assert running.post(request(5, 9), path="/")[0] == 404
        assert running.post(b"", method="GET")[0] == 405
        assert running.cosigns(5, 9)


def test_a_body_without_end_is_cut_off(tmp_path: Path) -> None:
    with witness(tmp_path) as running:
        host, _, port = running.address.rpartition(":")
        with socket.create_connection((host, int(port)), timeout=30) as connection:
            connection.sendall(
                b"POST /add-checkpoint HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
            )
            chunk = b"1000\r\n" + b"x" * 0x1000 + b"\r\n"
            sent = 0
            while sent < 1000 and not select.select([connection], [], [], 0)[0]:
                try:
                    connection.sendall(chunk)
                except (BrokenPipeError, ConnectionResetError):
                    break
                sent += 1
            assert sent < 1000, "four megabytes were taken"
        assert running.cosigns(0, 5)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--key", "missing.key"), "missing.key does not exist"),
        (("--log", "rubbish+x"), "no log key"),
        (("--listen", "nowhere"), "no HOST:PORT"),
        (("--listen", "256.0.0.1:1"), "cannot listen"),
        (("--memory", "damaged"), "restore it from a copy"),
    ],
)
def test_what_is_in_the_way_of_a_witness_is_said(
    tmp_path: Path, arguments: tuple[str, str], said: str
) -> None:
    save_signer(tmp_path / "w1.key", Signer.generate("w1"))
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / f"{sha256(b'demo').hexdigest()[:32]}.checkpoint").write_bytes(b"")
    given = {"--key": "w1.key", "--log": LOG.vkey, "--listen": "127.0.0.1:0", **dict([arguments])}
    command = [
        sys.executable,
        "-m",
        "hansa",
        "journal",
        "witness",
        *(word for pair in given.items() for word in pair),
    ]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode in (1, 5), done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
