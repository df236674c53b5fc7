"""How busy the machine is, from /proc/stat: a measurement wants it idle."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from avl_runtime.bench.errors import BenchError

STAT = Path("/proc/stat")
IDLE, IOWAIT, COUNTED = 3, 4, 8  # places of times in its first line; guests are counted as users
QUIET = 0.1  # share of all processors that may be busy
SAMPLE_S = 0.5


@dataclass(frozen=True, slots=True)
class Load:
    """Time that all processors together have been busy, and have had, in ticks since boot."""

    busy: int
    total: int

    def share_until(self, later: Load) -> float:
        """Share of the processors that was busy in between, 0 to 1."""
        passed = later.total - self.total
        return (later.busy - self.busy) / passed if passed else 0.0


def read_load() -> Load | None:
    """The load so far; None on systems without /proc/stat."""
    if not STAT.is_file():
        return None
    times = [int(word) for word in STAT.read_text().splitlines()[0].split()[1 : COUNTED + 1]]
    return Load(sum(times) - times[IDLE] - times[IOWAIT], sum(times))


def busy_share() -> float | None:
    """Share of all processors that is busy now; None on systems without /proc/stat."""
    before = read_load()
    time.sleep(SAMPLE_S)
    after = read_load()
    return None if before is None or after is None else before.share_until(after)


def wait_idle(
    limit_s: float,
    read: Callable[[], Load | None] = read_load,
    sleep: Callable[[float], None] = time.sleep,
) -> float | None:
    """Return when less than a tenth of the processors is busy.

    Args:
        limit_s: how long to wait at most; 0 does not look at all.

    Returns:
        The busy share that was found; None if it was not looked at.

    Raises:
        BenchError: the machine was busy all the time.
    """
    before = read()
    if before is None or limit_s <= 0:
        return None
    waited, share = 0.0, 1.0
    while waited < limit_s:
        sleep(SAMPLE_S)
        waited += SAMPLE_S
        after = read()
        if after is None:
            return None
        share = before.share_until(after)
        if share <= QUIET:
            return share
        before = after
    raise BenchError(
        f"expected an idle machine, found {share:.0%} of its processors busy after {limit_s:g} s "
        "of waiting; stop other programs, or measure all the same with --idle-wait 0"
    )
