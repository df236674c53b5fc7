"""Progress on stderr: one line that redraws itself on a terminal, one line a step elsewhere."""

from __future__ import annotations

import sys

WIDTH = 24


class Progress:
    """A bar over `total` units of work of the program called `command`."""

    def __init__(self, command: str, total: int) -> None:
        self.command = command
        self.total = max(total, 1)
        self.done = 0
        self.live = sys.stderr.isatty()
        self.started = ""

    def step(self, label: str, amount: int = 1) -> None:
        """Count `amount` units; `label` names what is being done."""
        self.done = min(self.done + amount, self.total)
        if self.live:
            filled = WIDTH * self.done // self.total
            bar = "█" * filled + "░" * (WIDTH - filled)
            percent = 100 * self.done // self.total
            print(f"\r\x1b[K{bar} {percent:3d} % {label}", end="", file=sys.stderr, flush=True)
        elif label != self.started:
            print(f"{self.command}: {label}", file=sys.stderr, flush=True)
        self.started = label

    def close(self) -> None:
        """Leave the line clean for what follows."""
        if self.live:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
