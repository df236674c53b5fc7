"""Cores and memory, beside what Linux says of them elsewhere."""

from __future__ import annotations

import ctypes
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from avl_runtime.machine import resources
from avl_runtime.machine.resources import (
    available_memory,
    cores,
    physical_memory,
    usable_memory,
)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="compares with Linux's /proc")
BLOCK = 64 << 20  # bytes

ON_ONE_CORE = """
import os
from avl_runtime.machine.resources import cores
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
print(cores())
"""

HELD = f"""
import numpy as np
from avl_runtime.machine.memory import peak_rss_bytes, rss_bytes
np.ones(1)
before = rss_bytes()
block = np.ones({BLOCK}, np.uint8)
during, peak = rss_bytes(), peak_rss_bytes()
del block
print([before, during, peak, rss_bytes()])
"""

KEPT_WHEN_FREED = """
from threading import Thread
import numpy as np
from avl_runtime.machine import memory
memory.keep_freed()
before = memory.rss_bytes()
def held():
    return (memory.rss_bytes() - before) >> 20
def fill():
    blocks = [np.ones(1 << 20, np.uint8) for _ in range(24)]
    blocks.append(np.ones(40 << 20, np.uint8))  # more than glibc would ever keep by itself
found = []
for number in range(3):
    other = Thread(target=fill)
    other.start()
    other.join()
    found.append(held())
memory.give_back_surplus()
found.append(held())
memory.usable_memory = lambda: 8 << 20
memory.give_back_surplus()
found.append(held())
print(found)
"""


def test_cores_are_those_this_process_may_use() -> None:
    done = subprocess.run(
        [sys.executable, "-c", ON_ONE_CORE], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "1"
    nproc = subprocess.run(["nproc", "--all"], capture_output=True, text=True, check=True)
    assert 1 <= cores() <= int(nproc.stdout)


def test_available_memory_is_what_linux_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, most = available_memory(), physical_memory()
    assert found is not None and most is not None and 0 < found <= most
    told = tmp_path / "meminfo"
    monkeypatch.setattr(resources, "MEMORY", told)
    assert available_memory() is None
    told.write_text("MemTotal:  9 kB\nMemFree:  1 kB\nMemAvailable:    3 kB\n")
    assert available_memory() == 3072


def test_memory_is_the_machines() -> None:
    told = re.search(r"^MemTotal:\s*(\d+) kB$", Path("/proc/meminfo").read_text(), re.MULTILINE)
    assert told is not None
    assert physical_memory() == 1024 * int(told[1])


@pytest.mark.parametrize(
    ("mine", "files", "expected"),
    [
        ("0::/\n", {"memory.max": "1073741824\n"}, 1 << 30),
        ("0::/a/b\n", {"a/b/memory.max": "max\n", "a/memory.max": "5000\n"}, 5000),
        ("0::/seen/outside\n", {"memory.max": "6000"}, 6000),
        ("0::/../out\n", {"memory.max": "7000"}, 7000),
        ("0::/a\n", {"a/memory.max": "max"}, None),
        ("0::/a\n", {"a/memory.max": f"{1 << 62}"}, None),
        ("3:cpu:/c\n4:memory:/m\n0::/\n", {"memory/m/memory.limit_in_bytes": "8000"}, 8000),
        ("4:cpu,memory:/m:n\n", {"memory/m:n/memory.limit_in_bytes": "9000"}, 9000),
        ("4:memory:/m\n", {"memory/m/memory.limit_in_bytes": "9223372036854771712"}, None),
        (None, {"memory.max": "1"}, None),
    ],
)
def test_a_container_has_a_part_of_the_memory(
    mine: str | None,
    files: dict[str, str],
    expected: int | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In both versions of control groups, its own limit or one around it; None: all there is."""
    groups, told = tmp_path / "groups", tmp_path / "mine"
    groups.mkdir()
    if mine is not None:
        told.write_text(mine)
    for name, text in files.items():
        file = groups / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    monkeypatch.setattr(resources, "MINE", told)
    monkeypatch.setattr(resources, "GROUPS", groups)
    assert usable_memory() == (physical_memory() if expected is None else expected)


def test_resident_memory_follows_what_is_held() -> None:
    """In a process of its own: here other tests may have let the allocator keep what is freed."""
    done = subprocess.run([sys.executable, "-c", HELD], capture_output=True, text=True, check=True)
    before, during, peak, after = json.loads(done.stdout)
    assert during - before >= 0.9 * BLOCK
    assert peak >= during
    assert during - after >= 0.9 * BLOCK


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="glibc's allocator")
def test_freed_memory_is_kept_for_all_threads_until_it_is_too_much() -> None:
    done = subprocess.run(
        [sys.executable, "-c", KEPT_WHEN_FREED], capture_output=True, text=True, check=True
    )
    *kept, given_back = json.loads(done.stdout)
    assert all(60 <= one <= 70 for one in kept)
    assert given_back <= 6
