"""Cores and memory, beside what Linux says of them elsewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from avl_runtime.machine.memory import peak_rss_bytes, rss_bytes
from avl_runtime.machine.resources import cores, physical_memory

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="compares with Linux's /proc")
BLOCK = 64 << 20  # bytes

ON_ONE_CORE = """
import os
from avl_runtime.machine.resources import cores
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
print(cores())
"""


def test_cores_are_those_this_process_may_use() -> None:
    done = subprocess.run(
        [sys.executable, "-c", ON_ONE_CORE], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "1"
    nproc = subprocess.run(["nproc", "--all"], capture_output=True, text=True, check=True)
    assert 1 <= cores() <= int(nproc.stdout)


def test_memory_is_the_machines() -> None:
    told = re.search(r"^MemTotal:\s*(\d+) kB$", Path("/proc/meminfo").read_text(), re.MULTILINE)
    assert told is not None
    assert physical_memory() == 1024 * int(told[1])


def test_resident_memory_follows_what_is_held() -> None:
    before = rss_bytes()
    block = np.ones(BLOCK, np.uint8)
    during = rss_bytes()
    assert before is not None
    assert during is not None
    assert during - before >= 0.9 * block.nbytes
    assert peak_rss_bytes() >= during
    del block
    after = rss_bytes()
    assert after is not None
    assert during - after >= 0.9 * BLOCK
