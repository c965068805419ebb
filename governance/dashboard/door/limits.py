"""How often, how much and how long: bounds on what a stranger's requests may cost."""

from __future__ import annotations

import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import anyio
from starlette.types import Message, Receive

BODY_BYTES_MAX = 64 * 2**10
"""A signed note has 16 KiB at most (`commons.notes`), three times that when it is form-encoded."""
BODY_S = 10.0
"""How long a body may take to arrive."""
KEYS_MAX = 10_000


@dataclass(frozen=True)
class Rate:
    burst: int
    per_minute: float


SIGN_INS = Rate(burst=10, per_minute=10)
"""Attempts of one address."""
SUBMITS = Rate(burst=30, per_minute=30)
"""Of one session; an address may make four times as many, as colleagues share one."""


class Limiter:
    """A bucket of tokens per key. Remembers so many keys at most and forgets the one unused for longest."""

    def __init__(self, rate: Rate, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._clock = rate, clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait_s(self, key: str) -> float:
        """0: take one now. Else nothing is taken, and so long it is until the next one is there."""
        now_s = self._clock()
        left, at_s = self._buckets.get(key, (float(self._rate.burst), now_s))
        left = min(self._rate.burst, left + (now_s - at_s) * self._rate.per_minute / 60)
        taken = left >= 1
        self._buckets[key] = (left - taken, now_s)
        self._buckets.move_to_end(key)
        if len(self._buckets) > KEYS_MAX:
            self._buckets.popitem(last=False)
        return 0.0 if taken else (1 - left) * 60 / self._rate.per_minute


def address_of(client: tuple[str, int] | None) -> str:
    """Whom an address stands for: of IPv6 the /64, which one household or office has whole."""
    host = client[0] if client else ""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if address.version == 6:
        return str(ipaddress.ip_network((address, 64), strict=False).network_address)
    return host


class TooLarge(Exception):
    """The body has more than `BODY_BYTES_MAX` bytes."""


class TooSlow(Exception):
    """The body did not arrive within `BODY_S`."""


async def whole_body(receive: Receive) -> bytes:
    """The body, bounded while it is read. Raises TooLarge or TooSlow; a client that goes gives what came."""
    chunks, held = [], 0
    try:
        with anyio.fail_after(BODY_S):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    break
                chunk = message.get("body", b"")
                held += len(chunk)
                if held > BODY_BYTES_MAX:
                    raise TooLarge
                chunks.append(chunk)
                if not message.get("more_body", False):
                    break
    except TimeoutError:
        raise TooSlow from None
    return b"".join(chunks)


def replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body once more and then what comes after it."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again
