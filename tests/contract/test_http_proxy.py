"""A site whose only way out is an HTTP proxy that knows CONNECT: the coordinator's name means nothing in its network."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from commons.notes import parse
from commons.states import StateStore
from commons.work import AssignmentNote
from tests.contract.test_services import Stage, eventually
from tests.support.consortium import MODEL, SITES, FakeSite, charter, moved
from tests.support.tcp_proxy import TcpProxy, proxied
from workers.link import Directive, Link
from workers.outbox import Sealed
from workers.status import Status

WIDE = {**MODEL, "hidden_size": 256, "moe_intermediate_size": 256}
"""Of some megabytes, so that a line can be cut in the middle."""


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    made = Stage(tmp_path, charter(model={"family": "glm4_moe", "config": WIDE}))
    yield made
    made.close()


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[TcpProxy]:
    """The way out for all names; loopback itself, where the others are, needs none."""
    for name in ("no_grpc_proxy", "NO_PROXY", "grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    with proxied() as opened:
        monkeypatch.setenv("https_proxy", f"http://{opened.address}")
        monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
        yield opened


class Behind:
    """Alder's own link, as its site process has it, and a hand that carries out its orders."""

    def __init__(self, stage: Stage, folder: Path) -> None:
        self.name = f"hansa.example:{stage.coordinator.address.rpartition(':')[2]}"
        self.hand = FakeSite(stage.seats["alder"], stage.of)
        self.store, self.stop = StateStore(folder / "model"), threading.Event()
        self.folder, self.status = folder, Status()
        seat = moved(stage.seats["alder"], self.name)
        self.link = Link(seat, self.status, self.store, parts=folder / "parts", stop=self.stop)
        self.heard = 0

    def order(self, number: int = 1) -> AssignmentNote:
        """That round's; what is said before it, or again, is heard."""
        while True:
            said: Directive | None = self.link.directive(after=self.heard, timeout_s=30)
            assert said is not None, self.link.trouble
            self.heard = said.number
            note = AssignmentNote.from_note(parse(said.order)) if said.order is not None else None
            if note is not None and note.round == number:
                return note

    def sealed(self, order: AssignmentNote) -> Sealed:
        update, usage, manifest, payload = self.hand.pack(order)
        (self.folder / "payload.bin").write_bytes(payload)
        return Sealed(self.folder, update, usage, manifest)

    def close(self) -> None:
        self.stop.set()
        self.link.close()
        self.hand.channel.close()


@pytest.fixture
def behind(stage: Stage, proxy: TcpProxy, tmp_path: Path) -> Iterator[Behind]:
    made = Behind(stage, tmp_path / "alder-behind")
    yield made
    made.close()


def test_a_site_behind_an_http_proxy_works_and_survives_every_cut_of_it(
    stage: Stage, proxy: TcpProxy, behind: Behind
) -> None:
    for name in SITES[1:]:
        stage.site(name)
    behind.link.open(run="", round_number=0)
    stage.start_run()
    order = behind.order()
    assert set(proxy.tunnels) == {behind.name}

    proxy.after(1 << 20, proxy.cut, down=True)
    names = sorted(part.name for part in stage.coordinator.desk.expert_map(1).slices)
    behind.link.fetch(order.base, names)
    slices = stage.coordinator.desk.store.load(order.base)
    held = behind.store.load(order.base)
    assert all(np.array_equal(held[name], slices[name]) for name in names)
    state_bytes = sum(tensor.nbytes for tensor in slices.values())
    assert behind.status.now.bytes_down < 1.5 * state_bytes, "it went on where the line broke"
    cut_once = len(proxy.tunnels)
    assert cut_once >= 2

    sealed = behind.sealed(order)
    proxy.after(1 << 20, proxy.cut)
    before = proxy.up_bytes
    receipt = behind.link.upload(sealed, run=order.run, round_number=order.round)
    assert len(proxy.tunnels) > cut_once
    payload_bytes = sealed.payload.stat().st_size
    assert payload_bytes > 2 << 20, "a line is cut in the middle"
    assert proxy.up_bytes - before < 1.3 * payload_bytes, "it went on where the line broke"
    assert receipt is None or receipt > 0

    assert behind.order(2).run == order.run, "the order stream was cut twice"
    closed = stage.office.run().history[0]
    assert set(closed.contributors) == set(SITES)


def test_a_proxy_that_is_gone_is_waited_for(stage: Stage, proxy: TcpProxy, behind: Behind) -> None:
    for name in SITES[1:]:
        stage.site(name)
    proxy.down()
    behind.link.open(run="", round_number=0)
    eventually(lambda: bool(behind.link.trouble))
    assert behind.name in behind.link.trouble
    proxy.up()
    stage.start_run()
    order = behind.order()
    assert behind.link.trouble == ""
    assert behind.link.upload(behind.sealed(order), run=order.run, round_number=order.round) is not None
