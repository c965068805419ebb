"""Sites that only witness and verify, over their real link, and an outsider as its operator runs it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn

from commons.chain import VerifiedCharter
from commons.clock import SystemClock
from commons.cosignature import Cosigner
from commons.errors import Refusal
from commons.identity import Seat
from commons.notes import Verifier
from commons.states import StateStore
from commons.witness import FileMemory, Witness
from hansa.witnessing import application
from tests.support.consortium import signer
from workers.link import Link
from workers.policy import Policy
from workers.spending import Spending
from workers.status import Status
from workers.verify import Verification
from workers.witness import SiteWitness


class Watcher:
    """A site without training. `close` and make it anew in the same home: a site that was killed and came back."""

    def __init__(self, seat: Seat, home: Path, *, cosigns: bool = True) -> None:
        self.name = f"{seat.subject.partner}/{seat.subject.site}"
        self.stop = threading.Event()
        self.link = Link(seat, Status(), StateStore(home / "model"), parts=home / "parts", stop=self.stop)
        self.witness = SiteWitness(signer(self.name), seat.log_verifier, home, SystemClock())
        self._verification = Verification(
            seat, Policy(), home / "verified.json", SystemClock(), Spending(home / "privacy.json", None)
        )
        if cosigns:
            self.link.witness(self.witness)

    def verify(self) -> VerifiedCharter | Refusal:
        return self._verification.charter(self.link.chain)

    def close(self) -> None:
        self.stop.set()
        self.link.close()


@contextmanager
def outsider(name: str, log: Verifier, memory: Path, port: int = 0) -> Iterator[tuple[str, str, Witness]]:
    """`hansa journal witness` in a thread: (vkey, url, the witness)."""
    cosigner = Cosigner(signer(name))
    witness = Witness(cosigner, [log], FileMemory(memory))
    config = uvicorn.Config(
        application(witness, SystemClock(), memory),
        port=port,
        log_config=None,
        access_log=False,
        lifespan="off",
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    eventually(lambda: server.started)
    try:
        bound = server.servers[0].sockets[0].getsockname()[1]
        yield cosigner.vkey, f"http://127.0.0.1:{bound}", witness
    finally:
        server.should_exit = True
        thread.join(10)


def eventually(holds: Callable[[], object], timeout_s: float = 15.0) -> None:
    until = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < until, "it did not become so"
        time.sleep(0.01)
