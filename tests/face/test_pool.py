"""Work in several processes: in order, and over at once when the command is stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from avl_runtime.cli.pool import map_in_processes

# Each piece of work says that it has begun, and would then take an hour.
PROGRAM = """
import sys, time
from pathlib import Path
from avl_runtime.cli.pool import map_in_processes
from avl_runtime.cli.status import exit_status

def work(name):
    Path(name).touch()
    time.sleep(3600)

if __name__ == "__main__":
    names = [f"{sys.argv[1]}/{n}" for n in "ab"]
    sys.exit(exit_status("avl-x", lambda: len(map_in_processes(work, names, processes=2))))
"""


def test_results_are_in_order() -> None:
    assert map_in_processes(pow, [2, 3, 4], [2, 2, 2], processes=2) == [4, 9, 16]


@pytest.mark.parametrize("whole", [True, False], ids=["all processes", "the command alone"])
def test_ctrl_c_ends_all_of_them_quietly(whole: bool, tmp_path: Path) -> None:
    """A terminal sends Ctrl-C to all processes, `kill` to one."""
    (tmp_path / "program.py").write_text(PROGRAM)
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "program.py"), str(tmp_path)],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    deadline = time.monotonic() + 300
    while not {"a", "b"} <= {path.name for path in tmp_path.iterdir()}:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    if whole:
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=300)
    assert (process.returncode, said) == (130, "avl-x: stopped\n")
