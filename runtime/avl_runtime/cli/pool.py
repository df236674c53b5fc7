"""Work in several processes that end with the command, quietly, however it ends."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

Result = TypeVar("Result")


def map_in_processes(
    work: Callable[..., Result], *columns: Sequence[object], processes: int
) -> list[Result]:
    """`[work(*row) for row in zip(*columns)]`, in processes of their own.

    Ctrl-C and other failures do not wait for what is being done, and the processes say nothing.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, initializer=_obey) as pool:
        try:
            with _held_back():  # processes start here, and are not to be stopped while they do
                found = pool.map(work, *columns)
            return list(found)
        except BaseException:
            for process in multiprocessing.active_children():
                process.kill()
            raise


def _obey() -> None:
    """Let Ctrl-C end this process without a word."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


@contextmanager
def _held_back() -> Iterator[None]:
    """Hold Ctrl-C back; processes that are started inherit that."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
