"""How much memory this process holds, and has held, and what becomes of what it frees."""

from __future__ import annotations

import ctypes
import re
import resource
import sys
import threading
from pathlib import Path
from typing import Final

from avl_runtime.machine.pages import LEFT, ROWS
from avl_runtime.machine.resources import usable_memory

STATUS = Path("/proc/self/status")
# glibc's numbers of limits (malloc.h): bytes at a heap's end that are kept, bytes from which on a
# block is mapped by itself, blocks that may be, and heaps.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX, _M_ARENA_MAX = -1, -3, -4, -8
MAPPED: Final = 32 << 20  # the most that glibc takes for the second
MOST_MAPPED: Final = 65536  # glibc's own number for the third
TRIMMED_NEVER: Final = (1 << 31) - 1
_KEPT = 8  # of so much of the machine's memory one part may be freed and kept
_keeping = threading.Event()


class _Mallinfo2(ctypes.Structure):
    _fields_ = (*((f"other_{number}", ctypes.c_size_t) for number in range(8)),)
    _fields_ += (("fordblks", ctypes.c_size_t), ("keepcost", ctypes.c_size_t))


def rss_bytes() -> int | None:
    """Memory that this process holds now; None where the system does not tell."""
    return _status("VmRSS")


def peak_rss_bytes() -> int:
    """The most memory this program has held, in bytes.

    On Linux from /proc: ru_maxrss counts the program that started this one as well.
    """
    found = _status("VmHWM")
    if found is not None:
        return found
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def libc() -> ctypes.CDLL | None:
    """The C library, where it may be glibc; its own functions may be missing."""
    return ctypes.CDLL(None) if sys.platform == "linux" else None


def keep_freed() -> None:
    """Keep what is freed for what comes next; whoever says so calls `give_back` when it is idle.

    The system clears each page that it gives out, which takes longer than to copy rows into it. All
    threads share one heap from now on, so that each takes what others have freed; and blocks of any
    size lie on it, as those that are mapped by themselves, from 32 MiB on, go back when they are
    freed: a batch's rows of a layer may be as large, and are replaced whenever a request joins or
    leaves. Nothing changes under another allocator than glibc's.
    """
    tune = getattr(libc(), "mallopt", None)
    if tune is not None and getattr(libc(), "mallinfo2", None) is not None:
        tune(_M_ARENA_MAX, 1)
        tune(M_TRIM_THRESHOLD, TRIMMED_NEVER)
        tune(M_MMAP_MAX, 0)
        _keeping.set()
    for pages in (ROWS, LEFT):
        pages.use()


def keeps_freed() -> bool:
    """Whether freed memory is kept."""
    return _keeping.is_set()


def give_back() -> None:
    """Give freed memory back to the system: glibc keeps what lies between blocks still in use."""
    trim = getattr(libc(), "malloc_trim", None)
    if trim is not None:
        trim(0)
    for pages in (ROWS, LEFT):
        pages.give_back()


def give_back_surplus() -> None:
    """The same, but where it is kept: then only if it is more than an eighth of all memory."""
    memory = usable_memory()
    if not keeps_freed() or memory is None or _freed() > memory // _KEPT:
        give_back()


def _freed() -> int:
    """Bytes that are free on glibc's heaps, and pages that no array has."""
    tell = ctypes.CDLL(None).mallinfo2
    tell.restype = _Mallinfo2
    return int(tell().fordblks) + ROWS.surplus + LEFT.surplus


def _status(field: str) -> int | None:
    """A field of Linux's account of this process, in bytes."""
    if not STATUS.is_file():
        return None
    found = re.search(rf"^{field}:\s*(\d+) kB$", STATUS.read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else None
