"""What one link carries with TLS: a bare Python socket, and the wire's own streams with the bytes dropped at their end.

Two processes on loopback move the same buffers one way. The sockets speak TLS 1.3 with AES-256-GCM; the streams are
gRPC's with the options of `commons.wire.channel`, mutual TLS, no serialisation, over one connection and over as many as
a site uses. `python -m benchmarks.dataplane_parts.streams --mb 1000` prints one `Streams` as JSON.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import socket
import ssl
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import grpc

from benchmarks import procfs
from commons.certificates import Subject, coordinator_name
from commons.identity import create_authority, csr, issue, tls_keypair
from commons.wire import channel

MESSAGE = 1 << 20
LINES = 2
NAME = "bench"
RUNS = 3
_METHODS = "bench.Bulk"


@dataclass(frozen=True)
class Carried:
    """The best of `RUNS`; 1 MB is 10^6 bytes."""

    mb_per_s: float
    cpu_ms_per_mb: float
    """Of both processes together."""


@dataclass(frozen=True)
class Streams:
    socket: Carried
    up: Carried
    """A site sends, over one connection."""
    down: Carried
    up_lines: Carried
    """Over two."""
    down_lines: Carried


@dataclass(frozen=True)
class _Keys:
    authority: bytes
    server_key: bytes
    server_certificate: bytes
    key: bytes
    certificate: bytes


def measure(mb: int = 1000) -> Streams:
    """Starts the receiving process, and ends it."""
    authority = create_authority(NAME)
    ends = []
    for subject in (Subject("coordinator"), Subject("operator")):
        key = tls_keypair()
        ends += [key, issue(authority, csr(key), subject, days=1)]
    keys = _Keys(authority.certificate, *ends)
    here, there = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_serve, args=(there, keys), daemon=True)
    process.start()
    plain, secure = here.recv()

    def best(move: Callable[[], float]) -> Carried:
        seconds, cpu = [], []
        for _ in range(RUNS):
            before = _cpu_s(process.pid)
            seconds.append(move())
            cpu.append(_cpu_s(process.pid) - before)
        return Carried(round(mb / min(seconds)), round(1000 * min(cpu) / mb, 2))

    try:
        return Streams(
            socket=best(lambda: _socket(plain, keys, mb)),
            up=best(lambda: _over(secure, keys, mb, 1, _up)),
            down=best(lambda: _over(secure, keys, mb, 1, _down)),
            up_lines=best(lambda: _over(secure, keys, mb, LINES, _up)),
            down_lines=best(lambda: _over(secure, keys, mb, LINES, _down)),
        )
    finally:
        process.terminate()
        process.join()


def _cpu_s(other: int | None) -> float:
    """CPU seconds of this process and the other so far."""
    assert other is not None, "the receiving process runs"
    ticks = sum(int(field) for field in procfs.stat(other)[11:13])
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def _socket(port: int, keys: _Keys, mb: int) -> float:
    """Seconds until the other side has said that everything came."""
    context = _context(ssl.PROTOCOL_TLS_CLIENT, keys)
    context.check_hostname = False
    buffer = memoryview(bytes(MESSAGE))
    with (
        socket.create_connection(("127.0.0.1", port)) as raw,
        context.wrap_socket(raw, server_hostname=coordinator_name(NAME)) as link,
    ):
        assert link.cipher() == ("TLS_AES_256_GCM_SHA384", "TLSv1.3", 256)
        left = mb * 10**6
        link.sendall(left.to_bytes(8, "big"))
        began = time.perf_counter()
        while left:
            part = buffer[: min(left, MESSAGE)]
            link.sendall(part)
            left -= len(part)
        assert link.recv(1) == b"."
        return time.perf_counter() - began


def _over(port: int, keys: _Keys, mb: int, lines: int, move: Callable[[grpc.Channel, int], None]) -> float:
    credentials = grpc.ssl_channel_credentials(keys.authority, keys.key, keys.certificate)
    options = [
        *channel.CHANNEL_OPTIONS,
        ("grpc.ssl_target_name_override", coordinator_name(NAME)),
        ("grpc.use_local_subchannel_pool", 1),
    ]
    opened = [grpc.secure_channel(f"127.0.0.1:{port}", credentials, options=options) for _ in range(lines)]
    try:
        for line in opened:
            grpc.channel_ready_future(line).result(timeout=20)
        with ThreadPoolExecutor(lines) as pool:
            began = time.perf_counter()
            for done in [pool.submit(move, line, mb * 10**6 // lines) for line in opened]:
                done.result()
            return time.perf_counter() - began
    finally:
        for line in opened:
            line.close()


def _up(line: grpc.Channel, size: int) -> None:
    def messages() -> Iterator[bytes]:
        buffer = bytes(MESSAGE)
        for at in range(0, size, MESSAGE):
            yield buffer if size - at >= MESSAGE else buffer[: size - at]

    [reply] = line.stream_stream(f"/{_METHODS}/Up", None, None)(messages())
    assert int.from_bytes(reply, "big") == size


def _down(line: grpc.Channel, size: int) -> None:
    came = sum(len(m) for m in line.unary_stream(f"/{_METHODS}/Down", None, None)(size.to_bytes(8, "big")))
    assert came == size


def _serve(parent: Connection, keys: _Keys) -> None:
    """The receiving process: a socket's port and gRPC's."""
    door = socket.create_server(("127.0.0.1", 0))
    server = grpc.server(ThreadPoolExecutor(8), options=channel.SERVER_OPTIONS)
    handlers = {
        "Up": grpc.stream_stream_rpc_method_handler(_taken, None, None),
        "Down": grpc.unary_stream_rpc_method_handler(_given, None, None),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_METHODS, handlers),))
    credentials = channel.server_credentials(
        tls_key=keys.server_key, certificate=keys.server_certificate, authority=keys.authority
    )
    secure = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    context = _context(ssl.PROTOCOL_TLS_SERVER, keys)
    parent.send((door.getsockname()[1], secure))
    buffer = bytearray(MESSAGE)
    while True:
        raw, _ = door.accept()
        with context.wrap_socket(raw, server_side=True) as link:
            left = int.from_bytes(link.recv(8), "big")
            while left:
                left -= link.recv_into(buffer)
            link.sendall(b".")


def _taken(messages: Iterator[bytes], _: grpc.ServicerContext) -> Iterator[bytes]:
    yield sum(len(message) for message in messages).to_bytes(8, "big")


def _given(request: bytes, _: grpc.ServicerContext) -> Iterator[bytes]:
    left, buffer = int.from_bytes(request, "big"), bytes(MESSAGE)
    while left:
        part = min(left, MESSAGE)
        yield buffer if part == MESSAGE else buffer[:part]
        left -= part


def _context(protocol: Any, keys: _Keys) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(cadata=keys.authority.decode())
    if protocol == ssl.PROTOCOL_TLS_SERVER:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "both.pem"
            file.write_bytes(keys.server_key + b"\n" + keys.server_certificate)
            context.load_cert_chain(file)
    return context


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mb", type=int, default=1000)
    print(json.dumps(asdict(measure(parser.parse_args().mb))))


if __name__ == "__main__":
    main()
