"""A tape of calls as they went over the wire, and sending them again.

Knows nothing of what a call means: its user's table says which calls are kept and what of an answer must stay.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import grpc
from typing_extensions import Self

from commons.errors import Code
from commons.wire import channel

TIMES = 3
ANSWER_S = 20.0

Answer: TypeAlias = tuple[object, ...] | Code
"""What of an answer must stay, or the refusal."""


@dataclass(frozen=True)
class Change:
    """A call that may write a record: its reply, the fields that every repeat answers alike, and the codes with
    which a repeat may be refused although the first was not, because what it asked for is done."""

    reply: Any
    same: tuple[str, ...] = ()
    done: frozenset[Code] = frozenset()


@dataclass(frozen=True)
class Sent:
    """One call, as raw bytes on the connection it was made on."""

    method: str
    change: Change
    ask: Callable[[], bytes]

    def send(self) -> Answer:
        try:
            return self.read(self.ask())
        except grpc.RpcError as error:
            refusal = channel.as_refusal(error)
            assert refusal is not None, f"{self.method}: {error}"
            return refusal.code

    def read(self, reply: bytes) -> Answer:
        message = self.change.reply.FromString(reply)
        values = (getattr(message, name) for name in self.change.same)
        return tuple(v if isinstance(v, bytes | str | int) else tuple(v) for v in values)

    def check(self, first: Answer, repeat: Answer) -> None:
        """A repeat does not get what the first did not, and hears of the same record."""
        if isinstance(first, Code):
            assert isinstance(repeat, Code), (
                f"{self.method} was refused ({first}), then accepted: {repeat!r:.300}"
            )
        elif repeat not in self.change.done:
            assert repeat == first, f"{self.method} answered {first!r:.300}, its repeat {repeat!r:.300}"


@dataclass
class Tape:
    """Keeps the calls of every connection it is put on; each is sent `times` times before its first answer is given."""

    changes: Mapping[str, Change]
    """``Service/Method`` -> what of its answer must stay; other calls are not kept."""
    times: int = 1
    sent: list[tuple[Sent, Answer]] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def on(self, opened: grpc.Channel) -> Any:
        return _Taped(self, opened)

    def replay(self, seed: int) -> None:
        """Everything so far, each call `TIMES` times, shuffled; all repeats of a call have one answer."""
        calls = [call for call in self.sent for _ in range(TIMES)]
        random.Random(seed).shuffle(calls)
        answers: dict[int, Answer] = {}
        for sent, first in calls:
            answer = sent.send()
            sent.check(first, answer)
            assert answers.setdefault(id(sent), answer) == answer, f"{sent.method} answers now so, now so"

    def first(self, sent: Sent) -> bytes:
        """Make the call, and its repeats; the first reply, or the first error."""
        try:
            reply = sent.ask()
        except grpc.RpcError as error:
            refusal = channel.as_refusal(error)
            if refusal is not None:
                self._repeat(sent, refusal.code)
            raise
        self._repeat(sent, sent.read(reply))
        return reply

    def _repeat(self, sent: Sent, first: Answer) -> None:
        with self._lock:
            self.sent.append((sent, first))
        for _ in range(1, self.times):
            sent.check(first, sent.send())


class _Taped:
    """A gRPC channel whose calls go by way of the tape, as bytes. It stays open, to send again."""

    def __init__(self, tape: Tape, opened: grpc.Channel) -> None:
        self._tape, self._opened = tape, opened

    def __getattr__(self, name: str) -> Any:
        return getattr(self._opened, name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *about: object) -> None:
        return None

    def unary_unary(self, path: str, request_serializer: Any, response_deserializer: Any, **more: Any) -> Any:
        method, change = self._kept(path)
        if change is None:
            return self._opened.unary_unary(path, request_serializer, response_deserializer, **more)
        raw = self._opened.unary_unary(path, None, None, **more)

        def call(request: Any, timeout: float | None = None) -> Any:
            data = request_serializer(request)
            sent = Sent(method, change, lambda: raw(data, timeout=ANSWER_S, wait_for_ready=True))
            return response_deserializer(self._tape.first(sent))

        return call

    def stream_stream(
        self, path: str, request_serializer: Any, response_deserializer: Any, **more: Any
    ) -> Any:
        """What counts of the answers is the last; it is the only one that is given."""
        method, change = self._kept(path)
        assert change is not None, f"{path} sends a stream: what of its answer must stay?"
        raw = self._opened.stream_stream(path, None, None, **more)

        def call(frames: Iterable[bytes], timeout: float | None = None) -> Iterator[bytes]:
            kept = tuple(frames)

            def last() -> bytes:
                *_, reply = raw(iter(kept), timeout=ANSWER_S, wait_for_ready=True)
                return bytes(reply)

            return iter([self._tape.first(Sent(method, change, last))])

        return call

    def _kept(self, path: str) -> tuple[str, Change | None]:
        service, _, method = path.rpartition("/")
        name = f"{service.rpartition('.')[2]}/{method}"
        return name, self._tape.changes.get(name)
