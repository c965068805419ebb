"""How long a new record waits until five sites have cosigned a checkpoint over it and the journal has published that.

A real coordinator and five real links with their witnesses, in one process: gRPC with mutual TLS over loopback, each
witness's fsync and the journal's. Nothing is trained.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from commons import charter_file
from commons.charter import Charter
from commons.clock import SystemClock
from commons.identity import Seat, load_signer, write_file
from commons.log import Checkpoint
from commons.notes import parse
from commons.records import Kind, Record, canonical_json, fact
from commons.states import StateStore
from hansa.charters import sign_charter, site_entry, template
from hansa.joining import SITE_KEY, join_as_site
from hansa.keys import new_key, read_public
from orchestrator.coordinator import NO_MLFLOW, Coordinator
from workers.link import Link
from workers.status import Status
from workers.witness import SiteWitness

SITES = 5
_CONSORTIUM = "grove"
_PARTNERS = ("alder", "birch", "cedar", "dogwood", "elm")
_WAIT_S = 30.0


def measure_witnesses(checkpoints: int = 20) -> float:
    """Seconds from the append to the published checkpoint that all five cosigned: the slowest of `checkpoints`.

    Each record is appended as soon as the one before is witnessed, so that the pause between two checkpoints counts.
    Raises TimeoutError when a checkpoint finds no quorum in thirty seconds.
    """
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        coordinator = stack.enter_context(_coordinator(Path(folder)))
        for partner in _PARTNERS:
            stack.enter_context(_witness(Path(folder) / partner, coordinator))
        _wait_published(coordinator)
        slowest = 0.0
        for number in range(checkpoints):
            began = time.perf_counter()
            coordinator.desk.consortium.commit(lambda now_ms, n=number: [_idle(now_ms, n)])  # type: ignore[misc]
            _wait_published(coordinator)
            slowest = max(slowest, time.perf_counter() - began)
        return slowest


@contextmanager
def _coordinator(folder: Path) -> Iterator[Coordinator]:
    """Founded by five partners with a site each, whose charter asks for all five witnesses."""
    keys, home = folder / "keys", folder / "home"
    for name in (_CONSORTIUM, *_PARTNERS):
        new_key(name, keys)
    vkeys = {n: read_public(keys / f"{n}.key").vkey for n in (_CONSORTIUM, *_PARTNERS)}
    document = template(
        consortium=_CONSORTIUM,
        log_key=vkeys[_CONSORTIUM],
        members=[{"name": p, "key": vkeys[p], "budget_micro": 1} for p in _PARTNERS],
        sites=[
            site_entry(p, payer=p, domain=p, statement="None: nothing is trained here.") for p in _PARTNERS
        ],
        learning={"rounds": 1, "inner_steps": 1},
    )
    document["witnesses"] = {"quorum": SITES}
    home.mkdir()
    charter_file.write(Charter.model_validate_json(canonical_json(document)), home / "charter.toml")
    for partner in _PARTNERS:
        sign_charter(home / "charter.toml", keys / f"{partner}.key", home / "founding")
    write_file(home / "log.key", (keys / f"{_CONSORTIUM}.key").read_bytes(), private=True)
    coordinator = Coordinator(home, "127.0.0.1:0", mlflow=NO_MLFLOW)
    coordinator.start()
    try:
        yield coordinator
    finally:
        coordinator.stop()


@contextmanager
def _witness(folder: Path, coordinator: Coordinator) -> Iterator[None]:
    """A site that has joined and does nothing but witness."""
    text = folder / "text.txt"
    write_file(text, b"\n\n".join(b"text %d, which nobody reads" % n for n in range(40)))
    invite = coordinator.home / "invites" / f"site-{folder.name}-site.invite"
    join_as_site(
        invite, coordinator.home.parent / "keys" / f"{folder.name}.key", folder, text=text, public=None
    )
    seat, state, stop = Seat.load(folder / "seat"), folder / "state", threading.Event()
    link = Link(seat, Status(), StateStore(state / "model"), parts=state / "parts", stop=stop)
    link.witness(
        SiteWitness(load_signer(folder / "seat" / SITE_KEY), seat.log_verifier, state, SystemClock())
    )
    try:
        yield
    finally:
        stop.set()
        link.close()


def _idle(now_ms: int, number: int) -> Record:
    """A record that changes nothing."""
    return fact(Kind.REFUSED, now_ms, id=f"idle/{number}", code="exceeds_budget", message="for a measurement")


def _wait_published(coordinator: Coordinator) -> None:
    """Until a published checkpoint covers every record."""
    journal, bell = coordinator.desk.consortium.journal, coordinator.desk.bell
    until = time.monotonic() + _WAIT_S
    while True:
        strokes = bell.strokes
        note = journal.published()
        if note and Checkpoint.read(parse(note)).size == journal.size:
            return
        if (left_s := until - time.monotonic()) <= 0:
            raise TimeoutError(f"no quorum of {SITES} witnesses in {_WAIT_S:.0f} s")
        bell.wait_beyond(strokes, left_s)
