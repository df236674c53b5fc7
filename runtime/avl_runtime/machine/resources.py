"""What this machine gives a process: processor cores and memory."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Final

MOST_THREADS: Final = 1024  # of a session; more are a slip of the finger, which stops a machine
# Linux's control groups, by which containers are kept to a part of a machine: which ones a process
# is in, and where each of the two versions tells of limits.
MINE = Path("/proc/self/cgroup")
GROUPS = Path("/sys/fs/cgroup")
MEMORY = Path("/proc/meminfo")


def cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def processor() -> str:
    """What this machine's processor is and can do, as its system tells; for comparing."""
    wanted = ("vendor_id", "cpu family", "model", "stepping", "flags", "CPU", "Features")
    try:
        first = Path("/proc/cpuinfo").read_text(errors="replace").split("\n\n", 1)[0]
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    told = [line for line in first.splitlines() if line.startswith(wanted)]
    return "\n".join([platform.machine(), *told])


def physical_memory() -> int | None:
    """The machine's memory in bytes; None where the system does not tell."""
    if not hasattr(os, "sysconf"):  # not a POSIX system
        return None
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def usable_memory() -> int | None:
    """Bytes that this process may use: the machine's memory, or a container's part of it.

    None where the system does not tell.
    """
    found = [physical_memory(), *_group_limits()]
    return min((limit for limit in found if limit is not None), default=None)


def available_memory() -> int | None:
    """Bytes that nobody needs now, by what Linux says; None on other systems."""
    try:
        lines = MEMORY.read_text().splitlines()
    except OSError:
        return None
    found = (line.split() for line in lines)
    return next((int(one[1]) << 10 for one in found if one[:1] == ["MemAvailable:"]), None)


def _group_limits() -> Iterator[int]:
    """Limits of the control groups that this process is in, and of those around them."""
    try:
        lines = MINE.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, kinds, path = line.split(":", 2)
        if not kinds:
            root, file = GROUPS, "memory.max"
        elif "memory" in kinds.split(","):
            root, file = GROUPS / "memory", "memory.limit_in_bytes"
        else:
            continue
        group = root / path.lstrip("/")
        while True:
            try:
                text = (group / file).read_text().strip()
            except OSError:  # a container may see its own group as the root, under another path
                text = ""
            if text.isdecimal():  # not "max"
                yield int(text)
            if group == root or root not in group.parents:
                break
            group = group.parent
