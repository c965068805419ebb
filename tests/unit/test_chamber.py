"""What the command line believes of the coordinator's answers: nothing without a proof."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import pytest

from commons.errors import HansaError
from commons.notes import Signer
from commons.records import Kind, Record
from commons.wire import channel
from commons.wire.v1 import consortium_pb2 as wire
from commons.wire.v1 import consortium_pb2_grpc as services
from hansa.chamber import Chamber
from tests.support import chamber, loopback

NOTE = b"a signed note\n"


def receipt(records: Sequence[Record], index: int, *, by: Signer) -> wire.Receipt:
    log = chamber.Log(records)
    path = log.inclusion(index, log.size)
    return wire.Receipt(index=index, leaf=records[index].leaf, path=path, checkpoint=log.head.sign(by))


@contextmanager
def answering(given: wire.Receipt) -> Iterator[Chamber]:
    """A seat whose coordinator answers every note with `given`."""

    class Liar(services.ChamberServicer):
        def Submit(self, request: wire.NoteRequest, context: grpc.ServicerContext) -> wire.Receipt:
            return given

    server = grpc.server(
        ThreadPoolExecutor(2), interceptors=[channel.Authz()], options=channel.SERVER_OPTIONS
    )
    services.add_ChamberServicer_to_server(Liar(), server)
    port = server.add_secure_port("127.0.0.1:0", loopback.credentials(loopback.DEMO, mutual=True))
    server.start()
    try:
        with Chamber(loopback.seat(f"127.0.0.1:{port}", loopback.MEMBER)) as seat:
            yield seat
    finally:
        server.stop(None).wait()


RECORDS = [Record(Kind.BALLOT, 1000, body) for body in (b"another note\n", NOTE, b"a third\n")]


def test_a_note_that_is_in_the_log_is_taken_at_its_index() -> None:
    with answering(receipt(RECORDS, 1, by=loopback.LOG)) as seat:
        assert seat.submit(NOTE) == 1


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (receipt(RECORDS, 0, by=loopback.LOG), "another note"),
        (receipt(RECORDS, 1, by=Signer.generate("demo")), "sign"),
        (wire.Receipt(index=1), ""),
    ],
    ids=["for another note", "of another log", "none"],
)
def test_a_receipt_that_proves_nothing_is_not_believed(given: wire.Receipt, why: str) -> None:
    with answering(given) as seat, pytest.raises(HansaError, match="proves nothing") as error:
        seat.submit(NOTE)
    assert why in str(error.value)
