"""How long to wait before trying again."""

from __future__ import annotations

import random
from collections.abc import Iterator


def pauses(*, first_s: float = 0.5, longest_s: float = 15.0) -> Iterator[float]:
    """Seconds to wait before each new attempt, for ever: doubling to `longest_s`, each shortened by up to half.

    The shortening is random, so that sites that lost one coordinator do not all come back in the same moment.
    """
    pause = first_s
    while True:
        yield pause * random.uniform(0.5, 1.0)
        pause = min(2 * pause, longest_s)
