"""Walking over slices: which elements a frame has, and several slices at a time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from commons.codec import FRAME
from commons.experts.map import Slice

THREADS_MAX = 4
T = TypeVar("T")


def blocks(size: int) -> Iterator[tuple[int, int]]:
    """(first element, elements) of each frame of a slice."""
    return ((first, min(FRAME, size - first)) for first in range(0, size, FRAME))


def threads_for(parts: Sequence[Slice]) -> int:
    """One for each four frames there are: a small model is combined sooner than threads have started."""
    frames = sum(part.size for part in parts) // FRAME
    return max(1, min(THREADS_MAX, os.cpu_count() or 1, frames // 4))


def each(work: Callable[[Slice], T], parts: Sequence[Slice], threads: int) -> list[T]:
    """What `work` gives for each part, in their order; the first error ends it.

    A slice is hashed by one thread, so the largest are begun first.
    """
    if threads == 1:
        return [work(part) for part in parts]
    with ThreadPoolExecutor(threads, thread_name_prefix="combine") as pool:
        largest = sorted(range(len(parts)), key=lambda n: -parts[n].size)
        begun = {n: pool.submit(work, parts[n]) for n in largest}
        try:
            return [begun[n].result() for n in range(len(parts))]
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
