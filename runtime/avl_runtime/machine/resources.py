"""What this machine gives a process: processor cores and memory."""

from __future__ import annotations

import os
from typing import Final

MOST_THREADS: Final = 1024  # of a session; more are a slip of the finger, which stops a machine


def cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def physical_memory() -> int | None:
    """The machine's memory in bytes; None where the system does not tell."""
    if not hasattr(os, "sysconf"):  # not a POSIX system
        return None
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
