"""How far a batch is: requests, tokens a second, and when it will be done."""

from __future__ import annotations

import time
from typing import Final

from avl_runtime.machine.progress import Progress
from avl_runtime.serve.batch.answers import Row

LIVE: Final = 0.2  # seconds between two lines on a terminal
LOGGED: Final = 30.0  # elsewhere


class Count:
    """Counts answers and their tokens, and tells now and then.

    Attributes:
        failed: answers that are errors, of an earlier run too.
        tokens: of the answers of this run.
    """

    def __init__(self, total: int, answered: int, failed: int, quiet: bool) -> None:
        """
        Args:
            answered, failed: by an earlier run.
        """
        self._total, self._earlier, self.failed = total, answered, failed
        self._done = 0
        self._shown = answered
        self.tokens = 0
        self._begun = self._told = time.monotonic()
        self._bar = None if quiet else Progress("avl-batch", total)
        if self._bar is not None:
            self._bar.done = answered

    @property
    def summary(self) -> str:
        """What was done, in one line."""
        earlier = f" ({self._earlier} of an earlier run)" if self._earlier else ""
        return (
            f"{self._total} requests{earlier}, {self.failed} failed, {self.tokens} tokens in "
            f"{_clock(time.monotonic() - self._begun)}"
        )

    def add(self, row: Row) -> None:
        """Count an answer."""
        self._done += 1
        self.tokens += row.tokens
        self.failed += row.failed
        if self._bar is None:
            return
        now, every = time.monotonic(), LIVE if self._bar.live else LOGGED
        if now - self._told >= every:
            self._told = now
            done = self._earlier + self._done
            self._bar.step(self._label(done), done - self._shown)
            self._shown = done

    def close(self) -> None:
        """Leave the line clean for what follows."""
        if self._bar is not None:
            self._bar.close()

    def _label(self, done: int) -> str:
        failed = f", {self.failed} failed" if self.failed else ""
        seconds = max(time.monotonic() - self._begun, 1e-6)
        left = _clock(seconds / self._done * (self._total - done))
        return f"{done} of {self._total}{failed}, {self.tokens / seconds:.1f} tokens/s, {left} left"


def _clock(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}"
