"""How much memory this process has held."""

from __future__ import annotations

import re
import resource
import sys
from pathlib import Path


def peak_rss_bytes() -> int:
    """The most memory this program has held, in bytes.

    On Linux from /proc: ru_maxrss counts the program that started this one as well.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        found = re.search(r"^VmHWM:\s*(\d+) kB$", status.read_text(), re.MULTILINE)
        if found:
            return int(found[1]) * 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
