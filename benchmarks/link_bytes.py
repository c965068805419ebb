"""Bytes between a server and its sites alone, where loopback also carries what one side says to itself.

A packet socket on loopback sees the packets to and from one address or port of the server. The kernel writes their
lengths into a ring shared with this process, which adds them up a few times a second: no packet is copied, and counting
costs the measured programs nearly nothing. Needs root (CAP_NET_RAW) and Linux.
"""

from __future__ import annotations

import ctypes
import ipaddress
import mmap
import socket
import struct
import threading
from types import TracebackType

import numpy as np
from typing_extensions import Self

_ETH_P_ALL, _SO_ATTACH_FILTER, _SOL_PACKET = 3, 26, 263
_PACKET_RX_RING, _PACKET_STATISTICS, _PACKET_VERSION, _PACKET_IGNORE_OUTGOING = 5, 6, 10, 23
_TPACKET_V2, _USER = 1, 1
_SLOT, _BLOCK, _BLOCKS = 128, 1 << 16, 256
"""Bytes of a slot, bytes of a block, blocks: room for 131,072 packets between two looks."""
_PERIOD_S = 0.05
_Step = tuple[int, int, int, int]
"""One instruction of a classic BPF program: code, steps to jump when true, when false, operand."""
_LOAD_WORD, _LOAD_HALF, _LOAD_BYTE, _LOAD_HALF_X, _HEADER_X = 0x20, 0x28, 0x30, 0x48, 0xB1
_AND, _EQUAL, _ANSWER = 0x54, 0x15, 0x06


class LinkBytes:
    """Counts from `with` on. Exactly one of `address` (IPv4 of the server) and `port` (its TCP port) is given.

    Counted are whole IP packets of both directions. Raises PermissionError without the right to open packet sockets.
    """

    def __init__(self, *, address: str | None = None, port: int | None = None) -> None:
        assert (address is None) != (port is None)
        program = _by_address(address) if address is not None else _by_port(port or 0)
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)
        code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in program))
        self._socket.setsockopt(
            socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HL", len(program), ctypes.addressof(code))
        )
        self._socket.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)  # loopback shows every packet twice
        self._socket.setsockopt(_SOL_PACKET, _PACKET_VERSION, _TPACKET_V2)
        ring = struct.pack("IIII", _BLOCK, _BLOCKS, _SLOT, _BLOCK * _BLOCKS // _SLOT)
        self._socket.setsockopt(_SOL_PACKET, _PACKET_RX_RING, ring)
        self._ring = mmap.mmap(self._socket.fileno(), _BLOCK * _BLOCKS)
        self._slots = np.frombuffer(self._ring, np.uint32).reshape(-1, _SLOT // 4)
        self._total = 0
        self._lost = 0
        self._one = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="link-bytes", daemon=True)

    def __enter__(self) -> Self:
        self._socket.bind(("lo", _ETH_P_ALL))
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        self.total()
        self._socket.close()

    def total(self) -> int:
        """Bytes so far."""
        with self._one:
            if self._socket.fileno() >= 0:
                # Column 0 is the state of a slot, column 1 the length of its packet.
                ready = np.flatnonzero(self._slots[:, 0] & _USER)
                self._total += int(self._slots[ready, 1].sum(dtype=np.int64))
                self._slots[ready, 0] = 0
            return self._total

    def lost(self) -> int:
        """Packets that found no room in the ring so far: the total lacks them."""
        with self._one:
            if self._socket.fileno() >= 0:
                found = self._socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8)
                self._lost += int(struct.unpack("II", found)[1])
            return self._lost

    def _run(self) -> None:
        while not self._ended.wait(_PERIOD_S):
            self.total()
            self.lost()


def _by_address(address: str) -> list[_Step]:
    number = int(ipaddress.IPv4Address(address))
    return [
        (_LOAD_BYTE, 0, 0, 0),
        (_AND, 0, 0, 0xF0),
        (_EQUAL, 0, 5, 0x40),
        (_LOAD_WORD, 0, 0, 12),  # source
        (_EQUAL, 2, 0, number),
        (_LOAD_WORD, 0, 0, 16),  # destination
        (_EQUAL, 0, 1, number),
        (_ANSWER, 0, 0, 64),
        (_ANSWER, 0, 0, 0),
    ]


def _by_port(port: int) -> list[_Step]:
    """TCP over IPv4 or IPv6 without extension headers, as the kernel sends it over loopback."""
    return [
        (_LOAD_BYTE, 0, 0, 0),
        (_AND, 0, 0, 0xF0),
        (_EQUAL, 0, 6, 0x40),
        (_HEADER_X, 0, 0, 0),
        (_LOAD_HALF_X, 0, 0, 0),
        (_EQUAL, 7, 0, port),
        (_LOAD_HALF_X, 0, 0, 2),
        (_EQUAL, 5, 6, port),
        (_ANSWER, 0, 0, 0),
        (_LOAD_HALF, 0, 0, 40),
        (_EQUAL, 2, 0, port),
        (_LOAD_HALF, 0, 0, 42),
        (_EQUAL, 0, 1, port),
        (_ANSWER, 0, 0, 64),
        (_ANSWER, 0, 0, 0),
    ]
