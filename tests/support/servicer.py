"""The servicer that sites call, without gRPC around it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from typing import Any, NoReturn

import grpc

from commons.certificates import Subject, csr, issue, tls_keypair
from commons.errors import GRPC_STATUS, Code
from commons.wire.v1 import consortium_pb2 as wire
from orchestrator.service import SiteLink
from orchestrator.streams import Streams
from orchestrator.witnesses import Witnesses
from tests.support.hostile_uploads import Packed
from tests.support.loopback import DEMO
from tests.support.rounds import RUN, Stage

_MESSAGE_BYTES = 7000
"""A refusal has to fit into gRPC's 8 KiB of metadata, percent-encoded."""


class Aborted(Exception):
    """The call ended with this code, and told the caller this."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(code)
        self.text = text


class Call:
    """What a servicer sees of gRPC. Asserts that a call ends with a code of the table, and a text that can be sent."""

    def __init__(self, certificate: bytes, *, waits: bool = True) -> None:
        """`waits`: the caller is still there when the servicer asks."""
        self._certificate, self._metadata = certificate, dict[str, str | bytes]()
        self._waits = waits

    def auth_context(self) -> dict[str, list[bytes]]:
        return {"x509_pem_cert": [self._certificate]}

    def add_callback(self, _: Callable[[], None]) -> bool:
        return True

    def is_active(self) -> bool:
        return self._waits

    def set_trailing_metadata(self, metadata: tuple[tuple[str, str | bytes], ...]) -> None:
        self._metadata = dict(metadata)

    def abort(self, status: grpc.StatusCode, text: str) -> NoReturn:
        code = self._metadata.get("hansa-code")
        assert code, f"no refusal, but {status.name}: {text}"
        assert status.name == GRPC_STATUS[Code(str(code))]
        sent = sum(1 if 32 <= byte < 127 and byte != 37 else 3 for byte in text.encode())
        assert text and sent <= _MESSAGE_BYTES, f"{code}: {sent} bytes are too many for gRPC"
        raise Aborted(str(code), text)


class Port:
    """Calls of the sites."""

    def __init__(self, stage: Stage) -> None:
        desk = stage.desk
        self.streams = Streams(desk, stall_s=60)
        self.link = SiteLink(desk, Witnesses(desk.consortium, desk.bell, desk.stopping), self.streams)

    def call(self, site: str) -> Any:
        return Call(_certificate(site))

    def hurried(self, site: str) -> Any:
        """Of a caller that takes the first answer there is."""
        return Call(_certificate(site), waits=False)

    def send(self, site: str, messages: Iterable[bytes]) -> int:
        """One upload; the receipt. Raises Aborted."""
        *_, last = [b"", *self.link.Upload(iter(messages), self.call(site))]
        return wire.UploadReply.FromString(last).index

    def hand_in(self, site: str, packed: Packed) -> int:
        """What of the update is not here yet, in one lane; the receipt. Raises Aborted."""
        asked = wire.UploadKey(run=RUN, round=packed.order.round, update=packed.key, lanes=1)
        [offset] = self.link.UploadOffset(asked, self.call(site)).offsets
        header = packed.header(offset=offset).SerializeToString()
        return self.send(site, [header, *filter(None, [packed.payload[offset:]])])


@cache
def _certificate(site: str) -> bytes:
    return issue(DEMO, csr(tls_keypair()), Subject("site", site, site))
