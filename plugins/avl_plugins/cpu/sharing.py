"""Work on a picture's tokens in several threads, as many as the model has."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.floating]

LEAST_ROWS: Final = 128  # of a task, of which NumPy does LOTS at most
LOTS: Final = 8
ALONE: Final = 1 << 23  # products that are found sooner than other threads are awake
_THREADS: ContextVar[int | None] = ContextVar("threads of choices", default=None)


@contextmanager
def on_threads(count: int) -> Iterator[None]:
    """Have choices inside take so many threads; elsewhere there is one for each processor."""
    before = _THREADS.set(count)
    try:
        yield
    finally:
        _THREADS.reset(before)


def threads_for(work: int) -> int:
    """How many threads so many products are for."""
    return max(1, min(_THREADS.get() or os.cpu_count() or 1, work // ALONE))


def shared(
    function: Callable[[int, int], object], tasks: range, size: int, work: int, end: int = 1 << 62
) -> None:
    """Has a function do its part of so much work from each of `tasks` on.

    Args:
        function: is given the first number of a task and the one behind its last, which is `size`
            further, or `end`. It should let go of Python's lock, as ctypes and NumPy do.
    """

    def task(begin: int) -> None:
        function(begin, min(begin + size, end))

    if (threads := threads_for(work)) == 1:
        for begin in tasks:
            task(begin)
        return
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(task, tasks):
            pass


def of_rows(reduced: Callable[[Scores], Scores], rows: Scores) -> Scores:
    """What NumPy makes of each row [n, m] by itself, an [n], by several threads."""
    found = np.empty(len(rows), rows.dtype)

    def some(begin: int, end: int) -> None:
        found[begin:end] = reduced(rows[begin:end])

    size = max(LEAST_ROWS, -(-len(rows) // LOTS))
    shared(some, range(0, len(rows), size), size, 8 * rows.size, len(rows))
    return found
