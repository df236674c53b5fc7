"""Progress of an export or a check on stderr."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Final

from avl_runtime.machine import progress

COMMAND: Final = ContextVar("command", default="avl-export")  # whose lines these are


class Progress(progress.Progress):
    """A bar over `total` units of work."""

    def __init__(self, total: int) -> None:
        super().__init__(COMMAND.get(), total)
