"""Run a command in a process of its own and measure what it takes; arguments that go to it."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Linux counts the starting process's memory as its child's. So a small one starts the command.
LAUNCHER = """
import json, resource, subprocess, sys, time
begun = time.perf_counter()
done = subprocess.run(sys.argv[2:], stdout=subprocess.PIPE)
wall = time.perf_counter() - begun
used = resource.getrusage(resource.RUSAGE_CHILDREN)
peak = used.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
with open(sys.argv[1], "w") as file:
    json.dump([wall, used.ru_utime, used.ru_stime, peak], file)
sys.stdout.buffer.write(done.stdout)
sys.exit(done.returncode)
"""


@dataclass(frozen=True, slots=True)
class Used:
    """What a command printed and took: wall and CPU seconds, bytes at its peak."""

    printed: str
    wall_s: float
    user_s: float
    system_s: float
    peak_rss_bytes: int


def split_arguments(arguments: Sequence[str] | None) -> tuple[list[str], list[str]]:
    """A script's arguments before `--`, and behind it those of the command that it measures.

    Args:
        arguments: None for those of this process.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    cut = given.index("--") if "--" in given else len(given)
    return given[:cut], given[cut + 1 :]


def run_measured(command: Sequence[str]) -> Used:
    """Run `command`; exits with what it said on stderr if it fails."""
    with tempfile.TemporaryDirectory() as folder:
        figures = Path(folder, "used.json")
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", LAUNCHER, str(figures), *command],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            sys.exit(done.stderr)
        wall, user, system, peak = json.loads(figures.read_text())
    return Used(done.stdout, wall, user, system, int(peak))


def run_starts(script: str, case: str, job: Mapping[str, Any], starts: int) -> list[dict[str, Any]]:
    """What a script prints as JSON when it runs itself as `--worker JOB`, each time anew.

    Returns:
        Of each start the object that was printed, with `peak_rss_bytes`.
    """
    found = []
    for number in range(starts):
        print(f"{Path(script).stem}: {case}, start {number + 1}", file=sys.stderr, flush=True)
        used = run_measured([sys.executable, script, "--worker", json.dumps(job)])
        found.append(json.loads(used.printed) | {"peak_rss_bytes": used.peak_rss_bytes})
    return found
