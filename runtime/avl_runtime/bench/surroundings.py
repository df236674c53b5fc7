"""What a measurement was made on."""

from __future__ import annotations

import platform
import re
from pathlib import Path
from typing import Any

from avl_runtime.machine.resources import cores, physical_memory

CPU_INFO = Path("/proc/cpuinfo")


def machine() -> dict[str, Any]:
    """CPU model, processors, memory and system, as a JSON object."""
    return {
        "cpu": cpu_model(),
        "processors": cores(),
        "memory_bytes": physical_memory(),
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}",
        "python": platform.python_version(),
    }


def cpu_model() -> str:
    """The processor's own name, as far as the system tells it."""
    text = CPU_INFO.read_text() if CPU_INFO.is_file() else ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else platform.processor() or platform.machine()
