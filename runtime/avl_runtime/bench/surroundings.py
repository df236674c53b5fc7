"""What a measurement was made on."""

from __future__ import annotations

import platform
import re
import time
from pathlib import Path
from typing import Any

import onnxruntime as ort

from avl_runtime.bench.idle import wait_idle
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


def idle_surroundings(threads: int, idle_wait: float) -> dict[str, Any]:
    """What a record tells of where and when it was made, once the machine is idle.

    Args:
        idle_wait: seconds to wait for that.

    Raises:
        BenchError: it did not become so.
    """
    return {
        "threads": threads,
        "busy_before": wait_idle(idle_wait),
        "machine": machine(),
        "onnxruntime": ort.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }


def cpu_model() -> str:
    """The processor's own name, as far as the system tells it."""
    text = CPU_INFO.read_text() if CPU_INFO.is_file() else ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else platform.processor() or platform.machine()
