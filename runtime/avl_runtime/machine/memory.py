"""How much memory this process holds, and has held."""

from __future__ import annotations

import re
import resource
import sys
from pathlib import Path

STATUS = Path("/proc/self/status")


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


def _status(field: str) -> int | None:
    """A field of Linux's account of this process, in bytes."""
    if not STATUS.is_file():
        return None
    found = re.search(rf"^{field}:\s*(\d+) kB$", STATUS.read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else None
