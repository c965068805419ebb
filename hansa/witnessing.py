"""`hansa journal witness`: a witness for outsiders, C2SP tlog-witness over plain HTTP.

Owns the server and its bounds; what is cosigned `commons.witness` decides. Needs no secret from the log and gives
none: put a TLS proxy in front where the network is not trusted.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from collections.abc import Sequence
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from commons.clock import Clock, SystemClock
from commons.cosignature import Cosigner
from commons.errors import HansaError, StoreError
from commons.identity import load_signer, write_file
from commons.notes import digest
from commons.witness import REQUEST_BYTES_MAX, FileMemory, Witness, parse_request
from hansa.hosting import stop_signal
from hansa.journals import log_key
from hansa.output import line

BODY_S = 10.0
"""A client that takes longer to send its request is let go."""
CONNECTIONS_MAX = 128
REFUSED_KEPT = 16
"""Checkpoints that are kept as evidence; whoever sends wrong proofs on purpose cannot fill the disk."""
_logger = logging.getLogger("hansa.witness")


def application(witness: Witness, clock: Clock, evidence: Path) -> Starlette:
    """The HTTP side: one route, ``POST /add-checkpoint``, bodies of at most `REQUEST_BYTES_MAX`.

    Checkpoints the log signed but which do not extend its history are kept in the folder `evidence`.
    """

    async def add_checkpoint(request: Request) -> Response:
        try:
            body = await asyncio.wait_for(_body(request), BODY_S)
        except (asyncio.TimeoutError, ClientDisconnect):
            return _text(408, "the request did not arrive in time")
        if body is None:
            return _text(413, f"a request has at most {REQUEST_BYTES_MAX} bytes")
        try:
            now_s = clock.now_ms() // 1000
            status, kind, answer = await run_in_threadpool(witness.add_request, body, now_s)
            if status == 422:
                await run_in_threadpool(_keep, body, evidence)
        except StoreError as failed:
            _logger.error("nothing is cosigned: %s", failed)
            return _text(500, "this witness cannot remember what it cosigns; its operator must act")
        said = f"cosigned {_subject(body)}" if status == 200 else answer.decode().strip()[:300]
        _logger.log(logging.WARNING if status == 422 else logging.INFO, "%d %s", status, said)
        return Response(answer, status, headers={"Content-Type": kind})

    return Starlette(routes=[Route("/add-checkpoint", add_checkpoint, methods=["POST"])])


def serve_witness(key: Path, logs: Sequence[str], *, listen: str, memory: Path, as_json: bool) -> None:
    """Cosign until SIGINT or SIGTERM. Raises HansaError naming what is in the way."""
    cosigner = Cosigner(load_signer(key))
    watched = [log_key(text) for text in logs]
    witness = Witness(cosigner, watched, FileMemory(memory))
    for log in watched:
        witness.size(log.name)  # a damaged memory is found now, not at the first request
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    _logger.setLevel(logging.INFO)
    config = uvicorn.Config(
        application(witness, SystemClock(), memory),
        log_config=None,
        access_log=False,
        lifespan="off",
        server_header=False,
        limit_concurrency=CONNECTIONS_MAX,
    )
    server = uvicorn.Server(config)
    with _bound(listen) as bound, stop_signal() as stop:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, name="witness", daemon=True)
        thread.start()
        _announce(cosigner, [log.name for log in watched], _url(bound), as_json=as_json)
        while not stop.wait(0.5):
            if not thread.is_alive():
                raise HansaError("the witness's HTTP server stopped; its log says why")
        server.should_exit = True
        thread.join()
    if as_json:
        line({"witness": cosigner.name, "state": "stopped"})


async def _body(request: Request) -> bytes | None:
    """The whole body; None as soon as it is too long."""
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > REQUEST_BYTES_MAX:
            return None
    return body


def _subject(body: bytes) -> str:
    """Of a request that was granted: log and size."""
    origin, size, _ = body.partition(b"\n\n")[2].decode().split("\n", 2)
    return f"{origin} at size {size}"


def _keep(body: bytes, folder: Path) -> None:
    note = parse_request(body)[2]
    path = folder / f"refused-{digest(note).removeprefix('sha256:')[:32]}.note"
    if len(list(folder.glob("refused-*.note"))) < REFUSED_KEPT:
        write_file(path, note)


def _bound(listen: str) -> socket.socket:
    host, _, port = listen.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65_535:
        raise HansaError(f"{listen!r} is no HOST:PORT to listen on")
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host.strip("[]"), int(port)), family=family, backlog=CONNECTIONS_MAX)
    except OSError as failed:
        raise HansaError(
            f"cannot listen on {listen}: {failed.strerror or failed}; choose another --listen"
        ) from failed


def _url(bound: socket.socket) -> str:
    host, port = bound.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def _announce(cosigner: Cosigner, logs: Sequence[str], url: str, *, as_json: bool) -> None:
    if as_json:
        line(
            {
                "state": "ready",
                "witness": cosigner.name,
                "vkey": cosigner.vkey,
                "url": url,
                "logs": list(logs),
            }
        )
        return
    print(f"Witness {cosigner.name} for {', '.join(logs)}: logs post to {url}/add-checkpoint")
    print(f"Its key, for policies and charters: {cosigner.vkey}")
    print("Ctrl-C stops; started again, it remembers what it cosigned.", flush=True)


def _text(status: int, said: str) -> Response:
    return Response(f"{said}\n", status, headers={"Content-Type": "text/plain; charset=utf-8"})
