"""A TCP proxy on loopback whose connections a test cuts, freezes or counts; also an HTTP proxy that knows CONNECT."""

from __future__ import annotations

import base64
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

_PIECE = 1 << 18


@dataclass
class TcpProxy:
    """Carries every connection to `target` ("host:port"); without one, to where its CONNECT asks, on loopback."""

    target: str = ""
    password: str = ""
    """`name:password` that a CONNECT has to bring, else it is answered 407; empty: none."""
    tunnels: list[str] = field(default_factory=list)
    """What CONNECT asked for, in order."""
    up_bytes: int = 0
    """From callers to the target."""
    down_bytes: int = 0
    frozen: bool = False
    """Bytes are taken no more, and nobody is told: as when a cable is pulled."""

    refusing: bool = False
    """New connections end at once."""
    refused: int = 0
    """How many did."""
    bytes_per_s: float = 0.0
    """What all connections together carry each way; 0: as much as comes."""

    def __post_init__(self) -> None:
        self._due: dict[bool, tuple[int, Callable[[], object]]] = {}
        self._door = socket.create_server(("127.0.0.1", 0))
        self._changed = threading.Condition()
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        self._free_s = {False: 0.0, True: 0.0}
        """Per way, when all that came is through."""
        self.address = f"127.0.0.1:{self._door.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def connections(self) -> int:
        with self._changed:
            return len(self._pairs)

    def cut(self) -> int:
        """End every connection now, with what is under way; how many there were."""
        with self._changed:
            pairs, self._pairs = self._pairs, set()
        for end in (end for pair in pairs for end in pair):
            _cut(end)
        return len(pairs)

    def down(self) -> None:
        """As when the target's machine is gone: what goes on ends, what begins is refused, until `up`."""
        self.refusing = True
        self.cut()

    def up(self) -> None:
        self.refusing, self.refused = False, 0

    def after(self, count: int, action: Callable[[], object], *, down: bool = False) -> None:
        """Once, when so many more bytes came from callers (`down`: from targets); those that brought the last wait
        meanwhile."""
        with self._changed:
            self._due[down] = (self.down_bytes if down else self.up_bytes) + count, action

    def await_bytes(self, up: int, *, timeout_s: float = 60.0) -> bool:
        """Whether so many bytes went up in all."""
        with self._changed:
            return self._changed.wait_for(lambda: self.up_bytes >= up, timeout_s)

    def freeze(self, frozen: bool = True) -> None:
        with self._changed:
            self.frozen = frozen
            self._changed.notify_all()

    def close(self) -> None:
        self._door.close()
        self.freeze(False)
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._door.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(near,), daemon=True).start()

    def _serve(self, near: socket.socket) -> None:
        if self.refusing:
            self.refused += 1
            near.close()
            return
        try:
            host, _, port = (self.target or self._asked(near)).rpartition(":")
            far = socket.create_connection((host if self.target else "127.0.0.1", int(port)))
        except (OSError, ValueError):
            near.close()
            return
        if not self.target:
            near.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        pair = (near, far)
        with self._changed:
            self._pairs.add(pair)
        threading.Thread(target=self._carry, args=(far, near, pair), daemon=True).start()
        self._carry(near, far, pair)

    def _asked(self, near: socket.socket) -> str:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            if not (byte := near.recv(1)):
                raise OSError("the caller is gone")
            head += byte
        first, *headers = head.decode().split("\r\n")
        method, where, _ = first.split(" ")
        if method != "CONNECT":
            raise OSError(f"{method} is not served")
        said = base64.b64encode(self.password.encode()).decode()
        known = [h.split(" ")[-1] for h in headers if h.lower().startswith("proxy-authorization: basic ")]
        if self.password and known != [said]:
            near.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
            raise OSError("the caller is not known")
        self.tunnels.append(where)
        return where

    def _carry(
        self, source: socket.socket, to: socket.socket, pair: tuple[socket.socket, socket.socket]
    ) -> None:
        with suppress(OSError):
            while piece := source.recv(_PIECE):
                with self._changed:
                    self._changed.wait_for(lambda: not self.frozen)
                    down = source is pair[1]
                    due = self._due.get(down)
                    if (
                        due is not None
                        and (self.down_bytes if down else self.up_bytes) + len(piece) >= due[0]
                    ):
                        del self._due[down]
                    else:
                        due = None
                if due is not None:
                    due[1]()
                if self.bytes_per_s:
                    self._take_time(len(piece), down)
                to.sendall(piece)
                with self._changed:
                    if down:
                        self.down_bytes += len(piece)
                    else:
                        self.up_bytes += len(piece)
                    self._changed.notify_all()
        with self._changed:
            self._pairs.discard(pair)
        for end in pair:
            _cut(end)

    def _take_time(self, count: int, down: bool) -> None:
        with self._changed:
            now_s = time.monotonic()
            self._free_s[down] = max(now_s, self._free_s[down]) + count / self.bytes_per_s
            left_s = self._free_s[down] - now_s
        time.sleep(left_s)


@contextmanager
def proxied(target: str = "") -> Iterator[TcpProxy]:
    proxy = TcpProxy(target)
    try:
        yield proxy
    finally:
        proxy.close()


def _cut(end: socket.socket) -> None:
    with suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    end.close()
