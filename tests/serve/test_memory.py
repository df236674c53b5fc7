"""What large pictures take of memory is given back when nobody asks."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from support.server import MODEL, Running, picture, said

LARGE = (4800, 4000)  # 58 MB in memory, some 60 kB as PNG
SURPLUS = 24 << 20  # what a heap may keep between blocks in use
PATIENCE_S = 60


def held(pid: int, field: str) -> int:
    """Bytes of a process and those that it has begun."""
    found = re.search(rf"^{field}:\s*(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.M)
    own = int(found[1]) << 10 if found else 0
    begun = " ".join(path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children"))
    return own + sum(held(int(child), field) for child in begun.split())


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux's /proc")
def test_large_pictures_leave_nothing_behind(server: Running) -> None:
    def ask(size: tuple[int, int], colour: int) -> None:
        content = [picture(Image.new("RGB", size, (colour, 9, 9))), said("What?")]
        asked = {
            "model": MODEL,
            "max_tokens": 2,
            "messages": [{"role": "user", "content": content}],
        }
        status, _, answer = server.ask(asked)
        assert status == 200, answer

    pid = server.process.pid
    ask((64, 64), 0)  # the process that decodes is there
    time.sleep(1)  # and what earlier tests left has gone back
    before = held(pid, "VmRSS")
    for colour in (1, 2):
        ask(LARGE, colour)
    assert held(pid, "VmHWM") - before > 80 << 20  # or nothing is shown by what follows
    until = time.monotonic() + PATIENCE_S
    while (left := held(pid, "VmRSS") - before) > SURPLUS and time.monotonic() < until:
        time.sleep(0.1)
    assert left <= SURPLUS
