"""How often, how much and how long: bounds on what a stranger's requests may cost."""

from __future__ import annotations

import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import anyio
from starlette.exceptions import HTTPException
from starlette.types import Message, Receive

FORM_BYTES_MAX = 64 * 2**10
"""Of a form, which is held in memory until its token is found. A signed note has 16 KiB (`commons.notes`), three times
that when it is form-encoded."""
FORM_S = 10.0
"""How long a form may take to arrive."""
BODY_BYTES_MAX = 32 * 2**20
"""Of what a script sends with the token in a header; the page that takes it reads it bit by bit and may want less."""
BODY_S = 120.0
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


def bounded(receive: Receive, most: int, time_s: float) -> Receive:
    """A `receive` that raises HTTPException: 413 at the first byte too many, 408 when the whole takes too long."""
    left, until_s = most, anyio.current_time() + time_s

    async def within() -> Message:
        nonlocal left
        try:
            with anyio.fail_after(max(0.0, until_s - anyio.current_time())):
                message = await receive()
        except TimeoutError:
            raise HTTPException(408, f"It did not arrive within {time_s:.0f} s.") from None
        left -= len(message.get("body", b""))
        if left < 0:
            raise too_large(most)
        return message

    return within


def too_large(most: int) -> HTTPException:
    return HTTPException(413, f"That is more than the {most // 1024:,} KiB that are taken here.")


async def whole(receive: Receive) -> bytes:
    """The body; what came of it when the client went."""
    chunks = []
    while (message := await receive())["type"] != "http.disconnect":
        chunks.append(message.get("body", b""))
        if not message.get("more_body", False):
            break
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
